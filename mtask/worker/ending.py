"""Why and when a worker ends, and how long what it runs may go on."""

from __future__ import annotations

import math
import time

from mtask.worker.options import LEAST_TO_SAVE_S, Options, time_to_save_s

__all__ = ["Ending"]


class Ending:
    """Of one worker. Times are of the monotonic clock."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.reason: str | None = None
        """Why it drains; None: it doesn't."""
        self.term_at_s = self.kill_at_s = math.inf
        """When its tasks are told to save their state, and when they are killed."""
        self._began_s = self._busy_s = time.monotonic()

    def start(self) -> None:
        """From now on its limits count."""
        self._began_s = self._busy_s = time.monotonic()

    def busy(self) -> None:
        """It isn't idle just now."""
        self._busy_s = time.monotonic()

    def limit_reached(self, ended: int, vain_s: float) -> str | None:
        """The reason to drain that its options give by now. `ended`: so many attempts have; `vain_s`: when it began to
        ask the queue, the last time that there was nothing: a queue or table that is slow makes nobody idle."""
        options, now_s = self._options, time.monotonic()
        nothing = vain_s >= self._busy_s
        if options.idle_exit_s is not None and nothing and now_s - self._busy_s >= options.idle_exit_s:
            return "idle"
        if options.max_runtime_s is not None and now_s - self._began_s >= options.max_runtime_s:
            return "its time is over"
        if options.max_tasks is not None and ended >= options.max_tasks:
            return "it has run enough tasks"
        return None

    def begin(self, reason: str, grace_s: float | None) -> bool:
        """Drain, with so much time for what runs (None: that of its options), or less if that was said before; False: it
        does already."""
        grace_s = self._options.grace_s if grace_s is None else grace_s
        kill_at_s = time.monotonic() + grace_s
        self.kill_at_s = min(self.kill_at_s, kill_at_s)
        self.term_at_s = min(self.term_at_s, kill_at_s - time_to_save_s(grace_s))
        if self.reason is not None:
            return False
        self.reason = reason
        return True

    def to_save_s(self) -> float | None:
        """How long a task that is told now to save its state has for it; None: it isn't time for that yet."""
        now_s = time.monotonic()
        return max(LEAST_TO_SAVE_S, self.kill_at_s - now_s) if now_s >= self.term_at_s else None

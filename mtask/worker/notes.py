"""What a worker has to say to people: once when trouble begins, once when it is over."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Notes"]


class Notes:
    """Says a trouble once, and how long it took when it ends; safe to call from any thread."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._since: dict[str, float] = {}
        self._calm_since_s = -math.inf
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A full disk, or a terminal that has gone, is no reason to stop working."""
        with contextlib.suppress(OSError):
            self._say(text)

    def trouble(self, what: str, error: Exception) -> None:
        with self._lock:
            if what in self._since:
                return
            self._since[what] = time.monotonic()
        self.say(f"the {what} doesn't answer, trying again: {error}")

    def well(self, what: str) -> None:
        if what in self._since:
            with self._lock:
                since = self._since.pop(what, None)
                self._calm_since_s = time.monotonic()
            if since is not None:
                self.say(f"the {what} answers again after {time.monotonic() - since:.0f} s")

    def troubled(self, what: str) -> bool:
        """Is it in trouble now?"""
        return what in self._since

    def calm_s(self) -> float:
        """For how long there has been no trouble."""
        return 0.0 if self._since else time.monotonic() - self._calm_since_s

    def once(self, text: str) -> None:
        """Say this, unless it was said before."""
        with self._lock:
            if text in self._said:
                return
            self._said.add(text)
        self.say(text)

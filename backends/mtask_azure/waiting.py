"""When to look again: Azure's queues have no long poll.

The pause between two looks that found nothing doubles from 250 ms to 5 s, also from one `receive` to the next, and is a
little different each time, so that workers don't ask in step. What was found, or sent from here, ends it. So a busy
worker hardly waits, and one that has been idle for 10 s asks 17,000 times a day, for less than a cent.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

__all__ = ["LONGEST_S", "SHORTEST_S", "Waiting"]

SHORTEST_S, LONGEST_S = 0.25, 5.0
JITTER = 0.25
"""A pause is shorter or longer by up to this part of it."""


class Waiting:
    """For one queue; any thread may use it."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._changed = threading.Condition()
        self._pause_s = SHORTEST_S
        self._looks_at_s = 0.0
        """When to look again, by the monotonic clock."""
        self._woken = False

    def found(self) -> None:
        """There was something, or will be: look again at once."""
        with self._changed:
            self._pause_s, self._looks_at_s = SHORTEST_S, 0.0
            self._changed.notify_all()

    def found_nothing(self) -> None:
        with self._changed:
            pause_s = self._pause_s * self._uniform(1 - JITTER, 1 + JITTER)
            self._looks_at_s = time.monotonic() + pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_S)

    def wake(self) -> None:
        """One `wait` ends soon: the present one, or the next."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, until_s: float) -> bool:
        """Until it is time to look, but not longer than `until_s` (monotonic clock); False: woken."""
        with self._changed:
            while not self._woken:
                left_s = min(self._looks_at_s, until_s) - time.monotonic()
                if left_s <= 0:
                    return True
                self._changed.wait(left_s)
            self._woken = False
            return False

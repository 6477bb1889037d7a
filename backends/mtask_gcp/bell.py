"""Pauses that can be ended."""

from __future__ import annotations

import threading

__all__ = ["Bell"]


class Bell:
    """Any thread may ring it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.rings = 0

    def ring(self) -> None:
        with self._condition:
            self.rings += 1
            self._condition.notify_all()

    def wait(self, seconds: float, rings: int) -> bool:
        """Until it has rung more often than so many times; False: it hasn't."""
        with self._condition:
            return self._condition.wait_for(lambda: self.rings != rings, max(0.0, seconds))

"""Counts what a vendor bills: requests, write units, bytes."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["Meter"]


class Meter:
    """What one object of a backend has used since it was opened, by the vendor's unit; any thread may add.

    A queue or a table whose vendor bills by use has one as its attribute `meter`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()

    def add(self, unit: str, count: float) -> None:
        """`unit`: as the backend's `PRICES` call it."""
        with self._lock:
            self._used[unit] += count  # type: ignore[assignment]

    def used(self) -> dict[str, float]:
        with self._lock:
            return dict(self._used)

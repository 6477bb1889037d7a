"""Counts what a vendor bills: requests, write units, bytes; and knows what a unit costs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Self

import msgspec

__all__ = ["Meter", "Prices", "Tab", "Used", "reading", "since"]

Used = dict[str, float]
"""How much of what: the vendor's unit → count."""


class Meter:
    """What one object of a backend has used since it was opened, by the vendor's unit; any thread may add.

    A queue or a table whose vendor bills by use has one as its attribute `meter`. The lanes of a queue
    count on the meter of the queue itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()

    def add(self, unit: str, count: float) -> None:
        """`unit`: as the backend's `PRICES` call it."""
        self.add_here(unit, count)
        for tab in _TABS.get():
            tab.add(self, unit, count)

    def add_here(self, unit: str, count: float) -> None:
        """The same on nobody's tab."""
        with self._lock:
            self._used[unit] += count  # type: ignore[assignment]

    def used(self) -> Used:
        with self._lock:
            return dict(self._used)


class Tab:
    """What is added to the meters of these queues and tables within a `with` statement, by its thread: other threads
    that use the same objects have tabs of their own. Threads that work for this one must run in a copy of its context."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._meters = _meters_of(objects)
        self._mine = Meter()

    def add(self, meter: Meter, unit: str, count: float) -> None:
        if any(each is meter for each in self._meters):
            self._mine.add_here(unit, count)

    def used(self) -> Used:
        return self._mine.used()

    def __enter__(self) -> Self:
        self._token = _TABS.set((*_TABS.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _TABS.reset(self._token)


_TABS: ContextVar[tuple[Tab, ...]] = ContextVar("mtask tabs", default=())


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor's prices. The module of a backend whose vendor bills by use has one as `PRICES`."""

    dollars: Used
    """Unit → US dollars for one of it."""
    region: str
    """Where these prices hold."""
    at: str
    """When they were looked up: year and month, as 2026-11."""
    source: str = ""
    """From where, for people."""

    def million(self, unit: str) -> float:
        """Dollars for a million of this unit."""
        return self.dollars[unit] * 1e6


def reading(objects: Iterable[Any]) -> Used:
    """What the meters of these queues and tables say, together; empty: none of them has one."""
    total: Counter[str] = Counter()
    for meter in _meters_of(objects):
        total.update(meter.used())
    return dict(total)


def _meters_of(objects: Iterable[Any]) -> list[Any]:
    """Each once."""
    meters = {id(meter): meter for each in objects if (meter := getattr(each, "meter", None)) is not None}
    return list(meters.values())


def since(before: Used, now: Used) -> Used:
    """What was used between two readings; units of which nothing was used are left out."""
    return {unit: used for unit, count in now.items() if (used := count - before.get(unit, 0.0)) > 0}

"""What a fleet is made of, and what it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mtask.worker.leases import ALONG

__all__ = ["CAME_BACK", "CHECKED", "PLAIN", "Parcel", "Slot", "Worker"]

PLAIN, CHECKED, CAME_BACK = range(3)
"""How a message is received: run; run unless its task has a row; taken apart (its worker died)."""


class Parcel(NamedTuple):
    """A message: tasks from `first` to before `stop`."""

    first: int
    stop: int
    kind: int = PLAIN


class Slot:
    """Holds one message or none."""

    __slots__ = ("begun_s", "end_s", "first", "got_s", "parcel", "renewed_s", "stop", "version", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.parcel: Parcel | None = None
        self.first = self.stop = 0
        """Of the tasks that it still runs of the parcel."""
        self.got_s = self.begun_s = self.end_s = self.renewed_s = 0.0
        self.version = 0
        """Events of an earlier one are void."""


class Worker:
    """Some slots, which go together, with one receiver, recorder and keeper of leases."""

    __slots__ = (
        "asked_s",
        "crowded",
        "deletes",
        "due_s",
        "free",
        "from_front",
        "front_at_s",
        "hungry_s",
        "slots",
        "up",
        "writing_s",
    )

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(self) for _ in range(slots)]
        self.free: list[Slot] = []
        self.up = False
        self.hungry_s: float | None = None
        """Since when it waits for a message."""
        self.asked_s = 0.0
        """The receiver is under way until then."""
        self.front_at_s, self.from_front = 0.0, False
        """When it looks into the front lane again, and whether its latest messages came from there."""
        self.crowded = False
        """Was no slot free when the notice came?"""
        self.writing_s, self.deletes = 0.0, 0
        """When the recorder begins, or began, its latest round, and how many messages are deleted in it."""
        self.due_s = math.inf
        """When the next lease has to be extended."""

    def over(self, now_s: float, round_s: float) -> int:
        """One more message is over; returns how many the recorder, whose rounds take so long, found before it."""
        if now_s > self.writing_s:
            self.writing_s = max(now_s, self.writing_s + round_s)
            self.deletes = 0
        self.deletes += 1
        return self.deletes - 1

    def extend(self, now_s: float, lease_s: float) -> Iterator[int]:
        """How many leases were extended each time since the last look: what is due at a third takes others along."""
        while self.due_s <= now_s:
            extended, next_s = 0, math.inf
            for slot in self.slots:
                if slot.parcel is not None:
                    if self.due_s >= slot.renewed_s + ALONG * lease_s:
                        slot.renewed_s = self.due_s
                        extended += 1
                    next_s = min(next_s, slot.renewed_s + lease_s / 3)
            yield extended
            self.due_s = next_s

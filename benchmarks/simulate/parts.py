"""What a fleet is made of, and what it holds."""

from __future__ import annotations

import math
from typing import NamedTuple

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
        "deletes",
        "due_s",
        "free",
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
        self.writing_s, self.deletes = 0.0, 0
        """When the recorder begins, or began, its latest round, and how many messages are deleted in it."""
        self.due_s = math.inf
        """When the next lease has to be extended."""

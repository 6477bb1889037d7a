"""A delivery in a worker's hands, from its receipt until it is deleted or given back."""

from __future__ import annotations

import itertools
import time

import msgspec

from mtask.model import ID_COLUMN, Bag, Delivery, Message, as_id
from mtask.packing import split_rows

__all__ = ["Held", "Job"]


class Held:
    """A delivery, the message in it, its lease, and how many of its tasks are still unsettled.

    A task is settled when its row is recorded, or when a copy of it was sent. The message may be
    deleted when all are.
    """

    __slots__ = (
        "_rows",
        "bag",
        "body",
        "delivery",
        "expires_s",
        "lease_s",
        "lost",
        "message",
        "received_s",
        "renewed_s",
        "unsettled",
    )

    def __init__(
        self, delivery: Delivery, message: Message, bag: Bag, lease_s: float, received_s: float, body: bytes
    ) -> None:
        self.delivery, self.message, self.bag, self.lease_s = delivery, message, bag, lease_s
        self.body = body
        """The message encoded, with its rows."""
        self.received_s = self.renewed_s = received_s
        self.expires_s = received_s + lease_s
        self.unsettled = message.count
        self.lost = False
        """The lease ran out: nothing may be recorded or deleted any more."""
        self._rows: list[msgspec.Raw] | None = None

    @property
    def rows(self) -> list[msgspec.Raw]:
        """The tasks' rows, each still encoded; decoded on the slow paths only."""
        if self._rows is None:
            self._rows = split_rows(self.message.rows)
        return self._rows

    def id_of(self, offset: int) -> str | None:
        """The user's own name for a task."""
        columns = self.message.columns
        if ID_COLUMN not in columns:
            return None
        return as_id(msgspec.json.decode(self.rows[offset])[columns.index(ID_COLUMN)])

    def age_s(self) -> float:
        return time.monotonic() - self.received_s


class Job:
    """Tasks `start` to `stop` (offsets) of a held message, given to a slot."""

    __slots__ = ("began_s", "got", "held", "ready_s", "serial", "start", "stop")

    _serials = itertools.count()

    def __init__(self, held: Held, start: int, stop: int) -> None:
        self.serial = next(self._serials)
        self.held, self.start, self.stop = held, start, stop
        self.got = start
        """Results have come for all tasks before this offset."""
        self.ready_s = time.monotonic()
        self.began_s = 0.0

    @property
    def whole(self) -> bool:
        """Is it all of its message, none of it begun?"""
        return self.start == 0 and self.got == 0 and self.stop == self.held.message.count

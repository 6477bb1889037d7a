"""A delivery in a worker's hands, from its receipt until it is deleted or given back."""

from __future__ import annotations

import itertools
import time

import msgspec

from mtask.errors import MessageError
from mtask.model import EXPIRED, ID_COLUMN, Bag, Delivery, Message, Result, as_id
from mtask.packing import slice_message, split_rows
from mtask.worker.room import Share

__all__ = ["Held", "Job"]


class Held:
    """A delivery, the message in it, its lease, and how many of its tasks are still unsettled.

    A task is settled when its row is recorded, or when a copy of it was sent. The message may be
    deleted when all are.
    """

    __slots__ = (
        "bag",
        "body",
        "delivery",
        "ended_before",
        "expires_s",
        "lane",
        "lease_s",
        "lost",
        "message",
        "received_s",
        "renewed_s",
        "rows",
        "unsettled",
    )

    def __init__(
        self, delivery: Delivery, message: Message, bag: Bag, *, body: bytes, lease_s: float, asked_s: float
    ) -> None:
        """`body`: the message encoded, with its rows. The lease began at `asked_s` or later.

        Raises MessageError for rows that don't match the message's count.
        """
        self.delivery, self.message, self.bag, self.body = delivery, message, bag, body
        self.lease_s, self.received_s = lease_s, time.monotonic()
        self.renewed_s, self.expires_s = asked_s, asked_s + lease_s
        self.unsettled = message.count
        self.lane = bag.lane(message.lane)
        """With what its tasks need."""
        self.ended_before: bool | None = None
        """Had its task a row, before its result was written? None: not looked at."""
        self.lost = False
        """The lease ran out: nothing may be recorded or deleted any more."""
        try:
            self.rows = split_rows(message.rows)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"its rows can't be read: {error}") from None
        if len(self.rows) != message.count:
            raise MessageError(f"it has {len(self.rows)} rows and a count of {message.count}")

    @property
    def deaths(self) -> int:
        """How many workers died with this message, or with those that it was cut from."""
        return self.message.deaths + self.delivery.deliveries - 1

    @property
    def memory_bytes(self) -> int | None:
        """What an attempt may take; None: as much as it likes."""
        return self.lane.requires.memory_bytes or self.bag.spec.memory_bytes

    @property
    def is_suspect(self) -> bool:
        """Did nearly as many workers die with it as may?"""
        return self.deaths > 0 and self.deaths >= self.bag.spec.max_deliveries - 2

    def part(self, start: int, stop: int) -> Message:
        """A message of its own for the tasks `start` to `stop` (offsets), which forgets no death."""
        message = slice_message(self.message, self.rows, start, stop)
        return (
            message if self.deaths == message.deaths else msgspec.structs.replace(message, deaths=self.deaths)
        )

    def single(self, index: int) -> Message:
        """A message of its own for the task of this index."""
        offset = index - self.message.first
        return self.part(offset, offset + 1)

    def id_of(self, offset: int) -> str | None:
        """The user's own name for a task."""
        columns = self.message.columns
        if ID_COLUMN not in columns:
            return None
        try:
            return as_id(msgspec.json.decode(self.rows[offset])[columns.index(ID_COLUMN)])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None  # whoever runs the row says what is wrong with it

    @property
    def is_expired(self) -> bool:
        """Is it too late to begin its tasks? Those that were begun before may be tried again."""
        message = self.message
        return message.expires_at is not None and not message.attempt and time.time() > message.expires_at

    def expired(self, index: int, worker: str) -> Result:
        """The row of a task that was not begun in time."""
        return Result.expired(
            self.bag.name,
            index,
            EXPIRED.format(self.bag.spec.expires_s),
            id=self.id_of(index - self.message.first),
            worker=worker,
            queued_at=self.message.sent_at,
            finished_at=time.time(),
        )

    def age_s(self) -> float:
        return time.monotonic() - self.received_s


class Job:
    """Tasks `start` to `stop` (offsets) of a held message, given to a slot."""

    __slots__ = ("began_s", "got", "held", "ready_s", "serial", "share", "start", "stop")

    _serials = itertools.count()

    def __init__(self, held: Held, start: int, stop: int) -> None:
        self.serial = next(self._serials)
        self.held, self.start, self.stop = held, start, stop
        self.got = start
        """Results have come for all tasks before this offset."""
        self.ready_s = time.monotonic()
        self.began_s = 0.0
        self.share: Share | None = None
        """What it has of the worker, from its start on."""

    @property
    def whole(self) -> bool:
        """Is it all of its message, none of it begun?"""
        return self.start == 0 and self.got == 0 and self.stop == self.held.message.count

    @property
    def left(self) -> int:
        """Tasks without a result."""
        return self.stop - self.got

    def pieces(self, seconds: float) -> list[Message]:
        """Messages of its tasks, each of so many seconds at the pace seen; single ones where none was."""
        task_s = self.held.age_s() / max(1, self.start)
        size = max(1, int(seconds / task_s)) if self.start > 1 else 1
        cuts = range(self.start, self.stop, size)
        return [self.held.part(at, min(at + size, self.stop)) for at in cuts]

    def rest(self) -> Job:
        """A new job of those."""
        return Job(self.held, self.got, self.stop)

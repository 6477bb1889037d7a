"""A delivery in a worker's hands, from its receipt until it is deleted or given back."""

from __future__ import annotations

import itertools
import time

import msgspec

from mtask.errors import MessageError
from mtask.model import (
    EXPIRED,
    FRONT_VERSION,
    GUARDED_VERSION,
    ID_COLUMN,
    Bag,
    Delivery,
    Message,
    Result,
    as_id,
    least_version,
)
from mtask.packing import slice_message, split_rows
from mtask.requirements import DEFAULT_LANE, Lane, find_lane, front_of
from mtask.worker.room import Share

__all__ = ["Held", "Job"]


class Held:
    """A delivery, the message in it, its lease, and how many of its tasks are still unsettled.

    A task is settled when its row is recorded, or when a copy of it was sent. The message may be
    deleted when all are.
    """

    __slots__ = (
        "bag",
        "began_s",
        "body",
        "delivery",
        "ended_before",
        "expires_s",
        "guarded_parts",
        "lane",
        "lease_s",
        "let_go",
        "lost",
        "message",
        "nears_its_end",
        "received_s",
        "renewed_s",
        "rows",
        "unsettled",
    )

    def __init__(
        self,
        delivery: Delivery,
        message: Message,
        bag: Bag,
        *,
        body: bytes,
        lease_s: float,
        asked_s: float,
        received_s: float | None = None,
    ) -> None:
        """`body`: the message encoded, with its rows. The lease began at `asked_s` or later; if it has been
        extended before, the message was received at `received_s`.

        Raises MessageError for rows that don't match the message's count.
        """
        self.delivery, self.message, self.bag, self.body = delivery, message, bag, body
        self.lease_s = lease_s
        self.renewed_s, self.expires_s = asked_s, asked_s + lease_s
        self.received_s = asked_s if received_s is None else received_s
        self.nears_its_end = False
        """Can it not be held for much longer?"""
        self.guarded_parts: list[tuple[int, int]] = []
        """Tasks (offsets) that run here, of which a copy is in the queue or about to be, which waits for their end."""
        self.let_go = False
        """The copy was sent and the message deleted: there is no lease any more, and none is needed."""
        self.began_s: float | None = None
        """When its first task was seen to begin (monotonic clock): imports before that say nothing of its pace."""
        self.unsettled = message.count
        self.lane = find_lane(message.lane, bag.lanes) or DEFAULT_LANE
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
        if not self.deaths:
            return message
        return msgspec.structs.replace(message, deaths=self.deaths, lane=self._own_lane())

    def whole(self) -> Message:
        """All of it again, as it was: what guards a task still tells when it was handed on."""
        part = self.part(0, self.message.count)
        return msgspec.structs.replace(part, sent_at=self.message.sent_at) if part.runs_at else part

    def _own_lane(self) -> str:
        """Of the bag's lanes, the one that the message's is, or is in front of."""
        own = (DEFAULT_LANE, *self.bag.lanes)
        return next((lane.name for lane in own if self.lane == lane or self.lane == front_of(lane)), "")

    def guarded(self, start: int, stop: int, worker: str) -> Message:
        """The same for tasks that `worker` runs on without holding their message; see `mtask.worker.guard`."""
        part = self.part(start, stop)
        return msgspec.structs.replace(part, runs_at=worker, check=True, v=max(part.v, GUARDED_VERSION))

    def unguard(self, *, attempt: int, died: bool) -> None:
        """Nobody runs it any more, after so many failed attempts; or its worker `died` with it."""
        version = least_version(self.bag.spec, self.message.then)
        self.message = msgspec.structs.replace(
            self.message,
            runs_at="",
            attempt=attempt,
            deaths=self.message.deaths + died,
            v=max(version, FRONT_VERSION if self.lane.front else 0),
        )
        self.body = self.message.encode()

    @property
    def lost_its_place(self) -> bool:
        """Did workers die with it, and is it in a front lane nevertheless? Before it others should come, that do
        no harm."""
        return self.deaths > 0 and self.lane.front

    @property
    def front(self) -> Lane | None:
        """Where it may be given back to be received first; None for what workers died with."""
        front = front_of(self.lane)
        return front if front.front and not self.deaths else None

    def in_front(self, lane: Lane, start: int, stop: int) -> Message:
        """The same for such a lane."""
        part = self.part(start, stop)
        return msgspec.structs.replace(part, lane=lane.name, v=max(part.v, FRONT_VERSION))

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

    def took_s(self, since_s: float) -> float:
        """How long its tasks have taken until now; the one that runs began `since_s` ago."""
        now_s = time.monotonic()
        if self.began_s is None:
            self.began_s = now_s - since_s
        return now_s - self.began_s


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

    def pieces(self, size: int) -> list[Message]:
        """Messages of so many of its tasks each."""
        cuts = range(self.start, self.stop, size)
        return [self.held.part(at, min(at + size, self.stop)) for at in cuts]

    def rest(self) -> Job:
        """A new job of those."""
        return Job(self.held, self.got, self.stop)

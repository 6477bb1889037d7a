"""The words of mtask as types: what is stored, what is sent, and what comes back.

All of them are immutable. Those that travel have one JSON form (`encode`, `decode`), in which
unknown fields are ignored and missing ones take their default, so that a newer worker reads what
an older manager wrote. Times are seconds since the epoch, UTC; durations are seconds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Self

import msgspec

from mtask.errors import MessageError, NewerMessageError
from mtask.requirements import DEFAULT_LANE, Lane
from mtask.spec import MOST, Spec

__all__ = [
    "MESSAGE_VERSION",
    "Bag",
    "BagState",
    "Block",
    "Counts",
    "DeadMessage",
    "Delivery",
    "Failure",
    "Message",
    "Reason",
    "Result",
    "Spec",
    "State",
    "Task",
]

YEAR_10000 = 253_402_300_800.0

MESSAGE_VERSION = 5
"""Of the newest messages; each is sent with the lowest version that reads it rightly. See `Message.decode`."""
SERIAL_VERSION = 2
"""Messages with `then`."""
FRONT_VERSION = 3
"""Messages in a lane that isn't one of their bag's, but the front one of it."""
GUARDED_VERSION = 4
"""Messages with `runs_at`."""
STAGED_VERSION = 5
"""Messages of bags with inputs or outputs."""

ID_COLUMN = "id"
COMMAND_COLUMN = "command"
NO_ROWS = msgspec.Raw(b"null")
UNKNOWN = "unknown"
"""The type of a failure to find a bag's function: another worker may have it."""
EXPIRED = "not started within {:g} s of its submit"


class State(StrEnum):
    """How a task ended. A task of a cancelled bag may end with its bag instead, and has no row then."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


class BagState(StrEnum):
    """`open`: tasks may be added, or are being submitted; `sealed`: all are there; `resending`: all are there, and some are
    being sent again; `cancelled`: nothing of it runs any more."""

    OPEN = "open"
    SEALED = "sealed"
    RESENDING = "resending"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why an attempt failed."""

    RAISED = "raised"
    """The function raised."""
    EXIT = "exit"
    """The command, or the child that ran the function, exited with a status that is not 0."""
    SIGNAL = "signal"
    """A signal killed the command or the child (segmentation fault, out of memory, …)."""
    TIMEOUT = "timeout"
    VALUE = "value"
    """The function returned something that has no JSON form."""
    START = "start"
    """The function or the program could not be found or started."""
    LOST = "lost"
    """The workers that ran it died, `max_deliveries` times."""
    MEMORY = "memory"
    """It took more than it may."""
    SETUP = "setup"
    """A function that it needs first (`mtask.setup`) raised, crashed, or took too long."""
    STAGING = "staging"
    """An input could not be fetched, or an output was not written or could not be put in its place."""
    EXPIRED = "expired"


class Bag(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A named set of tasks that share a spec."""

    name: str
    spec: Spec
    columns: tuple[str, ...] = ()
    """The names of the tasks' parameters, in the order of the values of a row."""
    digest: str = ""
    """Of the columns and all rows: tells whether a second submit brings the same tasks."""
    lanes: tuple[Lane, ...] = ()
    """Where its messages are, but for the queue itself."""
    uid: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Tells the bag from another one that had the same name before."""
    generation: int = 0
    """Goes up when the bag is taken up again after a cancel: messages of before are void."""
    state: BagState = BagState.OPEN
    total: int = 0
    """Number of tasks; final when sealed."""
    sent: int = 0
    """Tasks [0, sent) were certainly sent to the queue once."""
    endless: bool = False
    """May tasks be added to it by further submits until it is sealed? See `mtask.append`."""
    source: str = ""
    """Where the tasks came from, for people."""
    created_at: float = msgspec.field(default_factory=time.time)
    """UTC."""

    def lane(self, name: str) -> Lane:
        """One of its lanes; the default one for a name that it doesn't have."""
        return next((lane for lane in self.lanes if lane.name == name), DEFAULT_LANE)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One row of parameters."""

    bag: str
    index: int
    id: str | None
    params: dict[str, Any]


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """`count` consecutive tasks of a bag, beginning with index `first`, as stored in the table."""

    bag: str
    number: int
    """0, 1, 2, … in the order of the tasks."""
    first: int
    count: int
    rows: bytes
    """A JSON array of `count` arrays, each with one value for each of the bag's columns."""
    lane: str = ""
    """Where its messages go."""
    then: int | None = None
    """The block that may be sent when the tasks of this one have ended (`Spec.serial`); it is sent by then."""

    def tasks(self, columns: tuple[str, ...]) -> Iterator[Task]:
        id_at = columns.index(ID_COLUMN) if ID_COLUMN in columns else None
        for offset, row in enumerate(msgspec.json.decode(self.rows, type=list[list[Any]])):
            user_id = None if id_at is None else as_id(row[id_at])
            params = dict(zip(columns, row, strict=True))
            yield Task(bag=self.bag, index=self.first + offset, id=user_id, params=params)


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the queue carries: `count` consecutive tasks of one bag, with their parameters."""

    v: int = 1
    bag: str
    uid: str
    """The bag's uid."""
    generation: int = 0
    block: int
    first: int
    count: int
    columns: tuple[str, ...] = ()
    rows: msgspec.Raw = NO_ROWS
    """A JSON array of `count` arrays; `NO_ROWS`: too big to be sent, to be read from the table's block."""
    attempt: int = 0
    """How many attempts of these tasks have failed before (more than 0 only when count is 1)."""
    deaths: int = 0
    """How many workers died with these tasks before this message was sent."""
    check: bool = False
    """Some of the tasks may have been sent or done before: look for their rows before running them."""
    sent_at: float = 0.0
    not_before: float | None = None
    """Don't start before this time (UTC)."""
    expires_at: float | None = None
    """A task that wasn't begun by this time (UTC) is not run."""
    lane: str = ""
    """Where it is sent, and whatever is cut from it."""
    then: int | None = None
    """The number of the block to be sent when its task has ended."""
    runs_at: str = ""
    """The worker that runs these tasks, without a message of its own: nobody else does while it lives."""

    def __post_init__(self) -> None:
        numbers = (self.first, self.block, self.attempt, self.deaths, self.generation, self.then or 0)
        if min(numbers) < 0 or min(self.count, self.v) < 1 or max(*numbers, self.count) > MOST:
            raise ValueError("a count or an index is out of range")

    @property
    def has_rows(self) -> bool:
        return len(self.rows) != len(NO_ROWS) or bytes(self.rows) != bytes(NO_ROWS)

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def of(cls, bag: Bag, block: Block, *, check: bool = False) -> Self:
        """The message of a whole block."""
        return cls(
            bag=bag.name,
            uid=bag.uid,
            generation=bag.generation,
            block=block.number,
            first=block.first,
            count=block.count,
            columns=bag.columns,
            rows=msgspec.Raw(block.rows),
            check=check,
            sent_at=round(time.time(), 3),
            not_before=bag.spec.not_before_at,
            expires_at=None if bag.spec.expires_s is None else bag.created_at + bag.spec.expires_s,
            lane=block.lane,
            then=block.then,
            v=least_version(bag.spec, block.then),
        )

    @classmethod
    def decode(cls, body: bytes) -> Message:
        """Read a body; raises MessageError, which says what is wrong with it, and NewerMessageError for
        one that a newer mtask can read.

        The rows are checked to be JSON, but not decoded: the process that runs them does that.
        """
        try:
            message = _MESSAGE_DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem: str | None = f"not a message: {error}"
            version = _version_of(body)
        else:
            times = (message.sent_at, message.not_before or 0.0)
            fits = min(times) >= 0 and max(times) < YEAR_10000
            problem, version = None if fits else "not a message: a time is out of range", message.v
        if version > MESSAGE_VERSION:
            raise NewerMessageError(
                f"a message of version {version}; this mtask reads up to {MESSAGE_VERSION}: upgrade it"
            )
        if problem is not None:
            raise MessageError(problem)
        return message


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message as one worker received it."""

    body: bytes
    token: Any
    """Proof of the lease, opaque to the engine; a new one with each extension."""
    deliveries: int = 1
    """How often the message was delivered, this time included."""
    lane: str = ""
    """From which lane."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a task failed."""

    reason: Reason
    type: str
    """The exception's class, or the reason again where there was no exception."""
    message: str
    traceback: str = ""
    """Frames of the user's code only."""
    final: bool = False
    """Another attempt would be of no use, whatever the spec says about retries."""
    retry_after_s: float | None = None
    """The pause that the task itself asked for."""


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task's row in the table. Made by `Result.done`, `Result.failed` or `Result.expired`."""

    bag: str
    index: int
    state: State
    id: str | None = None
    value_json: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="value")
    error: Failure | None = None
    exit_code: int | None = None
    """Of a command; -N: killed by signal N."""
    stdout: str = ""
    stderr: str = ""
    attempt: int = 1
    """Which attempt this was, from 1."""
    worker: str = ""
    host: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of a function that took less than a millisecond: its wall time."""
    peak_bytes: int = 0
    """Largest resident set of the process that ran it. Linux begins, for a command, with that of the process that starts
    it: some 16 MB."""

    def __post_init__(self) -> None:
        if (self.state is State.DONE) == (self.error is not None):
            raise ValueError(f"a {self.state} result {'needs' if self.error is None else 'has no'} error")

    @property
    def value(self) -> Any:
        """What the function returned; None for commands and for tasks that are not `done`."""
        return msgspec.json.decode(self.value_json)

    @classmethod
    def done(cls, bag: str, index: int, *, value: Any = None, **fields: Any) -> Self:
        raw = value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value))
        return cls(bag=bag, index=index, state=State.DONE, value_json=raw, **fields)

    @classmethod
    def failed(cls, bag: str, index: int, error: Failure, **fields: Any) -> Self:
        return cls(bag=bag, index=index, state=State.FAILED, error=error, **fields)

    @classmethod
    def expired(cls, bag: str, index: int, message: str, **fields: Any) -> Self:
        error = Failure(reason=Reason.EXPIRED, type="expired", message=message)
        return cls(bag=bag, index=index, state=State.EXPIRED, error=error, **fields)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks of a bag ended how. `total` grows until the bag is sealed."""

    total: int = 0
    done: int = 0
    failed: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.expired

    @property
    def left(self) -> int:
        return self.total - self.ended


class DeadMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not be read, set aside in the table with its body."""

    body: bytes
    reason: str
    worker: str = ""
    at: float = msgspec.field(default_factory=time.time)


def as_id(value: Any) -> str:
    """A user's own name for a task, as text."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def least_version(spec: Spec, then: int | None) -> int:
    """Of a message that is in a lane of its bag's and held by nobody."""
    if spec.staged:
        return STAGED_VERSION
    return 1 if then is None else SERIAL_VERSION


class _Versioned(msgspec.Struct):
    v: int = 0


def _version_of(body: bytes) -> int:
    """Of something that may be a message of the future; 0 for anything else."""
    try:
        return msgspec.json.decode(body, type=_Versioned).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


_ENCODER = msgspec.json.Encoder()
_MESSAGE_DECODER = msgspec.json.Decoder(Message)

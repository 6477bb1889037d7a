"""What the tasks of a bag have in common: what to run, and how."""

from __future__ import annotations

from typing import Literal

import msgspec

from mtask.requirements import Requirements

__all__ = ["GROWTH", "MOST", "Kind", "Spec", "differs"]

GROWTH = 250
MOST = 2**53
"""Larger numbers aren't stored by all tables, nor kept by all readers of JSON."""
TAIL_BYTES = 16 * 1024

Kind = Literal["call", "run", "shell", "command"]

_WHOLE = (
    "retries",
    "max_deliveries",
    "memory_bytes",
    "gpus",
    "priority",
    "max_running",
    "per_message",
    "growth",
    "tail_bytes",
)
_NUMBERS = (
    "timeout_s",
    "lease_s",
    "backoff_s",
    "backoff_max_s",
    "expires_s",
    "keep_s",
    "not_before_at",
    "cpus",
    "rate",
)
_OPTIONAL = {
    "memory_bytes",
    "max_running",
    "per_message",
    "timeout_s",
    "expires_s",
    "keep_s",
    "not_before_at",
    "rate",
}


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tasks of a bag have in common: what to run, and how.

    Raises ValueError for a spec that makes no sense, also when decoded.
    """

    kind: Kind
    target: tuple[str, ...] = ()
    """`call`: ("module:function",); `run`: argv words with {column}s; `shell`: (script,);
    `command`: (), each row has a command line of its own in its column `command`."""
    retries: int = 3
    """How many failed attempts of a task are tried again."""
    timeout_s: float | None = None
    """Longest time of one attempt; None is for ever."""
    lease_s: float = 60.0
    """How long after a worker's death its messages go to another."""
    max_deliveries: int = 5
    """How many workers may die with a task before it fails as `lost`."""
    backoff_s: float = 1.0
    """The longest pause before the first retry; it doubles with each further one."""
    backoff_max_s: float = 600.0
    retry_on: tuple[str, ...] = ()
    """Only these failures are tried again: names of exception classes (bases count), exit codes, or
    reasons. Empty: all are."""
    no_retry: tuple[str, ...] = ()
    """These are not, even so."""
    expires_s: float | None = None
    """A task that hasn't started so long after the bag was made, or it was sent again by `retry`, ends
    as `expired`."""
    keep_s: float | None = None
    """The table may forget the bag and its results so long after its submit; None: it never does."""
    not_before_at: float | None = None
    """No task starts before (UTC)."""
    cpus: float = 1.0
    """How many of a worker's a task takes; this and the next five can be said by a row, too."""
    memory_bytes: int | None = None
    """Reserved for a task; an attempt that takes more is ended."""
    gpus: int = 0
    tags: tuple[str, ...] = ()
    """What the worker must have, or, written `!tag`, must not have."""
    only_on: tuple[str, ...] = ()
    """Of these tags the worker must have at least one."""
    priority: int = 0
    """From -9 to 9; tasks of a higher one start first."""
    max_running: int | None = None
    """So many tasks of the bag run at a time, on all workers together."""
    rate: float | None = None
    """So many start in a second, on all workers together."""
    key: str = ""
    """Of tasks with the same value in this column, only the first is submitted."""
    serial: str = ""
    """Tasks with the same value in this column run one after the other, in their order."""
    inputs: dict[str, str] = {}
    """Name → URL, with {column}s: fetched before each attempt, which gets a path by this name."""
    outputs: dict[str, str] = {}
    """Name → URL, with {column}s: what an attempt that succeeded wrote to the path of this name goes there."""
    then: str = ""
    """"module:function" that is called with all results when every task is done; see `mtask.reducing`."""
    per_message: int | None = None
    """Most tasks in a message; None lets the number grow with the bag."""
    growth: int = GROWTH
    """Then it grows by one for so many tasks that are packed already."""
    tail_bytes: int = TAIL_BYTES
    """So much of the end of what an attempt prints is kept, of stdout and of stderr."""

    def __post_init__(self) -> None:
        self._check_numbers()
        if len(self.target) != {"call": 1, "shell": 1, "command": 0}.get(self.kind, len(self.target)):
            raise ValueError(f"a spec of kind {self.kind!r} can't have the target {self.target!r}")
        if self.kind == "run" and not self.target:
            raise ValueError("a command needs at least one word")
        if self.retries < 0:
            raise ValueError("retries must be 0 or more")
        if self.max_deliveries < 1:
            raise ValueError("max_deliveries must be 1 or more")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError("timeout_s must be more than 0")
        if self.lease_s < 1:
            raise ValueError("lease_s must be 1 or more")
        if self.expires_s is not None and self.expires_s <= 0:
            raise ValueError("expires_s must be more than 0")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise ValueError("memory_bytes must be more than 0")
        if self.keep_s is not None and self.keep_s <= 0:
            raise ValueError("keep_s must be more than 0")
        if not -9 <= self.priority <= 9:
            raise ValueError("priority must be from -9 to 9")
        if self.max_running is not None and self.max_running < 1:
            raise ValueError("max_running must be 1 or more")
        if self.rate is not None and not 0 < self.rate <= MOST:
            raise ValueError("rate must be more than 0")
        _ = self.requires
        if self.per_message is not None and self.per_message < 1:
            raise ValueError("per_message must be 1 or more")
        if self.growth < 1:
            raise ValueError("growth must be 1 or more")
        if self.tail_bytes < 0:
            raise ValueError("tail_bytes must be 0 or more")
        if self.backoff_s < 0 or self.backoff_max_s < self.backoff_s:
            raise ValueError("backoff_s must be 0 or more, and backoff_max_s at least as much")

    def _check_numbers(self) -> None:
        """What JSON can't hold would be stored as something else, and not be read again."""
        for names, kind, wanted in ((_WHOLE, int, "a whole number"), (_NUMBERS, (int, float), "a number")):
            for name in names:
                value = getattr(self, name)
                if value is None and name in _OPTIONAL:
                    continue
                if not isinstance(value, kind) or isinstance(value, bool) or not abs(value) <= MOST:
                    raise ValueError(f"{name} must be {wanted}, at most 2**53, not {value!r}")

    @property
    def staged(self) -> bool:
        """Has it anything to be fetched or to be put somewhere?"""
        return bool(self.inputs or self.outputs)

    @property
    def requires(self) -> Requirements:
        """What each task needs whose row doesn't say otherwise."""
        return Requirements(
            cpus=self.cpus,
            memory_bytes=self.memory_bytes or 0,
            gpus=self.gpus,
            tags=self.tags,
            only_on=self.only_on,
        )

    @property
    def tasks_per_message(self) -> int | None:
        """As `per_message`; one where each start is counted, may have to wait for another task, or may
        be the last chance of its neighbours."""
        counted = self.max_running is not None or self.rate is not None or self.serial
        return 1 if counted or self.max_deliveries == 1 else self.per_message

    @property
    def title(self) -> str:
        """One line for people."""
        return " ".join(self.target) if self.target else "column 'command'"


def differs(there: Spec, here: Spec) -> str | None:
    """In what a stored spec differs from the one of now; None: in nothing."""
    if (there.kind, there.target) != (here.kind, here.target):
        return f"runs something else ({there.title})"
    # "In two hours" is another time when it is said again, and growth is the queue's affair: see `repacked`.
    here = msgspec.structs.replace(here, not_before_at=there.not_before_at, growth=there.growth)
    if there == here:
        return None
    changed = (name for name in Spec.__struct_fields__ if getattr(there, name) != getattr(here, name))
    options = ", ".join(f"{name}={getattr(there, name)} (now {getattr(here, name)})" for name in changed)
    return f"has other options: {options}"

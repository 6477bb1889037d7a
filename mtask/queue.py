"""The interface of a queue: one of the two things that a backend supplies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import msgspec

from mtask.errors import SendError
from mtask.model import Bag, DeadMessage, Delivery, Message, Spec
from mtask.spec import GROWTH

if TYPE_CHECKING:
    from mtask.table import Table

__all__ = [
    "Depth",
    "Extension",
    "HandsOut",
    "KeepsDead",
    "Queue",
    "QueueLimits",
    "Standing",
    "encoded",
    "send_all",
]


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a queue can and can't do. `docs/backends.md` shows these."""

    message_bytes: int
    """Largest encoded message."""
    send_batch: int
    """Messages that go into one request of `send`; more are sent as several requests."""
    receive_batch: int
    """Most messages that one `receive` returns."""
    lease_s: float = math.inf
    """Longest lease that `receive` or one `extend` gives."""
    hold_s: float = math.inf
    """Longest time that a message can be held in all, however often it is extended."""
    delay_s: float = math.inf
    """Longest delay of `send` and `release`."""
    wait_s: float = math.inf
    """Longest wait of one `receive`."""
    extends: bool = True
    """Can a lease be extended?"""
    counts_deliveries: bool = True
    """Is `Delivery.deliveries` true?"""
    counts_releases: bool = False
    """Does a released message come back with its delivery counted?"""
    growth: int = GROWTH
    """`Spec.growth` of its bags: smaller where a message costs more than a request."""
    hears_lanes: bool = False
    """Does a `receive` that waits end, with nothing, when something is sent to another lane in which a `receive` that didn't
    wait has found nothing just before?"""
    knows_depth: bool = True
    workers_send: bool = True
    """Can a worker send? (Not on an execute node of HTCondor.) If not, it neither splits nor retries."""
    pulled: bool = True
    """Can a worker receive? If not, the vendor starts a process for each message: see `HandsOut`."""


class Depth(NamedTuple):
    """How many messages there are; None where the vendor can't know."""

    ready: int | None
    """Can be received now."""
    leased: int | None
    delayed: int | None


class Extension(NamedTuple):
    """What became of leases that were to be extended."""

    extended: list[tuple[Delivery, Delivery]]
    """Pairs: the delivery as it was given, and the same with its new token."""
    lost: list[Delivery]
    """As they were given. Their leases are over for good: the messages are, or will be, somebody else's.

    A delivery in neither list met a passing fault: it is still held, and is to be tried again.
    """


@runtime_checkable
class Queue(Protocol):
    """Carries messages, each leased to one worker at a time, at least once.

    All methods block, may be called from any thread, and raise UnavailableError when the vendor is
    out of reach and BackendError when it refuses. A lease is measured by the vendor's clock where
    it has one. Stale deliveries, whose lease ran out, never harm the present holder.
    """

    @property
    def limits(self) -> QueueLimits: ...

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        """Send all; they can be received after `delay_s`. Raises SendError naming those not sent."""
        ...

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        """Take up to `max_messages`; return as soon as there is one, or none after `wait_s`."""
        ...

    def wake(self) -> None:
        """Have a `receive` of this object that waits return soon, with nothing. Where that can't be, it waits on."""
        ...

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        """Hold for another `lease_s` from now. The old tokens are void for those extended."""
        ...

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        """Remove those that are still held; the others are left alone, silently."""
        ...

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        """Give back those that are still held, to be received by anyone after `delay_s`."""
        ...

    def depth(self) -> Depth: ...

    def lane(self, name: str) -> Queue:
        """Another physical queue beside this one, with the same limits; made when it isn't there.

        The same name (letters and digits) is the same queue, for every process; each object needs its
        own `close`. A lane has no lanes.
        """
        ...

    def remove(self) -> bool:
        """Take this lane away if nothing is in it; False: there is something, or may be. What is sent to a lane
        that was removed makes it again; who has it open receives nothing meanwhile."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class KeepsDead(Protocol):
    """A queue whose vendor takes out by itself what was received too often, and keeps it (optional)."""

    def dead(self) -> Iterator[DeadMessage]:
        """What it has taken out of this queue and its lanes, oldest first; it stays where it is."""
        ...


class Standing(NamedTuple):
    """How the messages of a bag stand with a vendor who runs them."""

    text: str
    """For people: what they do just now."""
    troubles: tuple[str, ...]
    """Why some of them will not be run, each with what to do about it."""


@runtime_checkable
class HandsOut(Protocol):
    """A queue whose vendor hands each message to a process that it starts, as a batch system does (optional).

    That process may reach neither the table nor the queue: what it has to say comes back to this side. All methods
    raise BackendError.
    """

    def attach(self, table: Table, url: str | None) -> None:
        """The table that goes with the queue, and from where it was opened. Called once, before all else."""
        ...

    def check(self, spec: Spec) -> None:
        """Raises UsageError for a bag that can't be run this way."""
        ...

    def flush(self) -> int:
        """All that was sent is with the vendor when this returns; of those sent with `check`, how many tasks were
        left out since the last flush, because the vendor had them already."""
        ...

    def collect(self) -> int:
        """Record what has come back, and send what is to be tried again; how many rows. Any process may, at any
        time, and may be killed at any time."""
        ...

    def cancelled(self, bag: Bag) -> None:
        """Take the bag's messages away from the vendor."""
        ...

    def standing(self, bag: Bag) -> Standing: ...

    @property
    def collects(self) -> bool:
        """Does the vendor run somebody who collects, too?"""
        ...


def encoded(messages: Sequence[Message], most_bytes: int) -> tuple[list[bytes], list[tuple[Message, str]]]:
    """The bodies of those that are not too large, and the others, each with what to say of it in a SendError."""
    bodies: list[bytes] = []
    unsent: list[tuple[Message, str]] = []
    for message in messages:
        body = message.encode()
        if len(body) <= most_bytes:
            bodies.append(body)
        else:
            unsent.append((message, f"{len(body)} bytes are more than {most_bytes}"))
    return bodies, unsent


def send_all(queue: Queue, messages: Sequence[Message], *, delay_s: float = 0, tries: int = 5) -> None:
    """Send, and send again those that a batch left out; raises SendError after so many tries."""
    pause_s = 0.05
    for left in reversed(range(tries)):
        try:
            return queue.send(messages, delay_s=delay_s)
        except SendError as error:
            if not left:
                raise
            messages = [message for message, _ in error.unsent]
        time.sleep(pause_s)
        pause_s *= 4

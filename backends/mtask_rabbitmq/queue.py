"""A queue at a RabbitMQ broker. What lies there is in `mtask_rabbitmq.names`, what a lease is in `mtask_rabbitmq.leases`."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from pika import BasicProperties

from mtask.errors import BackendError, UnavailableError
from mtask.model import DeadMessage, Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits
from mtask_rabbitmq import names
from mtask_rabbitmq.address import CONSUMER_TIMEOUT_S, parse
from mtask_rabbitmq.broker import CALL_S, Broker
from mtask_rabbitmq.dead import dead_messages
from mtask_rabbitmq.errors import MissingError, timeout_of
from mtask_rabbitmq.leases import Lease, Token, by_owner, lease_of
from mtask_rabbitmq.link import Line
from mtask_rabbitmq.outgoing import BATCH, MESSAGE_BYTES, Outgoing
from mtask_rabbitmq.sender import DELIVERED
from mtask_rabbitmq.topology import make_lane, no_queue

__all__ = ["RabbitQueue"]

LIMITS = QueueLimits(
    message_bytes=MESSAGE_BYTES,
    send_batch=BATCH,
    receive_batch=BATCH,
    lease_s=86_400.0,
    hold_s=CONSUMER_TIMEOUT_S,
    delay_s=names.DELAY_S,
    wait_s=20.0,
)
LATE_S = 10.0
"""Of the lease of what nobody asked for any more."""
EXTEND_S = 10.0
"""An answer that takes longer is none: leases are extended often enough to try again."""


class RabbitQueue:
    """One lane of a queue.

    What it has delivered is held on a channel of its own. When the connection is lost, or the broker closes the
    channel, all of it is somebody else's, and the tokens are void.
    """

    def __init__(
        self, broker: Broker, lane: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes over one use of the broker. The clock measures leases."""
        self.broker, self.address = broker, broker.address
        self.name = names.physical(self.address.name, lane)
        self._lane, self._clock = lane, clock
        self._outgoing = Outgoing(broker, lane)
        self._closed = threading.Event()
        self._line: Line | None = None
        self._opening: asyncio.Lock | None = None
        self._woken: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def limits(self) -> QueueLimits:
        """Of all lanes, as far as is known by now."""
        # The engine looks at a lease after a third of it; in time for what is to be handed on.
        hold_s = self.broker.hold_s
        return msgspec.structs.replace(LIMITS, hold_s=hold_s, lease_s=min(LIMITS.lease_s, hold_s / 3))

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.monotonic) -> RabbitQueue:
        """The queue at `url`. Raises UsageError for a URL that can't be used, UnusableError where there is no such queue
        or no right to it, UnavailableError without a broker."""
        address = parse(url)
        address.credentials(), address.tls()
        broker = Broker(address)
        try:
            if broker.call(broker.number(address.name)) is None:
                raise no_queue(address)
        except BaseException:
            broker.close()
            raise
        return cls(broker, clock=clock)

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        self._check_open()
        self._outgoing.send(messages, delay_s)

    # -- receiving ----------------------------------------------------------------------------------

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        self._check_open()
        deadline_s = time.monotonic() + wait_s
        most = min(max_messages, self.limits.receive_batch)
        wait_s = min(wait_s, self.limits.wait_s)
        try:
            return self.broker.call(self._receive(most, lease_s, wait_s), timeout_s=CALL_S + wait_s)
        except MissingError:
            if not self._lane:
                raise no_queue(self.address) from None
        self._closed.wait(max(0.0, deadline_s - time.monotonic()))  # it was removed: there is nothing in it
        return []

    async def _receive(self, most: int, lease_s: float, wait_s: float) -> list[Delivery]:
        line, deadline_s = await self._ready_line(), asyncio.get_running_loop().time() + wait_s
        taken: list[Delivery] = []
        something = asyncio.Event()

        def take(tag: int, properties: BasicProperties, body: bytes) -> None:
            taken.append(self._lease(line, tag, properties, body, lease_s))
            something.set()

        if wait_s <= 0:
            while len(taken) < most and (got := await line.get(self.name)) is not None:
                take(*got)
            return taken
        self._woken.add(something)
        try:
            # Never more than asked for is on its way: what comes is returned.
            consumer = await line.consume(self.name, most, take, something.set)
            try:
                async with asyncio.timeout_at(deadline_s):
                    await something.wait()
            except TimeoutError:
                pass
            finally:
                await line.cancel(consumer)
        finally:
            self._woken.discard(something)
        if not line.is_open and not self._closed.is_set():
            raise line.error(f"consuming {self.name}")  # what came is somebody else's by now
        return taken

    def _lease(
        self, line: Line, tag: int, properties: BasicProperties, body: bytes, lease_s: float
    ) -> Delivery:
        headers: dict[str, Any] = properties.headers or {}
        deliveries = 1 + _count(headers, DELIVERED) + _count(headers, "x-delivery-count")
        lease = Lease(self, line, tag, body, deliveries, self._clock() + lease_s)
        line.leases[tag] = lease
        self._watch()
        return Delivery(body=body, token=Token(lease, 0), deliveries=deliveries)

    def wake(self) -> None:
        self.broker.soon(self._wake_all)

    def _wake_all(self) -> None:
        for event in self._woken:
            event.set()

    async def _ready_line(self) -> Line:
        """The channel, made anew if it was closed."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._line is None or not self._line.is_open:
                line = self._line = await self.broker.line()
                line.on_close = lambda: self._learn(line)
                line.on_late = functools.partial(self._late, line)
            return self._line

    def _late(self, line: Line, tag: int, properties: BasicProperties, body: bytes) -> None:
        """A broker may deliver after it has said that a consumer is cancelled: nobody asked for this any more."""
        delivery = self._lease(line, tag, properties, body, LATE_S)
        task = asyncio.ensure_future(self._give_back(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_back(self, delivery: Delivery) -> None:
        with suppress(BackendError):  # then the broker gets it when its lease is over
            await self._release([delivery], 0)

    def _learn(self, line: Line) -> None:
        """The broker says its timeout when it closes a channel for it."""
        timeout_s = timeout_of(line.why)
        if timeout_s is not None:
            self.broker.hold_s = min(self.broker.hold_s, timeout_s)

    # -- leases -------------------------------------------------------------------------------------

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        self._check_open()
        result = Extension([], [])
        fault: UnavailableError | None = None
        for owner, group in by_owner(deliveries):
            if owner._closed.is_set():
                result.lost.extend(group)
                continue
            try:
                found = owner.broker.call(owner._extend(group, lease_s), timeout_s=EXTEND_S)
            except UnavailableError as error:
                fault = error
            else:
                result.extended.extend(found.extended)
                result.lost.extend(found.lost)
        if fault is not None and not result.extended and not result.lost:
            raise fault
        return result

    async def _extend(self, deliveries: Sequence[Delivery], lease_s: float) -> Extension:
        asked_s = self._clock()
        await self._sync(self._held(deliveries))
        held = {id(delivery) for delivery in self._held(deliveries)}
        lost = [delivery for delivery in deliveries if id(delivery) not in held]
        if any(not lease_of(delivery).line.link.is_open for delivery in lost):
            # Certainly lost, but that matters only when there is a broker again that gives them to others.
            await self.broker.link("receives")
        extended = []
        for delivery in deliveries:
            if id(delivery) in held:
                token = lease_of(delivery).extend(asked_s + lease_s)
                extended.append((delivery, msgspec.structs.replace(delivery, token=token)))
        self._watch()
        return Extension(extended, lost)

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        for owner, group in by_owner(deliveries):
            if not owner._closed.is_set():
                owner.broker.call(owner._delete(group))

    async def _delete(self, deliveries: Sequence[Delivery]) -> None:
        held = self._held(deliveries)
        for delivery in held:
            lease_of(delivery).end()
        await self._sync(held)

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        self._check_open()
        for owner, group in by_owner(deliveries):
            if not owner._closed.is_set():
                owner.broker.call(owner._release(group, delay_s))

    async def _release(self, deliveries: Sequence[Delivery], delay_s: float) -> None:
        """What is given back to the broker counts as one more delivery; a copy of it doesn't. First the copy."""
        held = self._held(deliveries)
        leases = [lease_of(delivery) for delivery in held]
        for lease in leases:
            lease.settling = True
        left = leases
        try:
            for start in range(0, len(leases), BATCH):
                batch = leases[start : start + BATCH]
                answers = await self._outgoing.post(
                    [(each.body, each.deliveries - 1) for each in batch], delay_s
                )
                left = [lease for lease, why in zip(batch, answers, strict=True) if why]
                for lease, why in zip(batch, answers, strict=True):
                    if not why:
                        lease.end()
                if left:
                    raise UnavailableError(
                        f"{self._shown}: {len(left)} messages were not given back: {max(answers)}"
                    )
        finally:
            for lease in leases:
                lease.settling = False
            self._watch()
        await self._sync(held)

    def _held(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those whose tokens hold, each once."""
        now_s, held = self._clock(), {}
        for delivery in deliveries:
            lease, serial = delivery.token
            if lease.holds(serial, now_s):
                held[id(lease)] = delivery
        return list(held.values())

    async def _sync(self, deliveries: Sequence[Delivery]) -> None:
        """What was settled is settled; leases whose channel has ended are over. Raises UnavailableError if the broker doesn't
        answer."""
        for line in {lease_of(delivery).line for delivery in deliveries}:
            try:
                await line.sync()
            except BackendError:
                if line.is_open:
                    raise

    def _watch(self) -> None:
        """Have leases ended when their time is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        leases = self._line.leases.values() if self._line is not None else ()
        # One that is being given back is looked at when that has been done, or has failed.
        untils = [lease.until_s for lease in leases if not lease.settling]
        if untils:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, min(untils) - self._clock()), self._end_leases)

    def _end_leases(self) -> None:
        now_s = self._clock()
        for lease in list(self._line.leases.values()) if self._line is not None else ():
            if now_s >= lease.until_s and not lease.settling:
                lease.ended = True
                lease.line.give_back(lease.tag)
        self._watch()

    # -- the queue itself ---------------------------------------------------------------------------

    def depth(self) -> Depth:
        """A broker says who holds something, not how much; and what is delayed of all lanes together."""
        self._check_open()
        found = self.broker.call(self.broker.number(self.name))
        if found is None:
            if not self._lane:
                raise no_queue(self.address)
            return Depth(0, 0, 0)
        ready, holders = found
        delayed = self.broker.call(self._delayed())
        return Depth(ready, None if holders else 0, None if delayed else 0)

    async def _delayed(self) -> int:
        """Of the queue and all of its lanes."""
        number = 0
        async with self.broker.scratch() as line:
            for level in range(names.LEVELS):
                queue = names.delay(self.address.name, level)
                try:
                    number += (
                        await line.ask("queue_declare", f"looking at {queue}", queue=queue, passive=True)
                    ).message_count
                except MissingError:
                    break
        return number

    def dead(self) -> Iterator[DeadMessage]:
        """What the broker has taken out of the queue and its lanes, because it was delivered too often; it stays there."""
        self._check_open()
        return iter(self.broker.call(dead_messages(self.broker, self.address)))

    def lane(self, name: str) -> RabbitQueue:
        self._check_open()
        self.broker.call(make_lane(self.broker, self.address.name, name))
        return type(self)(self.broker.share(), name, clock=self._clock)

    def remove(self) -> bool:
        """Only if nobody receives from it, or holds anything of it, and nothing of any lane is delayed. RabbitMQ can't remove
        a quorum queue on the condition that it is empty."""
        if not self._lane or self.depth() != (0, 0, 0):
            return False
        return self.broker.call(self._remove())

    async def _remove(self) -> bool:
        async with self.broker.scratch() as line:
            await line.ask("queue_delete", f"removing {self.name}", queue=self.name)
        return True

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            with suppress(BackendError):  # the connection is gone, and with it the channel
                self.broker.call(self._end(), timeout_s=5)
            self.broker.close()

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_all()
        if self._line is not None:
            self._line.close()

    @property
    def _shown(self) -> str:
        """For people."""
        return self.address.shown(self.name)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise BackendError(f"the queue {self._shown} is closed")


def _count(headers: dict[str, Any], name: str) -> int:
    """Anybody may have sent the message."""
    value = headers.get(name, 0)
    return max(0, int(value)) if isinstance(value, int) else 0

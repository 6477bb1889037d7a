"""A queue in the memory of this process, for whoever sends to a worker beside it.

Nothing of it outlives the process: so it is for what the process itself waits for (`mtask.Executor`).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mtask.errors import SendError
from mtask.model import Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits, encoded

__all__ = ["MemoryQueue"]

LIMITS = QueueLimits(message_bytes=16 * 1024 * 1024, send_batch=1000, receive_batch=1000)


class _Token(NamedTuple):
    number: int
    """Which message."""
    lease: int
    """Another number for each lease."""


class _Entry:
    """A message that was not deleted."""

    __slots__ = ("body", "deliveries", "lease", "visible_s")

    def __init__(self, body: bytes, visible_s: float) -> None:
        self.body, self.visible_s = body, visible_s
        self.lease, self.deliveries = 0, 0
        """Lease 0: nobody received it, or its holder gave it back."""


class MemoryQueue:
    """One lane of it, and its other lanes.

    A lease lasts until its time has come *and* somebody else has received the message.
    """

    limits = LIMITS

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._ready: deque[int] = deque()
        """Those that may be received: some are gone by now, or held again."""
        self._due_s = math.inf
        """Before, no other message can be received."""
        self._numbers, self._leases = itertools.count(), itertools.count(1)
        self._changed, self._wakes = threading.Condition(), 0
        self._lanes: dict[str, MemoryQueue] = {}

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        bodies, unsent = encoded(messages, LIMITS.message_bytes)
        with self._changed:
            visible_s = self._clock() + delay_s
            for body, number in zip(bodies, self._numbers, strict=False):
                self._entries[number] = _Entry(body, visible_s)
                self._put(number, visible_s, ready=not delay_s)
            self._changed.notify_all()
        if unsent:
            raise SendError(unsent)

    def lend(self, message: Message, *, lease_s: float) -> Delivery:
        """Send one that fits, and receive it at once, before anybody else can."""
        entry = _Entry(message.encode(), 0.0)
        entry.deliveries = 1
        with self._changed:
            number = next(self._numbers)
            self._entries[number] = entry
            return Delivery(body=entry.body, token=self._lend(number, entry, lease_s), deliveries=1)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        most, until_s = min(max_messages, LIMITS.receive_batch), time.monotonic() + wait_s
        with self._changed:
            wakes = self._wakes
            while True:
                if deliveries := self._take(most, lease_s):
                    return deliveries
                left_s = until_s - time.monotonic()
                if left_s <= 0 or self._wakes != wakes:
                    return []
                self._changed.wait(min(left_s, max(0.0, self._due_s - self._clock())))

    def wake(self) -> None:
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        result = Extension([], [])
        with self._changed:
            for delivery in deliveries:
                if (entry := self._held(delivery)) is None:
                    result.lost.append(delivery)
                    continue
                token = self._lend(delivery.token.number, entry, lease_s)
                extended = Delivery(body=delivery.body, token=token, deliveries=delivery.deliveries)
                result.extended.append((delivery, extended))
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            for delivery in deliveries:
                if self._held(delivery) is not None:
                    del self._entries[delivery.token.number]

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        with self._changed:
            for delivery in deliveries:
                if (entry := self._held(delivery)) is not None:
                    entry.lease, entry.visible_s = 0, self._clock() + delay_s
                    entry.deliveries -= 1
                    self._put(delivery.token.number, entry.visible_s, ready=not delay_s)
            self._changed.notify_all()

    def depth(self) -> Depth:
        with self._changed:
            now_s = self._clock()
            away = [bool(entry.lease) for entry in self._entries.values() if entry.visible_s > now_s]
            return Depth(len(self._entries) - len(away), sum(away), len(away) - sum(away))

    def lane(self, name: str) -> MemoryQueue:
        with self._changed:
            if name not in self._lanes:
                self._lanes[name] = MemoryQueue(clock=self._clock)
            return self._lanes[name]

    def remove(self) -> bool:
        return not self._entries  # without messages it takes no place

    def close(self) -> None:
        """It goes when nobody has it any more."""

    # -- with the lock ------------------------------------------------------------------------------

    def _put(self, number: int, visible_s: float, *, ready: bool) -> None:
        if ready:
            self._ready.append(number)
        else:
            self._due_s = min(self._due_s, visible_s)

    def _take(self, most: int, lease_s: float) -> list[Delivery]:
        now_s = self._clock()
        if now_s >= self._due_s:
            self._look(now_s)
        taken: list[Delivery] = []
        while self._ready and len(taken) < most:
            number = self._ready.popleft()
            entry = self._entries.get(number)
            if entry is None or entry.visible_s > now_s:  # its holder was late to extend it
                continue
            entry.deliveries += 1
            token = self._lend(number, entry, lease_s)
            taken.append(Delivery(body=entry.body, token=token, deliveries=entry.deliveries))
        return taken

    def _look(self, now_s: float) -> None:
        """For what has become ready: a delay or a lease is over."""
        ready, entries = set(self._ready), self._entries.items()
        self._ready.extend(n for n, entry in entries if entry.visible_s <= now_s and n not in ready)
        away = (entry.visible_s for _, entry in entries if entry.visible_s > now_s)
        self._due_s = min(away, default=math.inf)

    def _lend(self, number: int, entry: _Entry, lease_s: float) -> _Token:
        entry.lease, entry.visible_s = next(self._leases), self._clock() + lease_s
        self._due_s = min(self._due_s, entry.visible_s)
        return _Token(number, entry.lease)

    def _held(self, delivery: Delivery) -> _Entry | None:
        """None: somebody else has it, or nobody."""
        token: _Token = delivery.token
        entry = self._entries.get(token.number)
        return entry if entry is not None and entry.lease == token.lease else None

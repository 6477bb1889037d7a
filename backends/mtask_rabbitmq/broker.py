"""The connections to a broker that a queue and its lanes share: one to send with, one to receive with.

A broker that is short of memory or disk stops reading from connections that publish; those that only receive and
acknowledge go on, and so does what runs. A connection that is lost is made again by the next call that needs one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from mtask.errors import BackendError, UnavailableError, UsageError
from mtask_rabbitmq.address import Address
from mtask_rabbitmq.errors import MissingError
from mtask_rabbitmq.link import Entry, Line, Link
from mtask_rabbitmq.loop import Loop
from mtask_rabbitmq.sender import Letter, Sender

__all__ = ["CALL_S", "Broker"]

T = TypeVar("T")

CALL_S = 60.0
"""More than a connection and a batch of messages may take."""


class Broker:
    """What several queues of this process use at once; each has one use of it. Coroutines run in its loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._loop = Loop(f"mtask {address.server}")
        self._links: dict[str, Link] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._sender: Sender | None = None
        self._entry: Entry | None = None
        self.levels = 0
        """So many delay queues are known to be there."""
        self.hold_s = address.consumer_timeout_s
        """How long a delivery can be held: as the URL says, or less, when the broker has said so."""
        self._lock = threading.Lock()
        self._users = 1

    # -- from any thread ----------------------------------------------------------------------------

    def call(self, work: Coroutine[Any, Any, T], *, timeout_s: float = CALL_S) -> T:
        """Run it in the loop, wait, and return its result. Raises UnavailableError when that takes too long."""
        try:
            return self._loop.call(work, timeout_s=timeout_s)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            why = str(error) or f"no answer within {timeout_s:g} s"
            raise UnavailableError(f"the RabbitMQ broker at {self.address.server}: {why}") from None

    def soon(self, work: Any, *args: Any) -> None:
        self._loop.soon(work, *args)

    def share(self) -> Broker:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connections."""
        with self._lock:
            self._users -= 1
            if self._users != 0:
                return
        with suppress(BackendError):  # what isn't closed in time ends with the thread
            self.call(self._end(), timeout_s=5)
        self._loop.stop()

    # -- in the loop --------------------------------------------------------------------------------

    async def link(self, purpose: str) -> Link:
        """The connection for this purpose, made if need be."""
        async with self._opening.setdefault(purpose, asyncio.Lock()):
            link = self._links.get(purpose)
            if link is None or not link.is_open:
                link = self._links[purpose] = await Link.open(self.address, self._entered(), purpose)
            return link

    def _entered(self) -> Entry:
        """As it is now; or as it was, while its files can't be read. Raises UsageError the first time."""
        try:
            self._entry = Entry(self.address.credentials(), self.address.tls())
        except UsageError:
            if self._entry is None:
                raise
        return self._entry

    async def line(self) -> Line:
        """A channel to receive with."""
        return await (await self.link("receives")).line()

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Line]:
        """A channel for requests after which it may be closed: those for what isn't there."""
        line = await (await self.link("sends")).line()
        try:
            yield line
        finally:
            line.close()

    async def send(self, letters: Sequence[Letter]) -> list[str]:
        """As Sender.send; tries again on a new channel if the last one had been closed before."""
        sender = self._sender
        if sender is None or not sender.line.is_open:
            sender = await self._open_sender()
        return await sender.send(letters)

    async def _open_sender(self) -> Sender:
        link = await self.link("sends")
        async with self._opening.setdefault("sender", asyncio.Lock()):
            if self._sender is None or not self._sender.line.is_open:
                self._sender = Sender(await link.line(confirms=True))
            return self._sender

    async def number(self, queue: str) -> tuple[int, int] | None:
        """Messages that are ready, and those who consume or hold some; None: there is no such queue."""
        try:
            async with self.scratch() as line:
                found = await line.ask("queue_declare", f"looking at {queue}", queue=queue, passive=True)
        except MissingError:
            return None
        return found.message_count, found.consumer_count

    async def _end(self) -> None:
        await asyncio.gather(*(link.end() for link in self._links.values()))

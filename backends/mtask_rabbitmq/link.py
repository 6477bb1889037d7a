"""Connections and channels of pika as coroutines.

pika's asyncio adapter calls back; here each request is awaited, and fails when its channel ends. All of this belongs to
the thread of one loop (`mtask_rabbitmq.loop`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import pika
from pika import spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import StreamLostError

from mtask.errors import UnusableError
from mtask_rabbitmq.address import Address, Credentials
from mtask_rabbitmq.errors import channel_error, connection_error
from mtask_rabbitmq.leases import Lease

__all__ = ["OLDEST", "Entry", "Line", "Link", "version_of"]

OLDEST = (3, 10)
"""The first whose quorum queues have a time to live, and pass on what is over without losing it."""
CONNECT_S = 10.0
CLOSE_S = 2.0

# Whoever wants pika's messages sets up logging; Python's last resort would print them to standard error.
logging.getLogger("pika").addHandler(logging.NullHandler())


class _Channel(Channel):  # type: ignore[misc]
    """pika gives back what comes between the cancelling of a consumer and the broker's answer, and the broker
    counts that as a delivery. Here it is kept: whoever cancelled waits for it."""

    on_delivery: Callable[[str, int, spec.BasicProperties, bytes], None] | None = None

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        if self.on_delivery is not None:
            method = method_frame.method
            self.on_delivery(method.consumer_tag, method.delivery_tag, header_frame.properties, body)


class _Connection(AsyncioConnection):  # type: ignore[misc]
    def _create_channel(self, channel_number: int, on_open_callback: Any) -> Channel:
        return _Channel(self, channel_number, on_open_callback)

    def abort(self) -> None:
        """pika would wait for the broker's answer to its farewell."""
        self._terminate_stream(StreamLostError("it was given up"))


class Entry(NamedTuple):
    """What a broker wants to see of who connects."""

    credentials: Credentials
    tls: ssl.SSLContext | None


class Link:
    """An open connection."""

    def __init__(self, address: Address, connection: _Connection) -> None:
        self.address, self._connection = address, connection
        self.closed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.blocked = ""
        """Why the broker takes no messages just now."""
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_blocked())

    @classmethod
    async def open(cls, address: Address, entry: Entry, purpose: str) -> Link:
        """`purpose`: for those who list the broker's connections.

        Raises UnusableError or UnavailableError; a broker that is too old is unusable.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        ended: list[BaseException] = []
        links: list[Link] = []

        def on_close(_: Any, reason: BaseException) -> None:
            ended.append(reason)
            for link in links:
                link._on_closed(reason)

        def on_error(_: Any, error: BaseException) -> None:
            if not opened.done():
                opened.set_exception(error)

        credentials = entry.credentials
        connection = _Connection(
            _parameters(address, entry, purpose),
            on_open_callback=lambda found: _answer(opened, found),
            on_open_error_callback=on_error,
            on_close_callback=on_close,
            custom_ioloop=loop,
        )
        try:
            await asyncio.wait_for(opened, 2 * CONNECT_S)
        except asyncio.CancelledError:
            _end(connection)
            raise
        except Exception as error:
            _end(connection)
            raise connection_error(address, credentials, error) from None
        link = cls(address, connection)
        links.append(link)
        if ended:
            raise connection_error(address, credentials, ended[0])
        try:
            link._check()
        except UnusableError:
            await link.end()
            raise
        return link

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_open) and not self.closed.done()

    @property
    def server(self) -> dict[str, Any]:
        """What the broker says of itself."""
        return dict(self._connection.server_properties or {})

    async def line(self, *, confirms: bool = False) -> Line:
        """A new channel, with publisher confirms or without."""
        line = Line(self)
        if not self.is_open:
            raise line.error("opening a channel", ConnectionError("the connection is closed"))
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel = self._connection.channel(on_open_callback=lambda found: _answer(opened, found))
        line.attach(channel)
        await line.wait(opened, "opening a channel")
        if confirms:
            await line.ask("confirm_delivery", "confirms", ack_nack_callback=line.on_confirmed)
        return line

    async def end(self) -> None:
        """Take leave of the broker, if it answers in time."""
        if not self.closed.done():
            _end(self._connection)
            await asyncio.wait([self.closed], timeout=CLOSE_S)
        if not self.closed.done():
            self.abort()
            await asyncio.wait([self.closed], timeout=CLOSE_S)

    def abort(self) -> None:
        """Without waiting for an answer; what wasn't sent yet is dropped."""
        if not self.closed.done():
            self._connection.abort()

    def _check(self) -> None:
        version = version_of(self.server)
        if version and version < OLDEST:
            shown, oldest = self.server.get("version"), ".".join(map(str, OLDEST))
            raise UnusableError(
                f"the RabbitMQ broker at {self.address.server} has the version {shown}; mtask needs {oldest} or newer, "
                "whose quorum queues can delay messages and pass them on without losing any"
            )

    def _on_blocked(self, _: Any = None, frame: Any = None) -> None:
        self.blocked = "" if frame is None else f"{frame.method.reason}"

    def _on_closed(self, reason: BaseException) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)


class Line:
    """A channel, and what was delivered on it and not settled yet."""

    _tags = itertools.count(1)

    def __init__(self, link: Link) -> None:
        self.link = link
        self.leases: dict[int, Lease] = {}
        """By delivery tag."""
        self.why: BaseException | None = None
        """Why it was closed."""
        self.on_close: Callable[[], None] = lambda: None
        self.on_confirm: Callable[[int, bool, bool], None] = _nothing
        self.on_return: Callable[[str, str], None] = _nothing
        self.on_late: Callable[[int, spec.BasicProperties, bytes], None] = _nothing
        """Is called with what comes when its consumer is gone."""
        self._channel: Any = None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._takers: dict[str, Callable[[int, spec.BasicProperties, bytes], None]] = {}
        self._on_gone: dict[str, Callable[[], None]] = {}
        self._got: asyncio.Future[Any] | None = None
        self._getting = asyncio.Lock()
        self._answered = asyncio.Event()
        """Is no `get` under way?"""
        self._answered.set()
        self._most = 1

    def attach(self, channel: Any) -> None:
        self._channel = channel
        channel.on_delivery = self._deliver
        channel.add_on_close_callback(lambda _, reason: self._closed(reason))
        channel.add_on_cancel_callback(self._cancelled)
        channel.add_on_return_callback(self._returned)
        channel.add_callback(lambda _: self._answer_get(None), [spec.Basic.GetEmpty], one_shot=False)

    @property
    def is_open(self) -> bool:
        return self.why is None and self._channel is not None and self.link.is_open

    def error(self, action: str, reason: BaseException | None = None) -> Exception:
        return channel_error(self.link.address, action, reason or self.why or ConnectionError("it is closed"))

    async def wait(self, answer: asyncio.Future[Any], action: str) -> Any:
        """The answer; raises when the channel ends before that."""
        if self.why is not None:
            raise self.error(action)
        self._waiting.add(answer)
        try:
            return await answer
        except _EndedError:
            raise self.error(action) from None
        finally:
            self._waiting.discard(answer)

    def request(self, method: str, action: str, **options: Any) -> Coroutine[Any, Any, Any]:
        """Call a method of pika's channel at once; await what this returns for the broker's answer. `action`: for
        errors. Answers come in the order of the requests."""
        if not self.is_open:
            raise self.error(action)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        getattr(self._channel, method)(callback=lambda frame: _answer(answer, frame.method), **options)
        return self.wait(answer, action)

    async def ask(self, method: str, action: str, **options: Any) -> Any:
        return await self.request(method, action, **options)

    async def get(self, queue: str) -> tuple[int, spec.BasicProperties, bytes] | None:
        """The next message; None if there is none."""
        async with self._getting:
            # pika knows one at a time, and an answer that was given up may still come.
            await self._answered.wait()
            if not self.is_open:
                raise self.error(f"reading {queue}")
            self._got = asyncio.get_running_loop().create_future()
            self._channel.basic_get(queue, lambda _, m, p, b: self._answer_get((m.delivery_tag, p, b)))
            self._answered.clear()
            return await self.wait(self._got, f"reading {queue}")  # type: ignore[no-any-return]

    async def consume(
        self,
        queue: str,
        most: int,
        take: Callable[[int, spec.BasicProperties, bytes], None],
        gone: Callable[[], None],
    ) -> str:
        """Have up to `most` messages delivered to `take`, until `cancel` of the name that this returns. `gone`: is called
        when the queue is deleted."""
        tag = f"mtask-{os.getpid()}-{next(self._tags)}"
        self._takers[tag], self._on_gone[tag] = take, gone
        self._most, action = most, f"consuming {queue}"
        # The limit holds for the consumers that come after it: nothing may come between the two.
        limit = self.request("basic_qos", action, prefetch_count=most)
        begun = self.request(
            "basic_consume", action, queue=queue, on_message_callback=_nothing, consumer_tag=tag
        )
        await asyncio.gather(limit, begun)
        return tag

    async def cancel(self, tag: str) -> None:
        """When it returns, what was delivered is there, but for what is late."""
        try:
            if self.is_open and tag in self._on_gone:
                await self.ask("basic_cancel", "cancelling", consumer_tag=tag)
                # The broker's channel answers before it passes on what the queue had sent it until then.
                await self.sync()
        finally:
            self._takers.pop(tag, None)
            self._on_gone.pop(tag, None)

    def publish(self, exchange: str, key: str, body: bytes, properties: spec.BasicProperties) -> None:
        if not self.is_open:
            raise self.error("publishing")
        self._channel.basic_publish(exchange, key, body, properties, mandatory=True)

    def ack(self, tag: int) -> None:
        self.leases.pop(tag, None)
        if self.is_open:
            self._channel.basic_ack(tag)

    def give_back(self, tag: int) -> None:
        self.leases.pop(tag, None)
        if self.is_open:
            self._channel.basic_nack(tag, requeue=True)

    async def sync(self) -> None:
        """When it returns, the broker has seen all that was sent before, and the channel was open then."""
        await self.ask("basic_qos", "settling", prefetch_count=self._most)  # of all requests the cheapest

    def close(self) -> None:
        if self.is_open and self._channel.is_open:
            self._channel.close()

    def on_confirmed(self, frame: Any) -> None:
        method = frame.method
        self.on_confirm(method.delivery_tag, method.multiple, isinstance(method, spec.Basic.Ack))

    def _deliver(self, consumer: str, tag: int, properties: spec.BasicProperties, body: bytes) -> None:
        taker = self._takers.get(consumer)
        (taker or self.on_late)(tag, properties, body)

    def _answer_get(self, answer: tuple[int, spec.BasicProperties, bytes] | None) -> None:
        self._answered.set()
        if self._got is not None and not self._got.done():
            self._got.set_result(answer)
        elif answer is not None:
            self.give_back(answer[0])

    def _cancelled(self, frame: Any) -> None:
        gone = self._on_gone.pop(frame.method.consumer_tag, None)
        if gone is not None:
            gone()

    def _returned(self, _: Any, method: Any, properties: spec.BasicProperties, __: bytes) -> None:
        self.on_return(properties.message_id or "", method.reply_text)

    def _closed(self, reason: BaseException) -> None:
        self.why = reason
        self._answered.set()
        for lease in self.leases.values():
            lease.ended = True
        self.leases.clear()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(_EndedError())
        for gone in list(self._on_gone.values()):
            gone()
        self.on_close()


class _EndedError(Exception):
    pass


def version_of(properties: dict[str, Any]) -> tuple[int, ...]:
    """Of a broker; empty for one that isn't RabbitMQ, or says nothing."""
    product, version = properties.get("product"), properties.get("version")
    if product != "RabbitMQ" or not isinstance(version, str):
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _parameters(address: Address, entry: Entry, purpose: str) -> pika.ConnectionParameters:
    context, (user, password, _) = entry.tls, entry.credentials
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(user, password),
        heartbeat=address.heartbeat_s,
        socket_timeout=CONNECT_S,
        stack_timeout=1.5 * CONNECT_S,
        ssl_options=pika.SSLOptions(context, address.host) if context else None,
        client_properties={"connection_name": f"mtask {purpose} {socket.gethostname()}:{os.getpid()}"},
    )


def _end(connection: _Connection) -> None:
    if not connection.is_closed and not connection.is_closing:
        connection.close()


def _answer(waiting: asyncio.Future[Any], answer: Any) -> None:
    if not waiting.done():
        waiting.set_result(answer)


def _nothing(*_: Any) -> None:
    pass

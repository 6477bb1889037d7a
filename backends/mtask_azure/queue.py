"""A queue on Azure Storage Queue.

Who holds a message knows its id and its pop receipt, which Azure makes anew with each receipt and each update; nothing
can be done with an old one. Requests and their limits: https://learn.microsoft.com/rest/api/storageservices/.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

import msgspec
from azure.storage.queue import QueueClient, QueueMessage

from mtask.errors import BackendError, SendError, UnusableError
from mtask.meter import Meter
from mtask.model import DeadMessage, Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits
from mtask_azure.address import Address, queue_address
from mtask_azure.bodies import BODY_BYTES, from_text, to_text
from mtask_azure.client import Queues
from mtask_azure.faults import BeingDeletedError, GoneError, NoQueueError
from mtask_azure.names import physical
from mtask_azure.poison import dead_messages, put_aside
from mtask_azure.setup import make_lane
from mtask_azure.waiting import Waiting

__all__ = ["AzureQueue", "Token"]

WEEK_S = 7 * 86400.0
GET = 32
"""Most messages of one request that receives or peeks."""
LIMITS = QueueLimits(
    message_bytes=BODY_BYTES,
    send_batch=1,
    receive_batch=GET,
    lease_s=WEEK_S,
    delay_s=WEEK_S,
    wait_s=20.0,
    counts_releases=True,
)
"""There is no `hold_s`: with a time to live of -1 a message never expires, and each update hides it for another week."""
FOR_EVER = -1
"""Else a message would be gone after 7 days."""
RECEIPTS = 1000
"""What was received more often goes to the poison queue: a last net below mtask's own, as with SQS."""
_LOST = (GoneError, NoQueueError, BeingDeletedError)


class Token(NamedTuple):
    """Of a delivery."""

    message: str
    receipt: str


class AzureQueue:
    """A queue, or a lane of one. Messages may come twice or in another order now and then."""

    limits = LIMITS

    def __init__(self, address: Address, queues: Queues, *, lane: str = "") -> None:
        """Takes over one use of `queues`."""
        self.address, self.name = address, physical(address, lane)
        self.meter = queues.meter
        self._queues, self._lane = queues, lane
        self._queue: QueueClient = queues.queue(self.name)
        self._waiting = Waiting()
        self._closed = threading.Event()

    @classmethod
    def open(cls, url: str) -> AzureQueue:
        """The queue at `url`. Raises UsageError for a URL that can't be used, UnusableError where there is no such
        account or queue, or no right to it."""
        address = queue_address(url)
        queues = Queues(address, Meter())
        queue = cls(address, queues)
        try:
            with queues.errors("read the settings"):
                queue._queue.get_queue_properties()
        except NoQueueError:
            queues.close()
            raise UnusableError(
                f"there is no queue {address.name!r} in the storage account {address.account!r}; make it with `mtask init`, "
                f"or name another account (azureq://ACCOUNT/{address.name})"
            ) from None
        except BaseException:
            queues.close()
            raise
        return queue

    # -- sending ------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        self._check_open()
        fault: list[BackendError] = []
        delay = _whole(delay_s, LIMITS.delay_s)

        def send(message: Message) -> str | None:
            """Why it wasn't sent."""
            body = message.encode()
            if len(body) > LIMITS.message_bytes:
                return f"{len(body)} bytes are more than {LIMITS.message_bytes}"
            if fault:
                return str(fault[0])  # no use in trying all of them
            try:
                self._send(to_text(body), delay)
            except BackendError as error:
                fault.append(error)
                return str(error)
            return None

        reasons = self._queues.each(messages, send)
        unsent = [(message, why) for message, why in zip(messages, reasons, strict=True) if why is not None]
        if len(unsent) < len(messages):
            self._waiting.found()
        elif fault:
            raise fault[0]
        if unsent:
            raise SendError(unsent)

    def send_body(self, body: bytes, *, delay_s: float = 0) -> None:
        """One that need not be a message."""
        self._check_open()
        self._send(to_text(body), _whole(delay_s, LIMITS.delay_s))
        self._waiting.found()

    def _send(self, text: str, delay: int) -> None:
        for again in (True, False):
            try:
                with self._errors("send"):
                    self._queue.send_message(text, visibility_timeout=delay, time_to_live=FOR_EVER)
                return
            except NoQueueError:
                if not self._lane:
                    raise self._no_queue() from None
                if not again:
                    raise
            make_lane(self._queues, self.address, self._lane)

    # -- receiving ----------------------------------------------------------------------------------

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        self._check_open()
        until_s = time.monotonic() + min(wait_s, LIMITS.wait_s)
        # With no time to wait it looks at once, and it looks once in any case.
        while wait_s <= 0 or self._waiting.wait(until_s):
            deliveries, came = self._receive(min(max_messages, GET), lease_s)
            if came:
                self._waiting.found()
            else:
                self._waiting.found_nothing()
            if deliveries or (not came and time.monotonic() >= until_s):
                return deliveries
        return []

    def _receive(self, most: int, lease_s: float) -> tuple[list[Delivery], int]:
        """One request: the deliveries, and how many messages came."""
        lease = max(1, _whole(lease_s, LIMITS.lease_s))
        try:
            with self._errors("receive"):
                pages = self._queue.receive_messages(
                    messages_per_page=most, max_messages=most, visibility_timeout=lease
                )
                messages = list(next(pages.by_page(), ()))
        except (NoQueueError, BeingDeletedError) as error:
            self._main_is_gone(error)
            return [], 0
        deliveries = [self._delivery(each) for each in messages]
        return [each for each in deliveries if each is not None], len(messages)

    def _delivery(self, message: QueueMessage) -> Delivery | None:
        """None: it was received too often."""
        token, text = Token(str(message.id), str(message.pop_receipt)), str(message.content or "")
        count = int(message.dequeue_count or 1)
        if count > RECEIPTS:
            put_aside(self._queues, self.address, text)
            if (fault := self._delete(token)) is not None and not isinstance(fault, _LOST):
                raise fault
            return None
        return Delivery(body=from_text(text), token=token, deliveries=count)

    def wake(self) -> None:
        self._waiting.wake()

    # -- leases -------------------------------------------------------------------------------------

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        self._check_open()
        lease = max(1, _whole(lease_s, LIMITS.lease_s))
        result = Extension([], [])
        fault: BackendError | None = None
        answers = self._queues.each(deliveries, lambda each: self._update(each.token, lease))
        for delivery, answer in zip(deliveries, answers, strict=True):
            if isinstance(answer, Token):
                result.extended.append((delivery, msgspec.structs.replace(delivery, token=answer)))
            elif isinstance(answer, _LOST):
                result.lost.append(delivery)
            else:
                fault = answer
        if fault is not None and not result.extended and not result.lost:
            raise fault
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, self._delete)

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        delay = _whole(delay_s, LIMITS.delay_s)
        self._settle(deliveries, lambda token: self._update(token, delay))

    def _settle(
        self, deliveries: Sequence[Delivery], ask: Callable[[Token], Token | BackendError | None]
    ) -> None:
        """Of those that are still held, all that can be; raises what kept it from the others."""
        self._check_open()
        answers = self._queues.each(deliveries, lambda each: ask(each.token))
        for answer in answers:
            if isinstance(answer, BackendError) and not isinstance(answer, _LOST):
                raise answer

    def _update(self, token: Token, visible_in: int) -> Token | BackendError:
        """The new token, or why there is none."""
        try:
            with self._errors("update"):
                updated = self._queue.update_message(
                    token.message, token.receipt, visibility_timeout=visible_in
                )
        except BackendError as error:
            return error
        return Token(token.message, str(updated.pop_receipt))

    def _delete(self, token: Token) -> BackendError | None:
        try:
            with self._errors("delete"):
                self._queue.delete_message(*token)
        except BackendError as error:
            return error
        return None

    # -- the queue itself ---------------------------------------------------------------------------

    def depth(self) -> Depth:
        """Azure tells how many there are in all, and shows up to 32 of those that can be received: so what is hidden can't
        be told apart, and if there are more, `ready` is all."""
        self._check_open()
        count = self._count()
        if not count:
            return Depth(0, 0, 0)
        with self._errors("peek"):
            visible = len(self._queue.peek_messages(max_messages=GET))
        return Depth(visible if visible < GET else max(count, visible), None, None)

    def _count(self) -> int:
        """Never fewer than there are (REST API, Get Queue Metadata)."""
        try:
            with self._errors("read the settings"):
                return int(self._queue.get_queue_properties().approximate_message_count or 0)
        except (NoQueueError, BeingDeletedError) as error:
            self._main_is_gone(error)
            return 0

    def dead(self) -> Iterator[DeadMessage]:
        """What is in the poison queue, put there by this queue or by Azure Functions; it stays there."""
        self._check_open()
        return dead_messages(self._queues, self.address)

    def lane(self, name: str) -> AzureQueue:
        self._check_open()
        make_lane(self._queues, self.address, name)
        return type(self)(self.address, self._queues.share(), lane=name)

    def remove(self) -> bool:
        if not self._lane or self._count():
            return False
        with suppress(NoQueueError, BeingDeletedError), self._errors("remove"):  # somebody else was quicker
            self._queue.delete_queue()
        return True

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.wake()
            self._queues.close()

    # -- inside -------------------------------------------------------------------------------------

    @property
    def _shown(self) -> str:
        """For people."""
        return self.address._replace(name=self.name).url

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return self._queues.errors(action, self._shown)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise BackendError(f"the queue {self._shown} is closed")

    def _main_is_gone(self, error: NoQueueError | BeingDeletedError) -> None:
        """Raises what that means; of a lane, it means that there is nothing in it."""
        if self._lane:
            return
        if isinstance(error, NoQueueError):
            raise self._no_queue() from None
        raise error

    def _no_queue(self) -> UnusableError:
        return UnusableError(
            f"{self._shown}: the queue was deleted; make it again with `mtask init`, and send what was in it with "
            "`mtask repair BAG`"
        )


def _whole(seconds: float, most_s: float) -> int:
    """Never less than asked for, but for the limit."""
    return max(0, min(math.ceil(seconds), int(most_s)))

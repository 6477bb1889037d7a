"""A queue on SQS.

A message's body is in the form of `mtask_aws.bodies`, and who holds it is in `mtask_aws.tokens`. Requests and
their limits: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from mtask.errors import BackendError, SendError, UnavailableError, UnusableError
from mtask.meter import Meter
from mtask.model import DeadMessage, Delivery, Message
from mtask.packing import fit
from mtask.queue import Depth, Extension, QueueLimits
from mtask_aws.address import Address
from mtask_aws.bodies import from_text, to_text
from mtask_aws.client import Client
from mtask_aws.dead import dead_messages
from mtask_aws.names import address_of, physical
from mtask_aws.requests import BATCH, BATCH_BYTES, NoQueueError, Refusal, Requests, batches, is_gone
from mtask_aws.setup_queue import make_lane
from mtask_aws.tokens import HOLD_S, Lease, lease_of

__all__ = ["SqsQueue"]

LIMITS = QueueLimits(
    message_bytes=BATCH_BYTES,
    send_batch=BATCH,
    receive_batch=5 * BATCH,
    lease_s=HOLD_S,
    hold_s=HOLD_S,
    delay_s=900.0,
    wait_s=20.0,
    counts_releases=True,
)
SETTLED_S = 60.0
"""The numbers of messages are right this long after the last send (API reference of GetQueueAttributes)."""

LEAST_WAIT_S = 0.2
"""What is left of a wait and shorter is worth no request."""

_DEPTH = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)


class SqsQueue:
    """A standard queue, or a lane of one. Messages may come twice or in another order now and then.

    `wake` does nothing: what a request that is broken off had taken would be hidden until its lease is over.
    """

    limits = LIMITS

    def __init__(
        self,
        address: Address,
        requests: Requests,
        url: str,
        *,
        lane: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes over one use of the requests' client; `url` is the one that SQS knows the queue by."""
        self.address, self.name = address, physical(address, lane)
        self.meter = requests.meter
        self._requests, self._url, self._lane, self._clock = requests, url, lane, clock
        self._closed = threading.Event()
        self._empty_since_s: float | None = None

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.monotonic) -> SqsQueue:
        """The queue at `url`; a FIFO queue if it says so.

        Raises UsageError for a URL that can't be used, UnusableError where there is no such queue, or no right to it.
        """
        from mtask_aws.fifo import SqsFifoQueue

        address = address_of(url)
        fifo = "fifo" in address.options
        requests = Requests(Client("sqs", address), Meter(), "sqs fifo requests" if fifo else "sqs requests")
        name = physical(address)
        try:
            found = requests.ask("GetQueueUrl", QueueName=name)["QueueUrl"]
        except NoQueueError:
            requests.client.close()
            raise UnusableError(
                f"there is no queue {name!r} in {address.region}; make it with `mtask init`, or name another region "
                f"(sqs://REGION/{address.name})"
            ) from None
        except BaseException:
            requests.client.close()
            raise
        return (SqsFifoQueue if fifo else cls)(address, requests, found, clock=clock)

    # -- sending ------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        self._check_open()
        by_id, unsent, sent = {}, [], False
        entries = []
        for number, message in enumerate(messages):
            body = message.encode()
            if len(body) > LIMITS.message_bytes:
                unsent.append((message, f"{len(body)} bytes are more than {LIMITS.message_bytes}"))
                continue
            by_id[str(number)] = message
            entries.append(
                {"Id": str(number), "MessageBody": _text_of(message, body)} | self._extra(message, delay_s)
            )
        for batch in batches(entries, _size):
            try:
                refused = self._send_batch(batch)
            except UnavailableError as error:
                # What was sent before must not be sent again; what may have been sent now is called unsent.
                if not sent and len(batch) == len(entries):
                    raise
                refused = {entry["Id"]: Refusal("", str(error), False) for entry in batch}
            sent = sent or len(refused) < len(batch)
            unsent += [(by_id[each], str(refusal).removeprefix(": ")) for each, refusal in refused.items()]
        if unsent:
            raise SendError(unsent)

    def _send_batch(self, batch: list[dict[str, Any]]) -> dict[str, Refusal]:
        self._empty_since_s = None
        try:
            return self._ask_batch("SendMessageBatch", batch, size=_size)
        except NoQueueError:
            if not self._lane:
                raise self._no_queue() from None
        self._url = make_lane(self._requests, self.address, self._lane)
        return self._ask_batch("SendMessageBatch", batch, size=_size)

    def _extra(self, _message: Message, delay_s: float) -> dict[str, Any]:
        """What else belongs to an entry of SendMessageBatch."""
        return {"DelaySeconds": min(math.ceil(delay_s), int(LIMITS.delay_s))}

    # -- receiving ----------------------------------------------------------------------------------

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        self._check_open()
        deadline_s = self._clock() + wait_s
        wanted = min(max_messages, self.limits.receive_batch)
        taken: list[Delivery] = []
        while len(taken) < wanted:
            most = min(BATCH, wanted - len(taken))
            left_s = 0.0 if taken else deadline_s - self._clock()
            try:
                got, came = self._receive_batch(most, lease_s, left_s)
            except NoQueueError:
                if not self._lane:
                    raise self._no_queue() from None
                self._closed.wait(max(0.0, left_s))  # it was removed: there is nothing in it
                break
            except BackendError:
                if taken:
                    break  # these are leased already
                raise
            taken += got
            if (taken and came < most) or (not taken and deadline_s - self._clock() < LEAST_WAIT_S):
                break
        return taken

    def _receive_batch(self, most: int, lease_s: float, wait_s: float) -> tuple[list[Delivery], int]:
        """One request: the deliveries, and how many messages came."""
        asked_s, lease = self._clock(), _whole(lease_s, LIMITS.lease_s)
        answer = self._requests.ask(
            "ReceiveMessage",
            on=self._shown,
            QueueUrl=self._url,
            MaxNumberOfMessages=most,
            VisibilityTimeout=lease,
            # Whole seconds; 0 would look at some of SQS's machines only, and miss what is on the others.
            WaitTimeSeconds=_whole(wait_s, LIMITS.wait_s),
            MessageSystemAttributeNames=list(self._attributes),
        )
        messages = answer.get("Messages", [])
        if messages:
            self._empty_since_s = None
        deliveries = [self._delivery(each, Lease(each["ReceiptHandle"], asked_s, lease)) for each in messages]
        return [each for each in deliveries if each is not None], len(messages)

    def handed(self, body: str, attributes: dict[str, str], handle: str, lease_s: float) -> Delivery | None:
        """A message that somebody else has received, as Lambda has, and may be held for so long; None: it comes again
        later."""
        return self._delivery({"Body": body, "Attributes": attributes}, Lease(handle, self._clock(), lease_s))

    _attributes: tuple[str, ...] = ("ApproximateReceiveCount",)

    def _delivery(self, message: dict[str, Any], lease: Lease) -> Delivery | None:
        """None: it has been put off."""
        count = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
        return Delivery(body=from_text(message["Body"]), token=lease.token(), deliveries=count)

    def wake(self) -> None:
        pass

    # -- leases -------------------------------------------------------------------------------------

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        result = Extension([], [])
        held = self._held(deliveries, result.lost)
        fault: UnavailableError | None = None
        for batch in _tens(held):
            asked_s = self._clock()
            times = {
                each: min(_whole(lease_s, LIMITS.lease_s), lease_of(d).most_s(asked_s))
                for each, d in batch.items()
            }
            try:
                refused = self._change(batch, times)
            except NoQueueError:
                result.lost.extend(batch.values())
                continue
            except UnavailableError as error:
                fault = error
                continue
            for each, delivery in batch.items():
                if each not in refused:
                    token = lease_of(delivery).extended(asked_s + times[each])
                    result.extended.append((delivery, msgspec.structs.replace(delivery, token=token)))
                elif is_gone(refused[each]):
                    lease_of(delivery).end()
                    result.lost.append(delivery)
        if fault is not None and not result.extended and not result.lost:
            raise fault
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        def ask(batch: dict[str, Delivery]) -> dict[str, Refusal]:
            entries = [{"Id": each, "ReceiptHandle": lease_of(d).handle} for each, d in batch.items()]
            return self._ask_batch("DeleteMessageBatch", entries)

        self._settle(deliveries, ask)

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        def change(batch: dict[str, Delivery]) -> dict[str, Refusal]:
            now_s, delay = self._clock(), _whole(delay_s, LIMITS.delay_s)
            return self._change(
                batch, {each: min(delay, lease_of(d).most_s(now_s)) for each, d in batch.items()}
            )

        self._settle(deliveries, change)

    def _settle(
        self, deliveries: Sequence[Delivery], ask: Callable[[dict[str, Delivery]], dict[str, Refusal]]
    ) -> None:
        """Of those that are still held, all that can be; raises what kept it from the others."""
        fault: BackendError | None = None
        for batch in _tens(self._held(deliveries, [])):
            try:
                refused = ask(batch)
            except NoQueueError:
                refused = {}
            except UnavailableError as error:
                fault = error
                continue
            for each, delivery in batch.items():
                if each not in refused or is_gone(refused[each]):
                    lease_of(delivery).end()
            left = [refusal for refusal in refused.values() if not is_gone(refusal)]
            if left:
                kind = BackendError if any(refusal.final for refusal in left) else UnavailableError
                fault = kind(f"{self._shown}: {len(left)} messages were not settled: {left[0]}")
        if fault is not None:
            raise fault

    def _change(self, batch: dict[str, Delivery], times: dict[str, int]) -> dict[str, Refusal]:
        """Have them visible after so many seconds, by id."""
        entries = [
            {"Id": each, "ReceiptHandle": lease_of(delivery).handle, "VisibilityTimeout": times[each]}
            for each, delivery in batch.items()
        ]
        return self._ask_batch("ChangeMessageVisibilityBatch", entries)

    def _held(self, deliveries: Sequence[Delivery], lost: list[Delivery]) -> list[Delivery]:
        """Those whose tokens hold, each once; the others go to `lost`."""
        self._check_open()
        now_s, held = self._clock(), {}
        for delivery in deliveries:
            lease = lease_of(delivery)
            if not lease.holds(delivery.token, now_s):
                lost.append(delivery)
            else:
                held[lease.handle] = delivery
        return list(held.values())

    # -- the queue itself ---------------------------------------------------------------------------

    def depth(self) -> Depth:
        return self._numbers()

    def _numbers(self) -> Depth:
        """What was given back with a delay counts as leased: SQS doesn't tell them apart."""
        self._check_open()
        try:
            answer = self._requests.ask(
                "GetQueueAttributes", on=self._shown, QueueUrl=self._url, AttributeNames=list(_DEPTH)
            )
        except NoQueueError:
            if not self._lane:
                raise self._no_queue() from None
            return Depth(0, 0, 0)
        found = answer.get("Attributes", {})
        return Depth(*(int(found.get(name, 0)) for name in _DEPTH))

    def dead(self) -> Iterator[DeadMessage]:
        """What SQS has taken out of the queue and its lanes, because it was received too often; it stays there."""
        self._check_open()
        return dead_messages(self._requests, self.address)

    def lane(self, name: str) -> SqsQueue:
        self._check_open()
        url = make_lane(self._requests, self.address, name)
        self._requests.client.share()
        return type(self)(self.address, self._requests, url, lane=name, clock=self._clock)

    def remove(self) -> bool:
        """The numbers lag behind: it must have looked empty a minute ago, too, and this object has neither sent
        nor received anything since."""
        if self._numbers() != (0, 0, 0):
            self._empty_since_s = None
            return False
        if self._empty_since_s is None:
            self._empty_since_s = self._clock()
        if not self._lane or self._clock() - self._empty_since_s < SETTLED_S:
            return False
        with suppress(NoQueueError):  # somebody else was quicker
            self._requests.ask("DeleteQueue", on=self._shown, QueueUrl=self._url)
        return True

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._requests.client.close()

    # -- inside -------------------------------------------------------------------------------------

    def _ask_batch(
        self,
        operation: str,
        entries: list[dict[str, Any]],
        *,
        size: Callable[[Any], int] = lambda _: 0,
    ) -> dict[str, Refusal]:
        return self._requests.batch(operation, entries, size=size, on=self._shown, QueueUrl=self._url)

    @property
    def _shown(self) -> str:
        """For people."""
        return f"sqs://{self.address.region}/{self.name}"

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise BackendError(f"the queue {self._shown} is closed")

    def _no_queue(self) -> UnusableError:
        return UnusableError(
            f"{self._shown}: the queue was deleted; make it again with `mtask init`, and send what was in it with "
            "`mtask repair BAG`"
        )


def _size(entry: dict[str, Any]) -> int:
    return len(entry["MessageBody"].encode())


def _text_of(message: Message, body: bytes) -> str:
    """One that is too long only because of characters that SQS refuses goes without its rows."""
    text = to_text(body)
    if len(text) > LIMITS.message_bytes // 4 and len(text.encode()) > LIMITS.message_bytes:
        return to_text(fit(message, 0).encode())
    return text


def _whole(seconds: float, most_s: float) -> int:
    """Never less than asked for, but for the limit."""
    return max(0, min(math.ceil(seconds), int(most_s)))


def _tens(deliveries: Sequence[Delivery]) -> Iterator[dict[str, Delivery]]:
    """By their ids within a batch."""
    for start in range(0, len(deliveries), BATCH):
        yield {str(number): each for number, each in enumerate(deliveries[start : start + BATCH])}

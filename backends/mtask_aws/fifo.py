"""A FIFO queue on SQS.

The messages of a bag are one group: they are received in the order in which they were sent, and while some of
them are held, up to ten that came with one request, no other of the bag is given to anybody. So one worker at a
time works for a bag (for each of its lanes, which are queues of their own), and several bags run side by side.

FIFO queues have no delay for a single message. What is sent with a delay goes into a group of its own, whose name
says how long, so that it holds up no other. Who receives it too early has SQS hide it until its time has
come; that receipt isn't counted. All of this is by SQS's clock.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from typing import Any

import msgspec

from mtask.errors import BackendError
from mtask.model import Delivery, Message
from mtask_aws.queue import LIMITS, SqsQueue
from mtask_aws.requests import BATCH
from mtask_aws.tokens import HOLD_S, Lease

__all__ = ["SqsFifoQueue"]

_LATER = "later"


class SqsFifoQueue(SqsQueue):
    """The same as its base but for what is said above."""

    limits = msgspec.structs.replace(LIMITS, receive_batch=BATCH)  # after one request, the group is held
    _attributes = (
        "ApproximateReceiveCount",
        "ApproximateFirstReceiveTimestamp",
        "SentTimestamp",
        "MessageGroupId",
    )

    def _extra(self, message: Message, delay_s: float) -> dict[str, Any]:
        unique = uuid.uuid4().hex  # the client's own tries again are one message, two calls of `send` are two
        group = message.uid
        if delay_s > 0:
            group = f"{_LATER}.{min(math.ceil(delay_s), int(LIMITS.delay_s))}.{unique}"
        return {"MessageGroupId": _group_id(group), "MessageDeduplicationId": unique}

    def _delivery(self, message: dict[str, Any], lease: Lease) -> Delivery | None:
        delivery = super()._delivery(message, lease)
        assert delivery is not None
        early_s = _early_s(message.get("Attributes", {}))
        if early_s <= 0:
            return delivery
        if delivery.deliveries > 1:
            return msgspec.structs.replace(delivery, deliveries=delivery.deliveries - 1)
        with contextlib.suppress(BackendError):  # it comes again when the lease is over, perhaps too early
            self._put_off(delivery, early_s)
        return None

    def _put_off(self, delivery: Delivery, delay_s: float) -> None:
        until_s = min(math.ceil(delay_s), int(HOLD_S))
        self._change({"0": delivery}, {"0": until_s})
        delivery.token.lease.end()


def _early_s(attributes: dict[str, str]) -> float:
    """How long before its time it was received first; 0: it wasn't."""
    kind, _, rest = attributes.get("MessageGroupId", "").partition(".")
    delay, _, _ = rest.partition(".")
    if kind != _LATER or not delay.isdecimal():
        return 0.0
    sent_s, first_s = (
        int(attributes.get(name, 0)) / 1000 for name in ("SentTimestamp", "ApproximateFirstReceiveTimestamp")
    )
    return max(0.0, sent_s + int(delay) - first_s)


def _group_id(text: str) -> str:
    """As SQS takes it: 1 to 128 letters, digits and punctuation."""
    fits = 0 < len(text) <= 128 and text.isascii() and text.isprintable() and " " not in text
    return text if fits else uuid.uuid5(uuid.NAMESPACE_OID, text).hex

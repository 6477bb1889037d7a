"""Delays, which Pub/Sub doesn't have.

A delayed message says in an attribute how long after its publish time it may begin; Google's clock sets that time. Who pulls it
too early hides it for what is left, at most ten minutes at a time (`ModifyAckDeadline`): so it is looked at once in ten
minutes, by one worker, and nobody spins. Each look counts as a delivery at Pub/Sub. Therefore who pulls it when its time has
come doesn't run it, but publishes it anew without the delay: that copy's deliveries are true. For the same reason a message that was
looked at `LOOKS` times is published anew with the rest of its delay, before it would be a dead letter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from mtask.model import Delivery
from mtask.tokens import Token
from mtask_gcp.names import Envelope
from mtask_gcp.setup_queue import ATTEMPTS

__all__ = ["LOOKS", "Due", "Kind", "Received", "ServerTime", "sort_out"]

LOOKS = ATTEMPTS // 2


class Received(NamedTuple):
    """A message as it was pulled, or pushed."""

    ack_id: str
    body: bytes
    attributes: Mapping[str, str]
    published_at: float
    """UTC, by Google's clock."""
    attempt: int
    """Which delivery this is, from 1; 0: it isn't counted, for want of a dead-letter policy."""

    @classmethod
    def of(cls, pulled: Any) -> Received:
        """A ReceivedMessage."""
        message = pulled.message
        at = message.publish_time.seconds + message.publish_time.nanos / 1e9
        return cls(pulled.ack_id, message.data, message.attributes, at, pulled.delivery_attempt)


class Kind(Enum):
    """What is to be done with it."""

    READY = auto()
    EARLY = auto()
    """It is to be hidden for a while."""
    ANEW = auto()
    """Its envelope is to be published in its place."""


class Due(NamedTuple):
    """A message, and what is to be done with it."""

    kind: Kind
    ack_id: str
    envelope: Envelope
    early_s: float
    deliveries: int

    def delivery(self, token: Token) -> Delivery:
        return Delivery(body=self.envelope.body, token=token, deliveries=self.deliveries)


def sort_out(received: Received, now: float) -> Due:
    """`now`: UTC."""
    envelope = Envelope.of(received.body, received.attributes)
    deliveries = envelope.deliveries + max(1, received.attempt)
    if envelope.delay_s <= 0:
        return Due(Kind.READY, received.ack_id, envelope, 0.0, deliveries)
    early_s = max(0.0, received.published_at + envelope.delay_s - now)
    kind = Kind.EARLY if early_s > 0 and received.attempt < LOOKS else Kind.ANEW
    return Due(kind, received.ack_id, envelope._replace(delay_s=early_s), early_s, deliveries)


class ServerTime:
    """Google's time is never before the publish time of what it has delivered: so a clock of this host that was set back
    hides nothing for long."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._ahead_s = float("-inf")
        """By so much Google's clock is at least ahead of the monotonic one."""

    def saw(self, published_at: float) -> None:
        with self._lock:
            self._ahead_s = max(self._ahead_s, published_at - time.monotonic())

    def now(self) -> float:
        """UTC."""
        with self._lock:
            return max(self._clock(), self._ahead_s + time.monotonic())

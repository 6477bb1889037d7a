"""Who holds a message, as far as this process knows.

"Acknowledging a message whose ack deadline has expired may succeed" (reference of AcknowledgeRequest), also when somebody else
holds it by then, and an extension gives no new ack id. So each delivery's token knows until when it holds, by
this process's monotonic clock and from before the request that gave the lease, and becomes void with the next
extension. What is over here is never sent.

Exactly-once delivery, a setting of the subscription, would have Pub/Sub refuse old ack ids. mtask doesn't switch it on: it needs
all workers in one region, delays what is published, has a lower limit of messages a second, and isn't there for push; and it
would gain little, since a task's row is written once however often the task is delivered. Where somebody has switched it on, its
refusals are understood (`mtask_gcp.requests.AckError`).
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from mtask.model import Delivery

__all__ = ["Lease", "Token", "lease_of"]


class Lease:
    """Of one delivery; shared by all of its tokens."""

    __slots__ = ("_lock", "_serial", "ack_id", "until_s")

    def __init__(self, ack_id: str, until_s: float) -> None:
        """`ack_id`: empty if it was pushed here; who pushed it learns of its end by the answer."""
        self.ack_id, self.until_s = ack_id, until_s
        self._serial = 0
        self._lock = threading.Lock()

    def token(self) -> Token:
        with self._lock:
            return Token(self, self._serial)

    def holds(self, token: Token, now_s: float) -> bool:
        with self._lock:
            return token.serial == self._serial and now_s < self.until_s

    def lasts(self, now_s: float) -> bool:
        """Is it held by this process, by whatever token? What was pushed is, until it is ended: nobody is asked to end it."""
        with self._lock:
            return now_s < self.until_s or (not self.ack_id and self.until_s != float("-inf"))

    def extended(self, until_s: float) -> Token:
        """The new token; the old ones are void."""
        with self._lock:
            self._serial += 1
            self.until_s = until_s
            return Token(self, self._serial)

    def end(self) -> None:
        """All tokens are void."""
        with self._lock:
            self._serial += 1
            self.until_s = float("-inf")

    @property
    def ended(self) -> bool:
        """Was it deleted or given back?"""
        with self._lock:
            return self.until_s == float("-inf")


class Token(NamedTuple):
    """Of a delivery."""

    lease: Lease
    serial: int


def lease_of(delivery: Delivery) -> Lease:
    token: Token = delivery.token
    return token.lease

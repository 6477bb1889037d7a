"""Who holds a message, as far as this process knows.

SQS takes a receipt handle for longer than it should: a change of visibility after the time is over is answered
with success and does nothing; a delete with an old handle of a standard queue "will succeed, but the message
might not be deleted", or might; and an extension gives no new handle. So each delivery's token knows until when it
holds, by this process's monotonic clock and from before the request that gave the lease, and becomes void
with the next extension. What is over here is never sent.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from mtask.model import Delivery

__all__ = ["HOLD_S", "Lease", "Token", "lease_of"]

HOLD_S = 43_200.0
"""Longest time from a receipt until a message is visible again, however often that is put off."""
MARGIN_S = 5.0
"""A request takes time; SQS refuses what would go beyond."""


class Lease:
    """Of one receipt; shared by all of its tokens."""

    __slots__ = ("_lock", "_serial", "handle", "received_s", "until_s")

    def __init__(self, handle: str, received_s: float, lease_s: float) -> None:
        """`received_s`: by the monotonic clock, or a little earlier."""
        self.handle, self.received_s = handle, received_s
        self.until_s = received_s + lease_s
        self._serial = 0
        self._lock = threading.Lock()

    def token(self) -> Token:
        with self._lock:
            return Token(self, self._serial)

    def holds(self, token: Token, now_s: float) -> bool:
        with self._lock:
            return token.serial == self._serial and now_s < self.until_s

    def most_s(self, now_s: float) -> int:
        """So many whole seconds can it be held from now on."""
        return max(0, int(self.received_s + HOLD_S - MARGIN_S - now_s))

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


class Token(NamedTuple):
    """Of a delivery."""

    lease: Lease
    serial: int


def lease_of(delivery: Delivery) -> Lease:
    token: Token = delivery.token
    return token.lease

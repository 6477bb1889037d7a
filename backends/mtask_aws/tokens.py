"""Who holds a message, as far as this process knows.

SQS takes a receipt handle for longer than it should: a change of visibility after the time is over is answered
with success and does nothing; a delete with an old handle of a standard queue "will succeed, but the message
might not be deleted", or might; and an extension gives no new handle. Hence `mtask.tokens`.
"""

from __future__ import annotations

from mtask import tokens
from mtask.model import Delivery

__all__ = ["HOLD_S", "Lease", "lease_of"]

HOLD_S = 43_200.0
"""Longest time from a receipt until a message is visible again, however often that is put off."""
MARGIN_S = 5.0
"""A request takes time; SQS refuses what would go beyond."""


class Lease(tokens.Lease):
    """Of one receipt."""

    __slots__ = ("handle", "received_s")

    def __init__(self, handle: str, received_s: float, lease_s: float) -> None:
        """`received_s`: by the monotonic clock, or a little earlier."""
        super().__init__(received_s + lease_s)
        self.handle, self.received_s = handle, received_s

    def most_s(self, now_s: float) -> int:
        """So many whole seconds can it be held from now on."""
        return max(0, int(self.received_s + HOLD_S - MARGIN_S - now_s))


def lease_of(delivery: Delivery) -> Lease:
    lease: Lease = delivery.token.lease
    return lease

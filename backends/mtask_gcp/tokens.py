"""Who holds a message, as far as this process knows.

"Acknowledging a message whose ack deadline has expired may succeed" (reference of AcknowledgeRequest), also when somebody else
holds it by then, and an extension gives no new ack id. Hence `mtask.tokens`.

Exactly-once delivery, a setting of the subscription, would have Pub/Sub refuse old ack ids. mtask doesn't switch it on: it needs
all workers in one region, delays what is published, has a lower limit of messages a second, and isn't there for push; and it
would gain little, since a task's row is written once however often the task is delivered. Where somebody has switched it on, its
refusals are understood (`mtask_gcp.requests.AckError`).
"""

from __future__ import annotations

from mtask import tokens
from mtask.model import Delivery

__all__ = ["Lease", "lease_of"]


class Lease(tokens.Lease):
    """Of one delivery."""

    __slots__ = ("ack_id",)

    def __init__(self, ack_id: str, until_s: float) -> None:
        """`ack_id`: empty if it was pushed here; who pushed it learns of its end by the answer."""
        super().__init__(until_s)
        self.ack_id = ack_id

    def lasts(self, now_s: float) -> bool:
        """Is it held by this process, by whatever token? What was pushed is, until it is ended: nobody is asked to end it."""
        return now_s < self.until_s or (not self.ack_id and not self.ended)


def lease_of(delivery: Delivery) -> Lease:
    lease: Lease = delivery.token.lease
    return lease

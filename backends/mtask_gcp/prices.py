"""What Google bills of a queue, what it costs, and what a bag will take of it.

Pub/Sub bills the bytes of what is published and of what is delivered, at least 1,000 for each request, and nothing else: to
acknowledge and to extend is free. Of a message count its data, its attributes' names and values, 20 bytes for the time and
the length of its id. The price is the list price, without the 10 GiB a month that are free, and without
transfer between regions and the storage of what waits for longer than a day. Source, the vendor's own page, seen by way of copies of it:
https://cloud.google.com/pubsub/pricing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtask.meter import Prices, Used

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["PRICES", "REQUEST_BYTES", "billed", "queue_units"]

UNIT = "pubsub bytes"
REQUEST_BYTES = 1000
"""Each request counts as at least so many."""
MESSAGE_BYTES = 20 + 17
"""Of each message besides its data and attributes: the time, and an id as they are now."""
SENT_TOGETHER = 100
"""About so many messages of a submit go into one request."""
TAKEN_TOGETHER = 2
"""And so many to a worker: it takes a message when a slot is about to be free."""

PRICES = Prices(
    dollars={UNIT: 40.0 / 2**40},
    region="all regions",
    at="2026-11",
    source="https://cloud.google.com/pubsub/pricing",
)


def billed(messages: int, payload_bytes: int) -> int:
    """Bytes of a request that publishes, pulls or pushes so much."""
    return max(REQUEST_BYTES, payload_bytes + MESSAGE_BYTES * messages)


def queue_units(_url: str, load: Load) -> Used:
    """What Pub/Sub will count of a load: each message published and delivered once."""
    together = (1, 1) if load.alone else (SENT_TOGETHER, TAKEN_TOGETHER)
    total = 0.0
    for most in together:
        requests = -(-load.messages // most)
        payload = load.message_bytes + MESSAGE_BYTES * load.messages
        total += max(requests * REQUEST_BYTES, payload)
    return {UNIT: float(total)}

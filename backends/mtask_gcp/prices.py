"""What Google bills of a queue and a table, what it costs, and what a bag will take of it.

Pub/Sub bills the bytes of what is published and of what is delivered, at least 1,000 for each request, and nothing else: to
acknowledge and to extend is free. Of a message count its data, its attributes' names and values, 20 bytes for the time and
the length of its id. Firestore (Standard edition) bills documents that are read, written and deleted, whatever their size; Cloud
Storage (Standard class) operations.

The prices are list prices of us-west1, without the free quotas, without storage and without transfer between regions. Pub/Sub's is the same in
all regions; a multi-region of Firestore, as nam5, takes twice as much. None was looked up at Google itself, but in
stored copies of Google's own pages, which have no date: https://cloud.google.com/pubsub/pricing,
https://firebase.google.com/docs/firestore/pricing (the table "by location", its lines for Oregon and for the
multi-region of the United States) and https://cloud.google.com/storage/pricing-examples (in its first example).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtask.meter import Prices, Used
from mtask_gcp.documents import PAGE

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["BYTES", "PRICES", "REQUEST_BYTES", "WRITES", "billed", "queue_units", "table_units"]

BYTES = "pubsub bytes"
WRITES = "firestore writes"
REQUEST_BYTES = 1000
"""Each request of Pub/Sub counts as at least so many."""
MESSAGE_BYTES = 20 + 17
"""Of each message besides its data and attributes: the time, and an id as they are now."""
SENT_TOGETHER = 100
"""About so many messages of a submit go into one request."""
TAKEN_TOGETHER = 2
"""And so many to a worker: it takes a message when a slot is about to be free."""
RECORDED_TOGETHER = 10
"""Messages whose rows are written together, about."""
SENT_BLOCKS = 64
"""After so many blocks the bag is told twice how far its submit is."""

PRICES = Prices(
    dollars={
        BYTES: 40.0 / 2**40,
        "firestore reads": 0.03 / 1e5,
        WRITES: 0.09 / 1e5,
        "firestore deletes": 0.01 / 1e5,
        "gcs class A operations": 0.005 / 1e3,
        "gcs class B operations": 0.0004 / 1e3,
    },
    region="us-west1",
    at="2026-11",
    source="https://cloud.google.com/{pubsub,firestore,storage}/pricing",
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
    return {BYTES: float(total)}


def table_units(_url: str, load: Load) -> Used:
    """Writes that Firestore will count of a load; reads cost next to nothing beside them.

    Each message has a block, and the rows of `PAGE` tasks are in one document, which is written once more for each group of rows
    that ends within it. With `alone`, each row is a write.
    """
    if load.alone:
        return {WRITES: float(load.tasks)}
    pages = -(-load.tasks // PAGE) + load.messages // RECORDED_TOGETHER
    bag = 2 + 2 * -(-load.messages // SENT_BLOCKS)
    return {WRITES: float(load.messages + pages + bag)}

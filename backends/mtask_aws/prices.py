"""What AWS bills, what it costs, and what a bag will take of it.

The prices are list prices of us-east-1, without the free tiers, without the discounts of very large
use, and without storage and transfer. Sources, the vendor's own pages, seen by way of others that quote
them in 2026: https://aws.amazon.com/sqs/pricing/, https://aws.amazon.com/dynamodb/pricing/on-demand/,
https://aws.amazon.com/s3/pricing/.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mtask.meter import Prices, Used
from mtask_aws.names import address_of

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["PRICES", "REQUEST_BYTES", "WRITE_UNIT_BYTES", "queue_units", "table_units"]

BATCH = 10
"""Messages of one request."""
PAGE_TASKS = 64
"""Tasks whose rows may lie together."""
SENT_BLOCKS = 64
"""After so many blocks the bag is told twice how far its submit is."""
BLOCK_SHRINKS_TO = 0.4
ROWS_SHRINK_TO = 0.1
"""By compression; seen with short numbers and texts, and with what quick functions return."""
REQUEST_BYTES = 64 * 1024
"""Each so many bytes of a request's payload, or a part of them, are a request of SQS."""
WRITE_UNIT_BYTES = 1024
"""Each so many bytes of an item, or a part of them, are a write unit of DynamoDB."""

PRICES = Prices(
    dollars={
        "sqs requests": 0.40 / 1e6,
        "sqs fifo requests": 0.50 / 1e6,
        "dynamodb write units": 0.625 / 1e6,
        "dynamodb read units": 0.125 / 1e6,
        "s3 puts": 0.005 / 1e3,
        "s3 gets": 0.0004 / 1e3,
    },
    region="us-east-1",
    at="2026-11",
    source="https://aws.amazon.com/{sqs,dynamodb,s3}/pricing/",
)
"""Of SQS, DynamoDB on demand (half of that for an eventually consistent read: it takes half a unit), and S3
Standard."""


def queue_units(url: str, load: Load) -> Used:
    """What SQS will count of a load: each message sent, received and deleted once, by tens if it can be."""
    unit = "sqs fifo requests" if "fifo" in address_of(url).options else "sqs requests"
    batch = 1 if load.alone else BATCH
    batches = -(-load.messages // batch)
    billed = max(1, math.ceil(load.message_bytes / batches / REQUEST_BYTES))
    return {unit: float(batches * (2 * billed + 1))}


def table_units(_url: str, load: Load) -> Used:
    """Write units that DynamoDB will count of a load; reads cost next to nothing beside them.

    Each message has a block, and its tasks' rows lie together, up to `PAGE_TASKS` of them, with the rows of the messages
    received with it; each such group comes with an update of its page. With `alone`, a row is an item.
    """
    if load.alone:
        return {"dynamodb write units": float(load.tasks * _write_units(load.result_bytes / load.tasks))}
    blocks = load.messages * _write_units(BLOCK_SHRINKS_TO * load.message_bytes / load.messages)
    groups = -(-load.tasks // PAGE_TASKS) + load.messages // BATCH
    rows = groups * (_write_units(ROWS_SHRINK_TO * load.result_bytes / groups) + 1)
    bag = 2 + 2 * -(-load.messages // SENT_BLOCKS)
    return {"dynamodb write units": float(blocks + rows + bag)}


def _write_units(item_bytes: float) -> int:
    return max(1, math.ceil(item_bytes / WRITE_UNIT_BYTES))

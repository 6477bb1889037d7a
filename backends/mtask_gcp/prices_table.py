"""What Google bills of a table, what it costs, and what a bag will take of it.

List prices of us-central1, Firestore's Standard edition and Cloud Storage's Standard class, without the free quotas, and
without storage and transfer; a multi-region as nam5 takes twice as much for reads, writes and deletes.
Sources, the vendor's own pages, seen by way of others that quote them: https://cloud.google.com/firestore/pricing,
https://cloud.google.com/storage/pricing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtask.meter import Prices, Used
from mtask_gcp.documents import PAGE

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["TABLE_PRICES", "table_units"]

WRITES = "firestore writes"
SENT_BLOCKS = 64
"""After so many blocks the bag is told twice how far its submit is."""
BATCH = 10
"""Messages whose rows are written together, about."""

TABLE_PRICES = Prices(
    dollars={
        "firestore reads": 0.03 / 1e5,
        WRITES: 0.09 / 1e5,
        "firestore deletes": 0.01 / 1e5,
        "gcs class A operations": 0.005 / 1e3,
        "gcs class B operations": 0.0004 / 1e3,
    },
    region="us-central1",
    at="2026-11",
    source="https://cloud.google.com/{firestore,storage}/pricing",
)


def table_units(_url: str, load: Load) -> Used:
    """Writes that Firestore will count of a load; reads cost next to nothing beside them.

    Each message has a block, and the rows of `PAGE` tasks are in one document, which is written once more for each group of rows
    that ends within it. With `alone`, each row is a write.
    """
    if load.alone:
        return {WRITES: float(load.tasks)}
    pages = -(-load.tasks // PAGE) + load.messages // BATCH
    bag = 2 + 2 * -(-load.messages // SENT_BLOCKS)
    return {WRITES: float(load.messages + pages + bag)}

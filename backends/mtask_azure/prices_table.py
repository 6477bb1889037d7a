"""What Azure bills for a table and its blobs, what it costs, and what a bag will take of it.

List prices of East US, locally redundant, without storage and transfer, in a general-purpose v2 account, of blobs the
hot tier; a table that is encrypted with a key of one's own costs far more. Seen in 2026-11 by way of pages that quote
the vendor's own:
https://azure.microsoft.com/pricing/details/storage/tables/ and https://azure.microsoft.com/pricing/details/storage/blobs/.
Each request is a transaction, also one with a hundred operations in it ("Design scalable and performant tables",
https://learn.microsoft.com/azure/storage/tables/table-storage-design-guide), and each answer of a query.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mtask.meter import Used
from mtask_azure.blobs import READS, WRITES
from mtask_azure.keys import RUN_TASKS
from mtask_azure.store import TRANSACTIONS

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["TABLE_DOLLARS", "table_units"]

TABLE_DOLLARS = {
    TRANSACTIONS: 0.00036 / 1e4,
    WRITES: 0.05 / 1e4,
    READS: 0.004 / 1e4,
}
"""For one of each."""

BATCH = 10
"""Messages whose rows are recorded together."""
BLOCKS = 50
"""Of one request."""
SENT_BLOCKS = 64
"""After so many blocks the bag is told twice how far its submit is, which is read first."""


def table_units(_url: str, load: Load) -> Used:
    """Transactions that Azure will count of a load; reads of results cost next to nothing beside them.

    Rows that are recorded together are two requests, one that reads pages and one that writes; so is, with `alone`, each row.
    """
    if load.alone:
        return {TRANSACTIONS: 2.0 * load.tasks}
    recorded = max(math.ceil(load.tasks / RUN_TASKS), math.ceil(load.messages / BATCH))
    submitted = math.ceil(load.messages / BLOCKS) + 4 * math.ceil(load.messages / SENT_BLOCKS)
    return {TRANSACTIONS: float(2 + submitted + 2 * recorded)}

"""What Azure bills for a queue, a table and its blobs, what it costs, and what a bag will take of it.

Each request is an operation of a queue, or a transaction of a table, whatever it carries (one with a hundred operations
in it, too: "Design scalable and performant tables", https://learn.microsoft.com/azure/storage/tables/table-storage-design-guide),
and each answer of a query is one. A request to a queue that was throttled counts as well, which Azure may not bill.

List prices of a general-purpose v2 account, locally redundant, in East US, of blobs the hot tier, without storage and
transfer; a table that is encrypted with a key of one's own costs far more, and general-purpose v1 accounts pay less than
a tenth for queues, of which classes 1 and 2 of operations cost the same. Seen in 2026-11 by way of others: of queues in
what they had Azure's calculator say (1,000 times 10,000 operations of either class and 1 GB for $8.05), of tables and
blobs in pages that quote https://azure.microsoft.com/pricing/details/storage/tables/ and …/blobs/.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mtask.meter import Prices, Used
from mtask_azure.keys import RUN_TASKS

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["BLOB_READS", "BLOB_WRITES", "OPERATIONS", "PRICES", "TRANSACTIONS", "queue_units", "table_units"]

OPERATIONS = "azure queue operations"
TRANSACTIONS = "azure table transactions"
BLOB_WRITES, BLOB_READS = "azure blob writes", "azure blob reads"
PRICES = Prices(
    dollars={
        OPERATIONS: 0.004 / 1e4,
        TRANSACTIONS: 0.00036 / 1e4,
        BLOB_WRITES: 0.05 / 1e4,
        BLOB_READS: 0.004 / 1e4,
    },
    region="East US",
    at="2026-11",
    source="https://azure.microsoft.com/pricing/details/storage/",
)

GET = 32
"""Most messages of one request; what is sent and deleted is one a request."""
BATCH = 10
"""Messages whose rows are recorded together."""
BLOCKS = 50
"""Of one request."""
SENT_BLOCKS = 64
"""After so many blocks the bag is told twice how far its submit is, which is read first."""


def queue_units(_url: str, load: Load) -> Used:
    """What Azure will count of a load: each message sent and deleted once, and received with others if it can be."""
    receives = load.messages if load.alone else -(-load.messages // GET)
    return {OPERATIONS: float(2 * load.messages + receives)}


def table_units(_url: str, load: Load) -> Used:
    """Transactions that Azure will count of a load; reads of results cost next to nothing beside them.

    Rows that are recorded together are two requests, one that reads pages and one that writes; so is, with `alone`, each row.
    """
    if load.alone:
        return {TRANSACTIONS: 2.0 * load.tasks}
    recorded = max(math.ceil(load.tasks / RUN_TASKS), math.ceil(load.messages / BATCH))
    submitted = math.ceil(load.messages / BLOCKS) + 4 * math.ceil(load.messages / SENT_BLOCKS)
    return {TRANSACTIONS: float(2 + submitted + 2 * recorded)}

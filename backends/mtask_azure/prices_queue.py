"""What Azure bills for a queue: each request is an operation, whatever it carries, and also if nothing came.

A request that was throttled counts as well, which Azure may not bill. The price is the list price of a
general-purpose v2 account, locally redundant, in East US; classes 1 and 2 of operations cost the same. Seen in what
others have had Azure's price calculator say (https://azure.microsoft.com/pricing/calculator/): 1,000 times 10,000 operations
of either class and 1 GB for $8.05. General-purpose v1 accounts pay less than a tenth of it. Storage
and transfer are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtask.meter import Used

if TYPE_CHECKING:
    from mtask.estimate import Load

__all__ = ["DOLLARS", "OPERATIONS", "queue_units"]

OPERATIONS = "azure queue operations"
DOLLARS = {OPERATIONS: 0.004 / 1e4}
GET = 32
"""Most messages of one request; what is sent and deleted is one a request."""


def queue_units(_url: str, load: Load) -> Used:
    """What Azure will count of a load: each message sent and deleted once, and received with others if it can be."""
    receives = load.messages if load.alone else -(-load.messages // GET)
    return {OPERATIONS: float(2 * load.messages + receives)}

"""What a queue's lanes and its poison queue are called in a storage account."""

from __future__ import annotations

import hashlib
import re

from mtask_azure.address import LONGEST, Address

__all__ = ["POISON", "physical"]

POISON = "poison"
"""Azure Functions puts what it has tried too often into `NAME-poison`; so does this queue."""
_LANE = "[a-z0-9]+"
_HASH = 16


def physical(address: Address, lane: str = "", *, poison: bool = False) -> str:
    """`NAME`, `NAME-LANE` or `NAME-poison`; with a hash of the whole where it would be too long, or not allowed."""
    suffix = POISON if poison else lane
    if not suffix:
        return address.name
    name = f"{address.name}-{suffix}"
    if len(name) <= LONGEST and (poison or (lane != POISON and re.fullmatch(_LANE, lane))):
        return name
    digest = hashlib.blake2b(f"{poison}/{name}".encode(), digest_size=_HASH // 2).hexdigest()
    return f"{address.name[: LONGEST - _HASH - 1].rstrip('-')}-{digest}"

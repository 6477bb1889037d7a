"""What a queue, its lanes and its poison queue are called in a storage account.

A name has 3 to 63 lowercase letters, digits and hyphens; it begins and ends with a letter or a digit, and no two
hyphens come together (REST API, "Naming Queues and Metadata").
"""

from __future__ import annotations

import hashlib
import re

from mtask_azure.address import Address, parse

__all__ = ["POISON", "address_of", "physical"]

LONGEST = 63
POISON = "poison"
"""Azure Functions puts what it has tried too often into `NAME-poison`; so does this queue."""
_NAME = rf"(?=.{{3,{LONGEST}}}$)[a-z0-9]+(-[a-z0-9]+)*"
_LANE = "[a-z0-9]+"
_HASH = 16


def address_of(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    rule = f"a queue's name has 3 to {LONGEST} lowercase letters, digits and single hyphens between them"
    return parse(url, "azureq", _NAME, rule)


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

"""What a queue, its lanes and its dead-letter queue are called at SQS."""

from __future__ import annotations

import hashlib

from mtask.errors import UsageError
from mtask_aws.address import Address, parse

__all__ = ["DEAD", "address_of", "physical"]

LONGEST = 80
"""Characters of a queue's name, the suffix of a FIFO queue included."""
FIFO = ".fifo"
DEAD = "dead"
_HASH = 16


def address_of(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    address = parse(url, "sqs", ("fifo",), longest=LONGEST)
    fifo = address.options.get("fifo", "0")
    if fifo not in ("0", "1"):
        raise UsageError(f"{url!r}: fifo is 1, for a FIFO queue, or 0, not {fifo!r}")
    if fifo == "0":
        return address._replace(options={})
    if len(address.name) + len(FIFO) > LONGEST:
        most = LONGEST - len(FIFO)
        raise UsageError(
            f"{url!r}: the name of a FIFO queue has at most {most} characters, as {FIFO!r} comes behind"
        )
    return address


def physical(address: Address, lane: str = "", *, dead: bool = False) -> str:
    """`NAME`, `NAME-LANE` or `NAME-dead`, shortened with a hash of the whole where it would be too long."""
    fifo = FIFO if "fifo" in address.options else ""
    suffix = DEAD if dead else lane
    name = f"{address.name}-{suffix}" if suffix else address.name
    longest = LONGEST - len(fifo)
    if len(name) > longest or (not dead and lane == DEAD):
        digest = hashlib.blake2b(f"{dead}/{name}".encode(), digest_size=_HASH // 2).hexdigest()
        name = f"{name[: longest - _HASH - 1]}-{digest}"
    return name + fifo

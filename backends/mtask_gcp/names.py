"""What lies at Pub/Sub for a queue, by name, and what its messages say about themselves.

| | |
|---|---|
| `NAME`, `NAME-LANE` | a topic and its one subscription, for the queue and for each lane |
| `NAME-dead` | the topic, with a subscription, of what was delivered too often |

A message's data is mtask's message as it is. What its attributes may say is in `Envelope`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from mtask.errors import UsageError
from mtask_gcp.address import Address, example, parse

__all__ = ["DEAD", "Envelope", "address_of", "physical", "subscription_path", "topic_path"]

LONGEST = 200
"""Characters of a queue's name. Pub/Sub takes 255; the names of lanes are longer."""
DEAD = "dead"
_HASH = 16

DELAY = "mtask-delay-ms"
DELIVERIES = "mtask-deliveries"
_MOST = 2**53


def address_of(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    address = parse(url, "pubsub", ())
    name = address.name
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{2,{LONGEST - 1}}}", name) or name.startswith("goog"):
        raise UsageError(
            f"{url!r}: a name has 3 to {LONGEST} letters, digits, '-' and '_', begins with a letter, and not with "
            f"'goog', unlike {name!r}; {example('pubsub')}"
        )
    return address


def physical(address: Address, lane: str = "", *, dead: bool = False) -> str:
    """`NAME`, `NAME-LANE` or `NAME-dead`; a lane that is called `dead` gets a hash."""
    if lane and not lane.isalnum():
        raise UsageError(f"the name of a lane has letters and digits, not {lane!r}")
    suffix = DEAD if dead else lane
    name = f"{address.name}-{suffix}" if suffix else address.name
    if lane == DEAD and not dead:
        name = f"{name}-{hashlib.blake2b(name.encode(), digest_size=_HASH // 2).hexdigest()}"
    return name


def topic_path(address: Address, name: str) -> str:
    return f"projects/{address.project}/topics/{name}"


def subscription_path(address: Address, name: str) -> str:
    return f"projects/{address.project}/subscriptions/{name}"


class Envelope(NamedTuple):
    """A body on its way, and what its attributes say."""

    body: bytes
    delay_s: float = 0.0
    """From its publish time on, by Google's clock."""
    deliveries: int = 0
    """How often it was delivered before it was published, as another message of Pub/Sub."""

    @property
    def attributes(self) -> dict[str, str]:
        found = {}
        if self.delay_s > 0:
            found[DELAY] = str(math.ceil(self.delay_s * 1000))
        if self.deliveries > 0:
            found[DELIVERIES] = str(self.deliveries)
        return found

    @classmethod
    def of(cls, body: bytes, attributes: Mapping[str, str]) -> Envelope:
        """Anybody may have published it: what makes no sense is not there."""
        return cls(body, _number(attributes, DELAY) / 1000, _number(attributes, DELIVERIES))


def _number(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name, "")
    return min(int(text), _MOST) if text.isascii() and text.isdecimal() and len(text) < 20 else 0

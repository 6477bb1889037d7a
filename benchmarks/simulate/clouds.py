"""How long the requests of a cloud take, how many messages fit into one, and what they cost.

AWS's and Google's prices are those of the backends, `mtask_aws.prices` and `mtask_gcp.prices`; the others are list prices of the vendors' cheapest
American region as noted in November 2026, in dollars; those marked (?) were noted from memory and should be
looked up before money depends on them. Latencies are typical ones inside the vendor's own region; none was
measured for this simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mtask_aws.prices import PRICES as AWS
from mtask_gcp.prices import PRICES as GOOGLE

__all__ = ["CLOUDS", "ENVELOPE_BYTES", "Cloud", "Count", "Meter"]

ENVELOPE_BYTES = 200
"""A message without its rows: names of bag and columns, first index and count."""
TIB = 2**40
MILLION = 1e6


@dataclass
class Count:
    """Requests and what was in them."""

    sends: int = 0
    receives: int = 0
    """Those that came back empty included."""
    deletes: int = 0
    extends: int = 0
    releases: int = 0
    sent_units: int = 0
    """64 KiB or parts of it, one a request at least: what SQS bills."""
    received_units: int = 0
    moved_bytes: int = 0
    """Published and delivered, 1,000 bytes a request at least: what Pub/Sub bills."""
    messages: int = 0
    """Sent in all."""
    rows: int = 0
    """Written to the table."""
    reads: int = 0
    """Rows looked up in the table."""

    @property
    def requests(self) -> int:
        """All requests to the queue."""
        return self.sends + self.receives + self.deletes + self.extends + self.releases


@dataclass(frozen=True)
class Cloud:
    """Latencies in seconds, sizes of batches, prices in dollars."""

    name: str
    send_s: float = 0.0
    receive_s: float = 0.0
    delete_s: float = 0.0
    table_s: float = 0.0
    """To write a batch of rows, or to look some up."""
    flush_s: float = 0.0
    """A slot gives its results on at least this often."""
    send_batch: int = 1
    receive_batch: int = 1
    delete_batch: int = 1
    """Also of extensions and releases."""
    wait_s: float = 20.0
    """Longest wait of one receive; the pause between two where the cloud can't wait."""
    polls: bool = False
    """It can't wait: a message is found half a pause later, on average."""
    counts_releases: bool = False
    """A message is given back by sending a copy and deleting it."""
    notice_s: float = 0.0
    """From the notice until the machine is taken."""
    requests_a_s: float = math.inf
    """The most that one account or queue takes."""
    in_flight: float = math.inf
    """The most messages held at a time."""
    request_units: float = 0.0
    """Dollars a million requests of up to 64 KiB."""
    operations: float = 0.0
    """Dollars a million requests of any size."""
    moved_tib: float = 0.0
    """Dollars a TiB, each way."""
    rows: float = 0.0
    """Dollars a million rows written, of at most 1 KB each."""
    reads: float = 0.0
    """Dollars a million rows looked up."""

    def queue_dollars(self, count: Count) -> float:
        units = count.sent_units + count.received_units + count.deletes + count.extends + count.releases
        return (
            units * self.request_units / MILLION
            + count.requests * self.operations / MILLION
            + count.moved_bytes * self.moved_tib / TIB
        )

    def table_dollars(self, count: Count) -> float:
        return (count.rows * self.rows + count.reads * self.reads) / MILLION


_FLUSH_S = 0.02

CLOUDS = {
    cloud.name: cloud
    for cloud in (
        # No latency, no price, everything in one request: to compute by hand.
        Cloud("none"),
        Cloud(
            "sqlite",
            send_s=0.003,
            receive_s=0.005,
            delete_s=0.003,
            table_s=0.003,
            flush_s=_FLUSH_S,
            send_batch=1000,
            receive_batch=1000,
            delete_batch=1000,
            wait_s=0.1,
        ),
        # SQS: each 64 KB is a request; batches of 10; 120,000 in flight. DynamoDB on demand: a row is a write
        # unit. Notice: 2 minutes.
        Cloud(
            "aws",
            send_s=0.015,
            receive_s=0.015,
            delete_s=0.010,
            table_s=0.020,
            flush_s=_FLUSH_S,
            send_batch=10,
            receive_batch=10,
            delete_batch=10,
            counts_releases=True,
            notice_s=120.0,
            in_flight=120_000,
            request_units=AWS.million("sqs requests"),
            rows=AWS.million("dynamodb write units"),
            reads=AWS.million("dynamodb read units"),
        ),
        # Pub/Sub: by the TiB, each way, 1,000 bytes a request at least. Notice: 30 seconds.
        Cloud(
            "gcp",
            send_s=0.030,
            receive_s=0.030,
            delete_s=0.020,
            table_s=0.040,
            flush_s=_FLUSH_S,
            send_batch=1000,
            receive_batch=1000,
            delete_batch=1000,
            notice_s=30.0,
            moved_tib=GOOGLE.dollars["pubsub bytes"] * TIB,
            rows=GOOGLE.million("firestore writes"),
            reads=GOOGLE.million("firestore reads"),
        ),
        # Azure Queue: $0.04 (?) per 10,000 operations; one message a send and a delete, 32 a receive; can't
        # wait. Tables: $0.036 (?) a million. Notice: 30 seconds.
        Cloud(
            "azure",
            send_s=0.015,
            receive_s=0.015,
            delete_s=0.010,
            table_s=0.020,
            flush_s=_FLUSH_S,
            receive_batch=32,
            wait_s=1.0,
            polls=True,
            counts_releases=True,
            notice_s=30.0,
            requests_a_s=20_000,
            operations=4.0,
            rows=0.036,
            reads=0.036,
        ),
    )
}


@dataclass
class Meter:
    """Counts requests; a message has an envelope and rows of a fixed size."""

    cloud: Cloud
    row_bytes: int
    count: Count = field(default_factory=Count)

    def sent(self, tasks: int, messages: int) -> None:
        """One request with so many messages, and tasks in them."""
        size = messages * ENVELOPE_BYTES + tasks * self.row_bytes
        self.count.sends += 1
        self.count.messages += messages
        self.count.sent_units += -(-size // 65536)
        self.count.moved_bytes += max(1000, size)

    def received(self, tasks: int, messages: int, empty: int = 0) -> None:
        """One request with so many messages, after so many that came back empty."""
        size = messages * ENVELOPE_BYTES + tasks * self.row_bytes
        self.count.receives += 1 + empty
        self.count.received_units += -(-size // 65536) + empty
        self.count.moved_bytes += max(1000, size)

"""Who holds a message, as far as this process knows.

RabbitMQ has no leases: what is delivered on a channel is held until it is acknowledged or given back on that channel, or
the channel ends. So a lease is of this process: when its time is over it gives the message back itself; and when the process,
its host or the network is gone, the broker does, after two heartbeats at the latest. Nobody can extend, delete or
release what another holds: a delivery's tag is worth nothing on another channel, and a token nothing without its channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtask.model import Delivery

if TYPE_CHECKING:
    from mtask_rabbitmq.link import Line
    from mtask_rabbitmq.queue import RabbitQueue

__all__ = ["Lease", "Token", "by_owner", "lease_of"]


class Lease:
    """Of one delivery; shared by all of its tokens. Touched by the thread of its queue's loop alone."""

    __slots__ = ("body", "deliveries", "ended", "line", "queue", "serial", "settling", "tag", "until_s")

    def __init__(
        self, queue: RabbitQueue, line: Line, tag: int, body: bytes, deliveries: int, until_s: float
    ) -> None:
        """`until_s`: by the clock of its queue."""
        self.queue, self.line, self.tag = queue, line, tag
        self.body, self.deliveries, self.until_s = body, deliveries, until_s
        self.serial = 0
        self.ended = self.settling = False

    def holds(self, serial: int, now_s: float) -> bool:
        return (
            serial == self.serial
            and now_s < self.until_s
            and not self.ended
            and not self.settling
            and self.line.is_open
        )

    def extend(self, until_s: float) -> Token:
        """The new token; the old ones are void."""
        self.serial += 1
        self.until_s = until_s
        return Token(self, self.serial)

    def end(self) -> None:
        self.ended = True
        self.line.ack(self.tag)


class Token(NamedTuple):
    """Of a delivery."""

    lease: Lease
    serial: int


def lease_of(delivery: Delivery) -> Lease:
    token: Token = delivery.token
    return token.lease


def by_owner(deliveries: Sequence[Delivery]) -> Iterator[tuple[RabbitQueue, list[Delivery]]]:
    """Each can be settled only where it was delivered, and by the thread of that."""
    owners: dict[int, list[Delivery]] = {}
    for delivery in deliveries:
        owners.setdefault(id(lease_of(delivery).queue), []).append(delivery)
    for group in owners.values():
        yield lease_of(group[0]).queue, group

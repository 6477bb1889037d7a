"""What the broker has set aside: messages that were delivered too often."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mtask.model import DeadMessage
from mtask_rabbitmq import names
from mtask_rabbitmq.address import Address
from mtask_rabbitmq.broker import Broker
from mtask_rabbitmq.errors import MissingError

__all__ = ["dead_messages"]


async def dead_messages(broker: Broker, address: Address) -> list[DeadMessage]:
    """Oldest first. They are received, and given back when the channel is closed."""
    queue, found = names.dead(address.name), []
    async with broker.scratch() as line:
        try:
            while (got := await line.get(queue)) is not None:
                _, properties, body = got
                found.append(_dead(address, properties.headers or {}, body))
        except MissingError:
            pass
    return found


def _dead(address: Address, headers: dict[str, Any], body: bytes) -> DeadMessage:
    """The header x-death: https://www.rabbitmq.com/docs/dlx#effects."""
    deaths = headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    at, queue = death.get("time"), death.get("queue", address.name)
    why = {"delivery_limit": "delivered too often"}.get(str(death.get("reason")), str(death.get("reason")))
    return DeadMessage(
        body=body,
        reason=f"{why}: RabbitMQ has moved it from {queue} to {names.dead(address.name)}",
        worker="",
        at=at.timestamp() if isinstance(at, datetime) else 0.0,
    )

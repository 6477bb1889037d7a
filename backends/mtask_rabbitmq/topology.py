"""Makes what lies at the broker: `mtask init` the queue, those who send lanes and delays. See `mtask_rabbitmq.names`."""

from __future__ import annotations

from mtask.errors import UnusableError
from mtask.registry import MADE, THERE
from mtask_rabbitmq import names
from mtask_rabbitmq.address import Address, parse
from mtask_rabbitmq.broker import Broker
from mtask_rabbitmq.link import Line

__all__ = ["ensure_delays", "make_lane", "make_queue", "no_queue"]


def make_queue(url: str) -> list[tuple[str, str]]:
    """Make the queue at `url` and where its dead messages go, unless they are there already.

    Returns, for each, (what, "made" | "was there"). Raises UsageError, UnusableError (no right to it, or a queue with
    other settings), UnavailableError.
    """
    address = parse(url)
    broker = Broker(address)
    try:
        return broker.call(_make(broker, address))
    finally:
        broker.close()


async def make_lane(broker: Broker, name: str, lane: str) -> None:
    """The queue of this lane, like the main one; many may do the same at once. Raises UnusableError without a main
    queue."""
    if await broker.number(name) is None:
        raise no_queue(broker.address)
    async with broker.scratch() as line:
        await _declare(line, name, names.physical(name, lane))


async def ensure_delays(broker: Broker, name: str, steps: int) -> int:
    """Make the delay queues for so many steps, unless they are there; returns the level where a message enters.

    The lowest come first, so that those which are there have no gaps.
    """
    levels = steps.bit_length()
    if broker.levels < levels:
        async with broker.scratch() as line:
            for level in range(broker.levels, levels):
                await _declare_delay(line, name, level)
        broker.levels = max(broker.levels, levels)
    return levels - 1


def no_queue(address: Address) -> UnusableError:
    return UnusableError(
        f"there is no queue {address.name!r} at {address.server}, vhost {address.vhost!r}; make it with `mtask init`, and "
        "if it was there before, send what was in it with `mtask repair BAG`"
    )


async def _make(broker: Broker, address: Address) -> list[tuple[str, str]]:
    name, made = address.name, []
    dead = names.dead(name)
    there = [await broker.number(each) is not None for each in (dead, name)]
    async with broker.scratch() as line:
        await line.ask(
            "queue_declare", f"making {dead}", queue=dead, durable=True, arguments=names.dead_arguments()
        )
        await line.ask(
            "exchange_declare",
            f"making {names.due(name)}",
            exchange=names.due(name),
            exchange_type="topic",
            durable=True,
        )
        await _declare(line, name, name)
    where = f"at {address.server}" + ("" if address.vhost == "/" else f", vhost {address.vhost}")
    for what, was in zip((f"queue {dead}, for dead messages,", f"queue {name}"), there, strict=True):
        made.append((f"{what} {where}", THERE if was else MADE))
    return made


async def _declare(line: Line, name: str, queue: str) -> None:
    arguments = names.queue_arguments(name)
    await line.ask("queue_declare", f"making {queue}", queue=queue, durable=True, arguments=arguments)
    await line.ask(
        "queue_bind",
        f"binding {queue}",
        queue=queue,
        exchange=names.due(name),
        routing_key=names.due_pattern(queue),
    )


async def _declare_delay(line: Line, name: str, level: int) -> None:
    here, below = names.delay(name, level), names.delay(name, level - 1) if level else names.due(name)
    passes, waits = names.patterns(level)
    action = f"making {here}"
    await line.ask("exchange_declare", action, exchange=here, exchange_type="topic", durable=True)
    arguments = names.delay_arguments(name, level)
    await line.ask("queue_declare", action, queue=here, durable=True, arguments=arguments)
    await line.ask("queue_bind", action, queue=here, exchange=here, routing_key=waits)
    await line.ask("exchange_bind", action, destination=below, source=here, routing_key=passes)

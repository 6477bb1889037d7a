"""What a bag will cost, from its tasks alone: nothing is sent, and neither queue nor table is opened.

The module of a backend whose vendor bills by use has `queue_units(url, load)`, `table_units(url, load)`, or
both: what the vendor will count of such a load. Whatever depends on how long tasks take is left out, for
nobody knows it: leases that are extended, messages that are cut because their tasks are slow, heartbeats, and
workers that wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from mtask.costs import Cost, add, cost_of, prices_of
from mtask.meter import Used
from mtask.model import Bag, Message
from mtask.registry import backend
from mtask.settings import Urls

if TYPE_CHECKING:
    from mtask.submitting import Prepared

__all__ = ["RESULT_BYTES", "Estimate", "Load", "estimate"]

RESULT_BYTES = 300
"""Of the row of a task that returned a number or printed little, encoded: what is assumed where nobody knows it."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What goes through a queue and into a table."""

    tasks: int
    messages: int
    message_bytes: int
    """Of all messages together."""
    result_bytes: int
    """Of all rows together."""
    alone: bool = False
    """Each message and each row takes requests of its own; else as many as possible share one."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a bag will cost on a queue and a table."""

    tasks: int
    messages: int
    message_bytes: int
    result_bytes: int
    """Of one row: assumed."""
    packed: Cost | None
    """As it will be sent, if its tasks are quick; None: it costs nothing there."""
    alone: Cost | None
    """With one send, one receive, one put and one delete for each task, beside it."""


def estimate(prepared: Prepared, urls: Urls, *, result_bytes: int = RESULT_BYTES) -> Estimate:
    """`result_bytes`: of one row, encoded. Raises UsageError for URLs that no backend serves."""
    sizes, rows_bytes = _message_sizes(prepared)
    tasks, prices = prepared.total, prices_of(urls)
    results = tasks * result_bytes
    packed = Load(tasks=tasks, messages=len(sizes), message_bytes=sum(sizes), result_bytes=results)
    envelope = (sum(sizes) - rows_bytes) // max(1, len(sizes))
    alone = Load(
        tasks=tasks,
        messages=tasks,
        message_bytes=rows_bytes + tasks * envelope,
        result_bytes=results,
        alone=True,
    )
    return Estimate(
        tasks=tasks,
        messages=packed.messages,
        message_bytes=packed.message_bytes,
        result_bytes=result_bytes,
        packed=cost_of(_units(urls, packed), tasks, prices),
        alone=cost_of(_units(urls, alone), tasks, prices),
    )


def _message_sizes(prepared: Prepared) -> tuple[list[int], int]:
    """Of each message, and of all rows in them: as `mtask.submitting.send` makes them."""
    bag = Bag(name="estimate", spec=prepared.spec, columns=prepared.columns)
    lanes = [lane.name for lane in prepared.placing.lanes(bag.uid)]
    sizes, rows_bytes = [], 0
    for block in prepared.spool.blocks(bag.name, lanes):
        sizes.append(len(Message.of(bag, block).encode()))
        rows_bytes += len(block.rows)
    return sizes, rows_bytes


def _units(urls: Urls, load: Load) -> Used:
    used: Used = {}
    for url, name in ((urls.queue, "queue_units"), (urls.table, "table_units")):
        units: Callable[[str, Load], Used] | None = getattr(backend(url), name, None)
        if units is not None and load.tasks:
            used = add(used, units(url, load))
    return used

"""Sending tasks again: those that failed (`retry`), and those that have no row (`repair`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from mtask.append import is_open, mark_resending
from mtask.errors import UsageError
from mtask.keys import heads
from mtask.model import Bag, BagState, Block, Message, Result, State
from mtask.packing import fit, single, split_rows
from mtask.queue import Queue, send_all
from mtask.table import Table

__all__ = ["repair", "retry"]

BATCH = 1000


def retry(
    queue: Queue,
    table: Table,
    bag: Bag,
    *,
    states: Collection[State] = (State.FAILED, State.EXPIRED),
    indexes: Collection[int] | None = None,
    where: Callable[[Result], bool] | None = None,
) -> int:
    """Send tasks that ended so once more, with fresh attempts; returns how many.

    Their rows become attempts. A cancelled bag is taken up again, and its tasks without a row are sent,
    too. Raises UsageError for states that aren't failures, and for a bag that isn't complete.
    """
    if State.DONE in states:
        raise UsageError("tasks that are done are not run again; submit them as another bag")
    if bag.state is BagState.OPEN and not bag.endless:
        raise UsageError(f"the bag {bag.name!r} is still being submitted; retry when it is complete")
    unfinished, bag = _begin(table, bag)
    if bag.lanes:
        table.put_lanes(bag.lanes)
    sent = _send_missing(queue, table, bag) if unfinished else 0
    results = table.results(bag.name, states=states, indexes=indexes)
    wanted = (result.index for result in results if where is None or where(result))
    if bag.spec.serial:
        return sent + _retry_serial(queue, table, bag, list(wanted))
    for batch in _batches(_singles(bag, table.blocks(bag.name), wanted)):
        batch = _expiring(batch, _expires_at(bag))
        # First out of the table: were they sent first, a new failure could be taken for the old one.
        with table.transaction(queue):
            table.retract(bag.name, [message.first for message in batch])
            _send(queue, batch)
        sent += len(batch)
    _end(table, bag)
    return sent


def _begin(table: Table, bag: Bag) -> tuple[bool, Bag]:
    """A kill between here and `_end` leaves a mark, by which the next one goes on. Does this one?"""
    generation = bag.generation
    if bag.state is BagState.CANCELLED:
        generation += 1  # messages of before the cancel are void from here on: they may be anywhere
    # Also of a sealed one: it may have been open when that one was killed.
    marked = bag.endless and mark_resending(table, bag, True)
    if is_open(table, bag):
        if bag.state is BagState.CANCELLED:
            table.update_bag(bag.name, state=BagState.OPEN, generation=generation)
        return marked or bag.state is BagState.CANCELLED, table.bag(bag.name)
    table.update_bag(bag.name, state=BagState.RESENDING, generation=generation)
    return marked or bag.state in (BagState.CANCELLED, BagState.RESENDING), table.bag(bag.name)


def _end(table: Table, bag: Bag) -> None:
    """All is sent that was to be."""
    if bag.endless:
        mark_resending(table, bag, False)
    if not is_open(table, bag):  # or no longer
        table.update_bag(bag.name, state=BagState.SEALED)


def repair(queue: Queue, table: Table, bag: Bag) -> int:
    """Send every task that has no row, as after the loss of a queue; returns how many.

    What is in the queue all the same is in it twice then: workers look for the rows of such tasks
    before they run them, so that only one that is running just now is run twice. A queue that knows what is in it
    (`HandsOut`) leaves out what it has.
    """
    # What was added to an open bag may have been submitted long after the bag.
    sent = _send_missing(queue, table, bag, expires_at=_expires_at(bag) if bag.endless else None)
    if bag.endless or bag.state is BagState.RESENDING:
        _end(table, bag)
    return sent


def _send_missing(queue: Queue, table: Table, bag: Bag, *, expires_at: float | None = None) -> int:
    if bag.lanes:
        table.put_lanes(bag.lanes)  # they may have been taken from the list since
    sent = 0
    for batch in _batches(_without_row(table, bag)):
        _send(queue, _expiring(batch, expires_at))
        sent += sum(message.count for message in batch)
    return sent


def _expires_at(bag: Bag) -> float | None:
    """Of tasks that are sent now with fresh attempts."""
    return None if bag.spec.expires_s is None else time.time() + bag.spec.expires_s


def _expiring(batch: list[Message], expires_at: float | None) -> list[Message]:
    if expires_at is None:
        return batch
    return [msgspec.structs.replace(message, expires_at=expires_at) for message in batch]


def _retry_serial(queue: Queue, table: Table, bag: Bag, indexes: list[int]) -> int:
    """Those of one key are sent one after the other: here the first of each only."""
    for start in range(0, len(indexes), BATCH):
        table.retract(bag.name, indexes[start : start + BATCH])
    _send_missing(queue, table, bag, expires_at=_expires_at(bag))
    table.update_bag(bag.name, state=BagState.SEALED)
    return len(indexes)


def _without_row(table: Table, bag: Bag) -> Iterator[Message]:
    if bag.spec.serial:
        missing = set(range(bag.total)) - table.recorded(bag.name, range(bag.total))
        yield from (Message.of(bag, block, check=True) for block in heads(table.blocks(bag.name), missing))
        return
    for block in table.blocks(bag.name):
        if block.first + block.count > bag.total:
            return  # being added to an open bag: whoever does that sends it
        indexes = range(block.first, block.first + block.count)
        left = sorted(set(indexes) - table.recorded(bag.name, indexes))
        if len(left) == block.count and block.count <= (bag.spec.tasks_per_message or block.count):
            yield Message.of(bag, block, check=True)
        else:
            yield from _singles(bag, [block], iter(left))


def _singles(bag: Bag, blocks: Iterable[Block], wanted: Iterator[int]) -> Iterator[Message]:
    """A message for each wanted task; both come in the order of the tasks."""
    index = next(wanted, None)
    for block in blocks:
        if index is None:
            return
        if index >= block.first + block.count:
            continue
        message, rows = Message.of(bag, block, check=True), split_rows(block.rows)
        while index is not None and index < block.first + block.count:
            yield single(message, rows, index)
            index = next(wanted, None)


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    for message in messages:
        batch.append(message)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _send(queue: Queue, messages: list[Message]) -> None:
    send_all(queue, [fit(message, queue.limits.message_bytes) for message in messages])

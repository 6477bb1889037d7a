"""Writes down, once, what became of tasks; `mtask.worker.recorder` does so until it is done."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import msgspec

from mtask.errors import BagNotFoundError, SendError
from mtask.model import Bag, Message, Result
from mtask.packing import fit
from mtask.portion import Portion
from mtask.queue import Queue, send_all
from mtask.table import Table
from mtask.worker.items import Ends, Item, emptied, unsent_of
from mtask.worker.leases import LeaseKeeper

__all__ = ["Writer", "Written", "still_held"]

SEND_TRIES = 3
"""In a row, for what a batch leaves out; then it waits, and nothing else does."""


class Written(NamedTuple):
    """What came of it."""

    rows: list[Result | Portion]
    left: list[Item]
    """What can't be sent, and what becomes of the same messages; their rows are written."""
    error: SendError | None
    """Why."""


class Writer:
    """Rows to the table, messages to the queue, and the leases of what is settled."""

    def __init__(
        self,
        queue: Queue,
        table: Table,
        keeper: LeaseKeeper,
        on_over: Callable[[Bag], None],
        is_gone: Callable[[Bag], bool],
    ) -> None:
        """`on_over` and `is_gone`: see `Recorder`."""
        self._queue, self._table, self._keeper = queue, table, keeper
        self._on_over, self._is_gone = on_over, is_gone

    def write(self, batch: list[Item]) -> Written:
        """Rows first, then messages sent, then messages deleted; together where one database holds both. Raises what the
        table and the queue do; then some of it may be written."""
        bags = {item.held.bag.uid: item.held.bag for item in batch}
        gone = {uid for uid, bag in bags.items() if self._is_gone(bag)}
        batch = [emptied(item) if item.held.bag.uid in gone else item for item in batch]
        ends = Ends.of(batch)
        mine = ends.mine()
        transaction = self._table.transaction(self._queue)
        # In one database an extension waits for what is written here. Elsewhere the rows may take longer
        # than a lease, and who receives the message before they are there runs its tasks again.
        together = not isinstance(transaction, nullcontext)
        if together:
            self._keeper.forget(mine)
        try:
            with transaction:
                self._look_who_was_first(batch)
                rows = self._write_rows(batch)
                # What a lease was lost for meanwhile, its next holder sends: so the message must stay.
                sending = batch if together else still_held(self._keeper, [i for i in batch if i.sends])
                unsent = {item.held for item in batch if item.sends} - {item.held for item in sending}
                left, error = self._send(batch, [*sending, *self._followers(batch)])
                if left:
                    waiting = {item.held for item in left}
                    ends = Ends.of([item for item in batch if item.held not in waiting])
                if not together:
                    self._keeper.forget(ends.mine())
                if ended := ends.deleted(but=unsent):
                    self._queue.delete(ended)
                for held, delay_s in ends.released:
                    self._queue.release([held.delivery], delay_s=delay_s)
        except BaseException:
            self._keeper.add(mine)
            raise
        if left:
            self._keeper.add(set(mine) - set(ends.mine()))
        for held, n in ends.settled.items():
            held.unsettled -= n
        for held in ends.let_go:
            self._keeper.let_go(held)
        self._keeper.forget(ends.over)
        for bag in {held.bag.uid: held.bag for held in ends.over if held.bag.spec.then}.values():
            self._on_over(bag)
        return Written(rows, left, error)

    def _write_rows(self, batch: list[Item]) -> list[Result | Portion]:
        rows = [result for item in batch for result in item.results]
        attempts = [result for item in batch for result in item.attempts]
        dead = [item.dead for item in batch if item.dead]
        if rows:
            self._table.record(rows)
        if attempts:
            self._table.keep_attempts(attempts)
        if dead:
            self._table.set_aside(dead)
        return rows

    def _look_who_was_first(self, batch: list[Item]) -> None:
        """Of a task that was sent twice, only the first to end sends the next one: else all that come after
        it would run twice, too. Asked before the row is written, for the first time that this is tried."""
        for item in batch:
            held = item.held
            if item.results and held.message.then is not None and held.ended_before is None:
                held.ended_before = bool(self._table.recorded(held.bag.name, [held.message.first]))

    def _followers(self, batch: list[Item]) -> list[Item]:
        """What may be sent now that the task before it has ended (`Spec.serial`)."""
        found = []
        for item in batch:
            held = item.held
            if item.over and held.message.then is not None and not held.ended_before:
                try:
                    block = self._table.block(held.bag.name, held.message.then)
                    bag = self._table.bag(held.bag.name)
                except (KeyError, BagNotFoundError):
                    continue  # no submit came that far; `repair` sends what is left
                if bag.uid != held.bag.uid:
                    continue  # another one has its name now
                # In the present generation: its own one may have been cancelled and taken up again meanwhile.
                message = msgspec.structs.replace(
                    Message.of(bag, block, check=True), expires_at=held.message.expires_at
                )
                found.append(Item(held=held, sends=[(0.0, message)]))
        return found

    def _send(self, batch: list[Item], sending: list[Item]) -> tuple[list[Item], SendError | None]:
        """Returns what of the batch is left to do when some can't be sent, and why that is."""
        longest_s = self._queue.limits.delay_s
        by_delay: dict[float, list[tuple[Message, Message]]] = defaultdict(list)
        for item in sending:
            for delay_s, message in item.sends:
                fitted = message
                if delay_s > longest_s:
                    fitted = msgspec.structs.replace(message, not_before=time.time() + delay_s)
                fitted = fit(fitted, self._queue.limits.message_bytes)
                by_delay[min(delay_s, longest_s)].append((message, fitted))
        unsent: set[int] = set()
        refusal: SendError | None = None
        for delay_s, messages in by_delay.items():
            try:
                send_all(self._queue, [fitted for _, fitted in messages], delay_s=delay_s, tries=SEND_TRIES)
            except SendError as error:
                refusal = error
                failed = {id(message) for message, _ in error.unsent}
                found = {id(message) for message, fitted in messages if id(fitted) in failed}
                # Named by something else than what was given: it may be any of them.
                unsent |= found if len(found) >= len(failed) else {id(message) for message, _ in messages}
        waiting = {item.held for item in sending if any(id(message) in unsent for _, message in item.sends)}
        return [unsent_of(item, unsent) for item in batch if item.held in waiting], refusal


def still_held(keeper: LeaseKeeper, items: Sequence[Item]) -> list[Item]:
    """Those whose leases aren't lost, as far as is known now."""
    keeper.confirm({item.held for item in items})
    return [item for item in items if not item.held.lost]

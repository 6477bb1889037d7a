"""Writes results, and only then settles the messages they belong to (promises 3 and 6)."""

from __future__ import annotations

import math
import queue as stdlib_queue
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from mtask.errors import MtaskError, UnavailableError
from mtask.giveback import sends_copies
from mtask.model import Bag, DeadMessage, Message, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.retry import is_last, pause_s
from mtask.table import Table
from mtask.worker.held import Held
from mtask.worker.items import Item, as_refused, checking, singles
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.service import Service
from mtask.worker.writing import Writer, still_held

__all__ = ["Recorder"]

MOST_RESULTS = 20_000
MOST_BYTES = 64 * 1024 * 1024
"""The worker takes no further messages while this many results, or bytes of them, wait to be written."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
SLOW_S = 0.02
COMPANY, MOST_COMPANY_S = 0.1, 0.02
"""Where a write takes longer than `SLOW_S`, the first result waits for others for this part of that time: tasks that
began together end together, and the others would have to wait for the next write."""


class Recorder(Service):
    """Takes items from any thread; writes all that have gathered in one go, and keeps what fails."""

    def __init__(
        self,
        queue: Queue,
        table: Table,
        keeper: LeaseKeeper,
        notes: Notes,
        on_written: Callable[[Sequence[Result | Portion]], None],
        on_over: Callable[[Bag], None] = lambda _: None,
        is_gone: Callable[[Bag], bool] = lambda _: False,
    ) -> None:
        """`on_written` is called with the rows, when what has gathered is written; they may be none. `on_over`: with
        the bag of each message of which nothing is left, if something comes after it (`Spec.then`). `is_gone`: may
        another bag have this one's name by now? It may raise what the table raises."""
        super().__init__("recorder")
        self._queue, self._keeper, self._notes = queue, keeper, notes
        self._writer = Writer(queue, table, keeper, on_over, is_gone)
        self._on_written = on_written
        self._rows: list[Result | Portion] = []
        """Written since `on_written` was called."""
        self._items: stdlib_queue.SimpleQueue[Item | None] = stdlib_queue.SimpleQueue()
        self._unwritten = self._waiting = self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._refused: list[Item] = []
        """Those that don't pass by themselves either, and all that came later of the same messages."""
        self._refusal: MtaskError | None = None
        self._pause_s, self._again_s = FIRST_PAUSE_S, 0.0
        self._company_s = 0.0
        """How long the first result waits for others, by what the last write took."""
        self._stopping = False
        self._give_up_s = math.inf
        self._hurry = threading.Event()

    # -- what the other threads say -----------------------------------------------------------------

    def attempts_ended(self, held: Held, results: list[Result], size_bytes: int = 0) -> None:
        """Each of these attempts ended: the last attempts become rows, the others are tried again."""
        spec = held.bag.spec
        sends_ok = self._queue.limits.workers_send
        again = [r for r in results if sends_ok and r.state is State.FAILED and not is_last(spec, r)]
        sends, final = [], results
        if again:
            retried = {result.index for result in again}
            final = [result for result in results if result.index not in retried]
            for result in again:
                message = msgspec.structs.replace(held.single(result.index), attempt=result.attempt)
                sends.append((round(pause_s(spec, result), 1), message))
        self._put(
            Item(
                held=held,
                settles=len(results),
                results=final,
                attempts=again,
                sends=sends,
                over=len(final),
                size_bytes=size_bytes,
            )
        )

    def portion_done(self, held: Held, portion: Portion) -> None:
        """All tasks of it are done."""
        self._put(
            Item(
                held=held,
                settles=portion.count,
                results=[portion],
                over=portion.count,
                size_bytes=len(portion.lines),
            )
        )

    def final(self, held: Held, results: list[Result]) -> None:
        """These are the rows of the tasks, whatever the spec says about retries."""
        self._put(Item(held=held, settles=len(results), results=results, over=len(results)))

    def hand_on(self, held: Held, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        """Send these copies of some of the message's tasks, which are settled by it."""
        settles = sum(message.count for message in messages)
        self._put(Item(held=held, settles=settles, sends=[(delay_s, message) for message in messages]))

    def hand_over(self, held: Held, copies: Sequence[Message], *, delay_s: float) -> None:
        """Send guarded copies of the tasks that run, and hold the message no more; the tasks are recorded all the
        same. What becomes of them otherwise (another attempt, giving back) is left to who receives the copies."""
        self._items_put(Item(held=held, sends=[(delay_s, message) for message in copies], lets_go=True))

    def settle(self, held: Held, tasks: int) -> None:
        """So many of the message's tasks need nothing more."""
        self._put(Item(held=held, settles=tasks))

    def drop(self, held: Held, *, ended: bool = True) -> None:
        """Nothing is left to do for this message, of which nothing has begun: its tasks have `ended`, or were
        cancelled."""
        self._put(Item(held=held, settles=held.unsettled, over=int(ended)))

    def release(self, held: Held, *, delay_s: float = 0) -> None:
        """Give the message back as it is; nothing of it has begun."""
        if held.guarded_parts:
            self.settle(held, held.unsettled)
        elif sends_copies(self._queue.limits):  # as `give_back` does, but tried until it is done
            self.hand_on(held, [held.whole()], delay_s=delay_s)
        else:
            self._put(Item(held=held, release_s=delay_s))

    def set_aside(self, held: Held, dead: DeadMessage) -> None:
        """Keep the message where people find it; nothing of it can be run."""
        self._put(Item(held=held, settles=held.unsettled, dead=dead))

    def stop(self) -> None:
        """Write what there is and end."""
        self._items.put(None)

    def give_up_at(self, deadline_s: float) -> None:
        """Try what fails until this time (monotonic clock) only."""
        self._give_up_s = deadline_s
        if deadline_s <= time.monotonic():
            self._hurry.set()

    def full(self) -> bool:
        """Is so much waiting that the worker should take nothing more?"""
        return self._waiting >= MOST_RESULTS or self._waiting_bytes >= MOST_BYTES

    def quiet(self) -> bool:
        """Is all that it was told written?"""
        return not self._unwritten

    def _put(self, item: Item) -> None:
        if item.held.guarded_parts:
            item = msgspec.structs.replace(item, sends=())
        self._items_put(item)

    def _items_put(self, item: Item) -> None:
        self._count(item, 1)
        self._items.put(item)

    def _count(self, item: Item, sign: int) -> None:
        with self._lock:
            self._unwritten += sign
            self._waiting += sign * item.settles
            self._waiting_bytes += sign * item.size_bytes

    # -- the thread ---------------------------------------------------------------------------------

    def work(self) -> None:
        while not self._stopping or self._refused:
            batch = self._gathered()
            if batch:
                self._write_patiently(batch)
                self._count_off(batch)
            again = self._refused and (time.monotonic() >= self._again_s or self._hurry.is_set())
            if again:
                self._try_refused()
            if batch or again:
                rows, self._rows = self._rows, []
                self._on_written(rows)

    def _gathered(self) -> list[Item]:
        """All that there is, as soon as there is something (a little later, where writes are slow), or time to try
        again what was refused."""
        batch, results = [], 0
        wait_s = max(0.0, self._again_s - time.monotonic()) if self._refused else None
        if self._stopping:
            self._hurry.wait(wait_s)
            return []
        try:
            item = self._items.get(timeout=wait_s)
            until_s = time.monotonic() + self._company_s
            while True:
                if item is None:
                    self._stopping = True
                else:
                    batch.append(item)
                    results += item.settles
                if results >= MOST_RESULTS:
                    break
                left_s = 0.0 if self._stopping else until_s - time.monotonic()
                item = self._items.get(timeout=left_s) if left_s > 0 else self._items.get_nowait()
        except stdlib_queue.Empty:
            pass
        # What is said of one message is written in its order.
        refused = {item.held for item in self._refused}
        self._refused += [item for item in batch if item.held in refused]
        return [item for item in batch if item.held not in refused]

    def _count_off(self, items: Sequence[Item]) -> None:
        for item in items:
            self._count(item, -1)

    def _write_patiently(self, batch: list[Item]) -> None:
        """Until all is written but for what is refused. Raises UnavailableError after `give_up_at`."""
        pause_s = FIRST_PAUSE_S
        while batch := still_held(self._keeper, batch):
            try:
                self._refuse(self._write(batch))
                break
            except UnavailableError as problem:
                error = problem
            except MtaskError:
                self._refuse(self._write_singly(batch))
                break
            self._trouble(error)
            # What was sent may have arrived nevertheless.
            batch = [checking(item) for item in batch]
            self._hurry.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if not self._refused:
            self._notes.well("table or queue")

    def _trouble(self, error: MtaskError) -> None:
        self._notes.trouble("table or queue", error)
        if time.monotonic() >= self._give_up_s:
            raise UnavailableError(
                f"the last results can't be written, so their tasks will run again: {error}"
            ) from error

    def _refuse(self, items: list[Item]) -> None:
        """Keep them for later: nothing else is to wait for them."""
        for item in items:
            self._count(item, 1)
        self._refused += items
        if items and self._refusal is not None:
            self._again_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._trouble(self._refusal)

    def _try_refused(self) -> None:
        before, self._refused = self._refused, []
        left = still_held(self._keeper, before)
        if left:
            try:
                left = self._write(left)
            except MtaskError:
                left = self._write_singly(left)
        try:
            self._refuse(left)
        finally:
            self._count_off(before)
        if not left:
            self._pause_s = FIRST_PAUSE_S
            self._notes.well("table or queue")

    def _write_singly(self, batch: list[Item]) -> list[Item]:
        """One of these is refused: find out which, and let the others pass.

        A refused result becomes a failure that says so; returns the items for which that is refused, too.
        """
        left = []
        for item in [single for several in batch for single in singles(checking(several))]:
            try:
                left += self._write([item])
            except UnavailableError as error:  # not of what is in it
                self._refusal = error
                left.append(item)
            except MtaskError as error:
                self._refusal = error
                try:
                    left += self._write([as_refused(item, error)])
                except MtaskError:
                    left.append(item)
        return left

    def _write(self, batch: list[Item]) -> list[Item]:
        """Returns what can't be sent, and what becomes of the same messages."""
        began_s = time.monotonic()
        written = self._writer.write(batch)
        took_s = time.monotonic() - began_s
        self._company_s = min(COMPANY * took_s, MOST_COMPANY_S) if took_s > SLOW_S else 0.0
        self._rows += written.rows
        if written.error is not None:
            self._refusal = written.error
        return written.left

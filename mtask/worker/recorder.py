"""Writes results, and only then settles the messages they belong to (promises 3 and 6)."""

from __future__ import annotations

import math
import queue as stdlib_queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from mtask.errors import BagNotFoundError, MtaskError, SendError, UnavailableError
from mtask.giveback import sends_copies
from mtask.model import Bag, DeadMessage, Message, Result, State
from mtask.packing import fit
from mtask.portion import Portion
from mtask.queue import Queue, send_all
from mtask.retry import is_last, pause_s
from mtask.table import Table
from mtask.worker.held import Held
from mtask.worker.items import Item, as_refused, checking, emptied, singles
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.service import Service

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
        self._queue, self._table, self._keeper, self._notes = queue, table, keeper, notes
        self._on_written, self._on_over, self._is_gone = on_written, on_over, is_gone
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
        while batch := self._still_held(batch):
            try:
                self._write(batch)
                break
            except (UnavailableError, SendError) as problem:
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

    def _still_held(self, items: list[Item]) -> list[Item]:
        self._keeper.confirm({item.held for item in items})
        return [item for item in items if not item.held.lost]

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
        left = self._still_held(before)
        if left:
            try:
                self._write(left)
                left = []
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
                self._write([item])
            except (UnavailableError, SendError) as error:  # not of what is in it
                self._refusal = error
                left.append(item)
            except MtaskError as error:
                self._refusal = error
                try:
                    self._write([as_refused(item, error)])
                except MtaskError:
                    left.append(item)
        return left

    def _write(self, batch: list[Item]) -> None:
        """Rows first, then messages sent, then messages deleted; together where one database holds both."""
        bags = {item.held.bag.uid: item.held.bag for item in batch}
        gone = {uid for uid, bag in bags.items() if self._is_gone(bag)}
        batch = [emptied(item) if item.held.bag.uid in gone else item for item in batch]
        settled: dict[Held, int] = defaultdict(int)
        for item in batch:
            settled[item.held] += item.settles
        over = [held for held, n in settled.items() if n >= held.unsettled]
        released = [(i.held, i.release_s) for i in batch if i.release_s is not None]
        let_go = [item.held for item in batch if item.lets_go]
        # Of what runs on without a lease, the heartbeat tells until its rows are written.
        mine = [held for held in (*over, *(held for held, _ in released), *let_go) if not held.let_go]
        self._keeper.forget(mine)
        began_s = time.monotonic()
        try:
            with self._table.transaction(self._queue):
                self._look_who_was_first(batch)
                rows = self._write_rows(batch)
                self._send([*batch, *self._followers(batch)])
                if ended := [held.delivery for held in {*over, *let_go} if not held.let_go]:
                    self._queue.delete(ended)
                for held, delay_s in released:
                    self._queue.release([held.delivery], delay_s=delay_s)
        except BaseException:
            self._keeper.add(mine)
            raise
        took_s = time.monotonic() - began_s
        self._company_s = min(COMPANY * took_s, MOST_COMPANY_S) if took_s > SLOW_S else 0.0
        self._rows += rows
        for held, n in settled.items():
            held.unsettled -= n
        for held in let_go:
            self._keeper.let_go(held)
        self._keeper.forget(over)
        for bag in {held.bag.uid: held.bag for held in over if held.bag.spec.then}.values():
            self._on_over(bag)

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

    def _send(self, batch: list[Item]) -> None:
        longest_s = self._queue.limits.delay_s
        by_delay: dict[float, list[Message]] = defaultdict(list)
        for item in batch:
            for delay_s, message in item.sends:
                if delay_s > longest_s:
                    message = msgspec.structs.replace(message, not_before=time.time() + delay_s)
                by_delay[min(delay_s, longest_s)].append(fit(message, self._queue.limits.message_bytes))
        for delay_s, messages in by_delay.items():
            send_all(self._queue, messages, delay_s=delay_s)

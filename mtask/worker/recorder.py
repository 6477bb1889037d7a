"""Writes results, and only then settles the messages they belong to (promises 3 and 6)."""

from __future__ import annotations

import queue as stdlib_queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from mtask.errors import BackendError
from mtask.model import DeadMessage, Delivery, Message, Result, State
from mtask.packing import fit, single
from mtask.queue import Queue, send_all
from mtask.retry import backoff_s, is_last
from mtask.table import Table
from mtask.worker.held import Held
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes

__all__ = ["Recorder"]

MOST_RESULTS = 20_000
"""The worker takes no further messages while this many results wait to be written."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be written down: what became of `settles` tasks of a held message."""

    held: Held | None
    settles: int = 0
    results: Sequence[Result] = ()
    attempts: Sequence[Result] = ()
    sends: Sequence[tuple[float, Message]] = ()
    """(delay in seconds, message)."""
    release_s: float | None = None
    """Give the whole message back after this delay."""
    dead: tuple[Delivery, DeadMessage] | None = None


class Recorder(threading.Thread):
    """Takes items from any thread; writes all that have gathered in one go, and keeps what fails."""

    def __init__(
        self, queue: Queue, table: Table, keeper: LeaseKeeper, notes: Notes, on_written: Callable[[], None]
    ) -> None:
        super().__init__(name="mtask-recorder", daemon=True)
        self._queue, self._table, self._keeper, self._notes = queue, table, keeper, notes
        self._on_written = on_written
        self._items: stdlib_queue.SimpleQueue[Item | None] = stdlib_queue.SimpleQueue()
        self._waiting, self._lock = 0, threading.Lock()

    # -- what the other threads say -----------------------------------------------------------------

    def attempts_ended(self, held: Held, results: list[Result]) -> None:
        """Each of these attempts ended: the last attempts become rows, the others are tried again."""
        spec, failed = held.bag.spec, [r for r in results if r.state is not State.DONE]
        again = [r for r in failed if r.state is State.FAILED and not is_last(spec, r.attempt)]
        sends = []
        if again:
            retried = {result.index for result in again}
            results_final = [result for result in results if result.index not in retried]
            for result in again:
                message = single(held.message, held.rows, result.index)
                message = msgspec.structs.replace(message, attempt=result.attempt)
                sends.append((round(backoff_s(spec, result.attempt), 1), message))
        else:
            results_final = results
        self._count(len(results))
        self._items.put(
            Item(held=held, settles=len(results), results=results_final, attempts=again, sends=sends)
        )

    def final(self, held: Held, results: list[Result]) -> None:
        """These are the rows of the tasks, whatever the spec says about retries."""
        self._count(len(results))
        self._items.put(Item(held=held, settles=len(results), results=results))

    def hand_on(self, held: Held, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        """Send these copies of some of the message's tasks, which are settled by it."""
        settles = sum(message.count for message in messages)
        self._items.put(Item(held=held, settles=settles, sends=[(delay_s, message) for message in messages]))

    def settle(self, held: Held, tasks: int) -> None:
        """So many of the message's tasks need nothing more."""
        self._items.put(Item(held=held, settles=tasks))

    def drop(self, held: Held) -> None:
        """Nothing is left to do for this message."""
        self._items.put(Item(held=held, settles=held.unsettled))

    def release(self, held: Held, *, delay_s: float = 0) -> None:
        """Give the message back as it is."""
        self._items.put(Item(held=held, release_s=delay_s))

    def set_aside(self, delivery: Delivery, dead: DeadMessage, held: Held | None = None) -> None:
        self._items.put(Item(held=held, dead=(delivery, dead)))

    def stop(self) -> None:
        """Write what there is and end."""
        self._items.put(None)

    def full(self) -> bool:
        """Are so many results waiting that the worker should take nothing more?"""
        return self._waiting >= MOST_RESULTS

    def _count(self, n: int) -> None:
        with self._lock:
            self._waiting += n

    # -- the thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        stopping = False
        while not stopping:
            batch, results = [], 0
            item = self._items.get()
            while True:
                if item is None:
                    stopping = True
                else:
                    batch.append(item)
                    results += len(item.results)
                if results >= MOST_RESULTS or self._items.empty():
                    break
                item = self._items.get()
            if batch:
                self._write_patiently(batch)
                self._count(-sum(len(item.results) + len(item.attempts) for item in batch))
                self._on_written()

    def _write_patiently(self, batch: list[Item]) -> None:
        pause_s = 0.1
        while True:
            batch = [item for item in batch if item.held is None or not item.held.lost]
            try:
                self._write(batch)
            except BackendError as error:
                self._notes.trouble("table or queue", error)
            else:
                self._notes.well("table or queue")
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    def _write(self, batch: list[Item]) -> None:
        """Rows first, then messages sent, then messages deleted; together where one database holds both."""
        settled: dict[Held, int] = defaultdict(int)
        for item in batch:
            if item.held is not None:
                settled[item.held] += item.settles
        over = [held for held, n in settled.items() if n >= held.unsettled]
        released = [(i.held, i.release_s) for i in batch if i.held is not None and i.release_s is not None]
        mine = over + [held for held, _ in released] + [i.held for i in batch if i.dead and i.held]
        self._keeper.forget(mine)
        try:
            with self._table.transaction(self._queue):
                self._write_rows(batch)
                self._send(batch)
                self._queue.delete(
                    [held.delivery for held in over] + [item.dead[0] for item in batch if item.dead]
                )
                for held, delay_s in released:
                    self._queue.release([held.delivery], delay_s=delay_s or 0)
        except BackendError:
            self._keeper.add(mine)
            raise
        for held, n in settled.items():
            held.unsettled -= n

    def _write_rows(self, batch: list[Item]) -> None:
        rows = [result for item in batch for result in item.results]
        attempts = [result for item in batch for result in item.attempts]
        dead = [item.dead[1] for item in batch if item.dead]
        if rows:
            self._table.record(rows)
        if attempts:
            self._table.keep_attempts(attempts)
        if dead:
            self._table.set_aside(dead)

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


"""A worker's heartbeat, and its look at which bags were cancelled."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import msgspec

import mtask
from mtask.errors import BackendError
from mtask.heartbeat import Running, WorkerStatus
from mtask.table import Table
from mtask.worker.runner import HOSTNAME
from mtask.worker.service import Service

if TYPE_CHECKING:
    from mtask.worker.supervisor import Worker

__all__ = ["Pulse"]

BEAT_S = 2.0
"""Between two heartbeats, if the table has no `beat_s` of its own."""
ROLES_BEAT_S = 2.0
"""At least as often beats who takes its role from the table."""
LOOK_S = 5.0
"""Between two looks at the table, however rarely the worker beats: a cancelled bag is to stop soon."""
CLEAN_S = 3600.0
"""How often a worker looks for lanes that nobody uses any more."""


class Pulse(Service):
    """Beats as often as the table wants; stays out of the way when the table is away."""

    def __init__(self, worker: Worker, table: Table) -> None:
        super().__init__("pulse")
        self._worker, self._table = worker, table
        self._wake, self._stopped = threading.Event(), False
        self._beat_s: float = getattr(table, "beat_s", BEAT_S)
        if worker.options.takes:  # the others of its pool make up for it when it dies
            self._beat_s = min(self._beat_s, ROLES_BEAT_S)
        self._beat_at_s = 0.0
        """When the next beat is due (monotonic clock)."""
        self._soon = False
        self._started_at = time.time()
        self._last = (time.monotonic(), 0)
        self._rate = 0.0
        self._cleaned_s = -CLEAN_S
        self._looked = not worker.options.lanes
        """At all bags; not where it serves what it was handed."""

    def beat_soon(self) -> None:
        self._soon = True
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def work(self) -> None:
        self._worker.expenses.start()
        while True:
            stopped = self._stopped
            try:
                self._worker.expenses.look(self._worker.bags_in_use())
                if stopped:
                    self._beat_for_the_last_time()
                else:
                    self._beat_if_due()
                    self._worker.limits.renew()
                    self._clean_now_and_then()
                    self._worker.cancelled(self._worker.bags.refresh(self._worker.bags_in_use()))
                    if not self._looked:
                        self._look_at_all_bags()
                        self._looked = True
                    for bag in self._worker.bags.known():  # who wrote its last row may have died then
                        self._worker.submits.look_whether_done(bag)
                    self._worker.ahead.refresh()
                    self._worker.notes.well("table")
            except BackendError as error:
                self._beat_at_s = 0.0
                if not stopped:
                    self._worker.notes.trouble("table", error)
            if stopped:
                return
            self._wake.wait(min(self._beat_s, LOOK_S))
            self._wake.clear()

    def _look_at_all_bags(self) -> None:
        """A bag that this version can't read is no reason to leave the others alone."""
        try:
            bags = self._table.bags(skipped=lambda error: self._worker.notes.once(str(error)))
            self._worker.submits.look_whether_any_is_done(bags)
        except (msgspec.MsgspecError, ValueError) as error:
            self._worker.notes.once(
                f"whether any bag waits only for the task that comes after it can't be seen: {error}"
            )

    def _beat_if_due(self) -> None:
        soon, self._soon = self._soon, False
        if soon or time.monotonic() >= self._beat_at_s:
            self._worker.expenses.settle(self._table)
            self._table.beat(self.status())
            # A little early rather than a whole look late.
            self._beat_at_s = time.monotonic() + self._beat_s - min(self._beat_s, LOOK_S) / 2

    def _beat_for_the_last_time(self) -> None:
        try:
            self._worker.expenses.settle(self._table, everything=True)
        finally:  # what isn't in the accounts is in the beat
            # What runs on without a message is settled by now, unless that couldn't be written: then others see to it.
            self._table.beat(self.status(None if self._worker.running_on() else "stopped"))
            self._worker.limits.leave()

    def _clean_now_and_then(self) -> None:
        if time.monotonic() - self._cleaned_s > CLEAN_S:
            self._cleaned_s = time.monotonic()
            self._worker.queue.clean(self._table)

    def status(self, state: str | None = None) -> WorkerStatus:
        """What the worker does now; `state` instead of the true one."""
        worker, now_s = self._worker, time.monotonic()
        ended = worker.outcomes.ended
        last_s, last_ended = self._last
        if now_s - last_s >= 1.0:
            self._rate = (ended - last_ended) / (now_s - last_s)
            self._last = now_s, ended
        return WorkerStatus(
            worker=worker.name,
            host=HOSTNAME,
            pid=os.getpid(),
            slots=len(worker.slots),
            state=state or ("draining" if worker.draining else "working"),  # type: ignore[arg-type]
            running=self._running(),
            done=worker.outcomes.done,
            failed=worker.outcomes.failed,
            rate=round(self._rate, 3),
            can=worker.can,
            roles=worker.roles,
            takes=worker.options.takes,
            cannot=worker.bags.given_back(),
            started_at=self._started_at,
            used=worker.expenses.by_bag(),
            interval_s=self._beat_s,
            version=mtask.__version__,
        )

    def _running(self) -> tuple[Running, ...]:
        """Read from another thread than the one that runs the slots: a moment's picture, good enough to show."""
        running = []
        for slot in self._worker.slots:
            with contextlib.suppress(IndexError, ValueError, AttributeError, RuntimeError):
                found = slot.runner.running() if slot.runner is not None else None
                if found is not None:
                    job, offset, since_s = found
                    index = job.held.message.first + offset
                    running.append(Running(bag=job.held.bag.name, index=index, since=time.time() - since_s))
        return tuple(running + self._running_on({(each.bag, each.index) for each in running}))

    def _running_on(self, shown: set[tuple[str, int]]) -> list[Running]:
        """What others leave alone because it is in this heartbeat: all of it, until it is written."""
        now_s, now = time.monotonic(), time.time()
        return [
            Running(bag=held.bag.name, index=index, since=now - (now_s - held.received_s))
            for held in self._worker.running_on()
            for start, stop in held.guarded_parts
            for index in range(held.message.first + start, held.message.first + stop)
            if (held.bag.name, index) not in shown
        ]

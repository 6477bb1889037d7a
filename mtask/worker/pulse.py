"""A worker's heartbeat, and its look at which bags were cancelled."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import mtask
from mtask.errors import BackendError
from mtask.model import Running, WorkerStatus
from mtask.table import Table
from mtask.worker.runner import HOSTNAME
from mtask.worker.service import Service

if TYPE_CHECKING:
    from mtask.worker.supervisor import Worker

__all__ = ["Pulse"]

BEAT_S = 2.0
CLEAN_S = 3600.0
"""How often a worker looks for lanes that nobody uses any more."""


class Pulse(Service):
    """Beats every `BEAT_S`; stays out of the way when the table is away."""

    def __init__(self, worker: Worker, table: Table) -> None:
        super().__init__("pulse")
        self._worker, self._table = worker, table
        self._wake, self._stopped = threading.Event(), False
        self._started_at = time.time()
        self._last = (time.monotonic(), 0)
        self._rate = 0.0
        self._cleaned_s = -CLEAN_S

    def beat_soon(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def work(self) -> None:
        while True:
            stopped = self._stopped
            try:
                self._table.beat(self.status("stopped" if stopped else None))
                if stopped:
                    self._worker.limits.leave()
                else:
                    self._worker.limits.renew()
                    self._clean_now_and_then()
                    self._worker.cancelled(self._worker.bags.refresh(self._worker.bags_in_use()))
                    self._worker.ahead.refresh()
                    self._worker.notes.well("table")
            except BackendError as error:
                if not stopped:
                    self._worker.notes.trouble("table", error)
            if stopped:
                return
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _clean_now_and_then(self) -> None:
        if time.monotonic() - self._cleaned_s > CLEAN_S:
            self._cleaned_s = time.monotonic()
            self._worker.queue.clean(self._table)

    def status(self, state: str | None = None) -> WorkerStatus:
        """What the worker does now; `state` instead of the true one."""
        worker, now_s = self._worker, time.monotonic()
        ended = worker.done + worker.failed
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
            done=worker.done,
            failed=worker.failed,
            rate=round(self._rate, 3),
            can=worker.can,
            cannot=worker.bags.given_back(),
            started_at=self._started_at,
            interval_s=BEAT_S,
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
        return tuple(running)

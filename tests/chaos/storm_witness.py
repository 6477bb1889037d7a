"""Why a task of a storm ran twice: what was given to whom, and what happened to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.harness import WorkerProcess

__all__ = ["Fault", "Receipt", "Run", "Witness", "received"]

SETTLE_S = 2.0
"""After a worker woke up, or the queue came back: until everyone knows what was lost meanwhile."""


class Fault(NamedTuple):
    kind: str
    worker: WorkerProcess | None
    """None: all of them."""
    begin_s: float
    end_s: float


class Run(NamedTuple):
    """A line of the log: this process of this worker began a task."""

    index: int
    child: int
    worker: int
    at_s: float


class Receipt(NamedTuple):
    """A line of the workers' own log: one of them was given these tasks."""

    first: int
    stop: int
    deliveries: int
    worker: int
    at_s: float

    @property
    def tasks(self) -> range:
        return range(self.first, self.stop)


def received(log: Path, bag: str) -> list[Receipt]:
    """Of this bag's tasks."""
    found = []
    for line in log.read_text().splitlines():
        name, first, stop, deliveries, worker, at_s = line.split()
        if name == bag:
            found.append(Receipt(int(first), int(stop), int(deliveries), int(worker), float(at_s)))
    return found


class Witness:
    """What is known of a bag's blocks."""

    def __init__(
        self, workers: Sequence[WorkerProcess], faults: Sequence[Fault], receipts: Iterable[Receipt]
    ) -> None:
        self._workers, self._faults, self._receipts = workers, faults, list(receipts)
        self._blocks: dict[int, list[Run]] = defaultdict(list)
        self._block_of: dict[int, int] = {}
        self._given: dict[int, list[Receipt]] = {}
        """By block, of the tasks that ran."""

    def saw(self, block: int, runs: Sequence[Run]) -> None:
        """Some tasks of the block ran. To be told of all before anything is asked."""
        self._blocks[block] += runs
        self._block_of |= {run.index: block for run in runs}

    def explains(self, second: Run) -> bool:
        """Was a worker that was given tasks of this block hit before this run began, or had one slept meanwhile?

        One that dies with a message leaves twins: what it has sent of it in pieces, and the message itself; perhaps it has
        run nothing of it. A queue out of reach counts for all workers: whose lease runs out meanwhile stops too late. So
        does a worker that says itself that it lost a lease: on a machine this busy it may be late with its extension. A
        table out of reach is no reason: leases are kept meanwhile.
        """
        for each in self._events(second):
            if each.at_s > second.at_s:
                continue
            worker = self._worker(each)
            if worker is not None and "lease was lost" in worker.said():
                return True
            for fault in self._faults:
                hit = fault.worker is worker or fault.kind == "queue_outage"
                if hit and fault.begin_s <= second.at_s and fault.end_s + SETTLE_S >= each.at_s:
                    return True
        return False

    def story(self, second: Run) -> str:
        """What happened to the task, in order, and to all workers: for people."""
        events: list[tuple[float, object]] = []
        for each in self._events(second):
            if each.index == second.index if isinstance(each, Run) else second.index in each.tasks:
                events.append((each.at_s, each))
        for fault in self._faults:
            events.append((fault.begin_s, f"{fault.kind} of {fault.worker.pid if fault.worker else 'all'}"))
        events.sort(key=lambda event: event[0])
        lines = [f"  {at_s - second.at_s:+8.2f} s {what}" for at_s, what in events]
        return "\n".join([f"task {second.index}, with the times before its second run:", *lines])

    def _events(self, run: Run) -> Iterable[Run | Receipt]:
        """Of the whole block."""
        if not self._given:
            for receipt in self._receipts:
                for block in {self._block_of[index] for index in receipt.tasks if index in self._block_of}:
                    self._given.setdefault(block, []).append(receipt)
        block = self._block_of[run.index]
        return [*self._blocks[block], *self._given.get(block, [])]

    def _worker(self, run: Run | Receipt) -> WorkerProcess | None:
        known = [w for w in self._workers if w.pid == run.worker and w.started_at <= run.at_s]
        return known[-1] if known else None

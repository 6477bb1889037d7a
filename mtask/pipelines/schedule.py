"""Which task of a DAG may start now: pure, so that it can be tested with any DAG.

Among the ready tasks that fit into what is free of the host, the one with the highest priority starts, and of
several the one that comes first in the file. One that doesn't fit holds up none that does.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

from mtask.pipelines.dag import Dag

__all__ = ["Room", "Schedule"]


@dataclass(frozen=True, slots=True)
class Room:
    """What there is of the host for tasks."""

    slots: int
    cpus: int
    memory_mb: int

    def holds(self, cpus: int, memory_mb: int) -> bool:
        """Does such a task fit, on a host that runs nothing else?"""
        return cpus <= self.cpus and memory_mb <= self.memory_mb


class Schedule:
    """The state of a run. All that is free is counted in whole numbers, which don't drift.

    Raises ValueError for a task that doesn't fit into an empty host: it would wait for ever.
    """

    def __init__(self, dag: Dag, room: Room, *, done: Collection[int] = (), max_failures: int = 0) -> None:
        """`done`: tasks that are done already; no task starts after `max_failures` have failed (0: any number)."""
        for task in dag.tasks:
            if not room.holds(task.cpus, task.memory_mb):
                raise ValueError(f"task {task.name!r} doesn't fit")
        self.dag, self.room, self._max_failures = dag, room, max_failures
        self.slots, self.cpus, self.memory_mb = room.slots, room.cpus, room.memory_mb
        """Free now."""
        self.running: dict[int, int] = {}
        """Task → its attempt's number, from 1."""
        self.done, self.failed = set(done), set[int]()
        self.stopped = False
        """Nothing more is started."""
        self._unended: set[int] = set()
        """Their processes have gone, but what is behind them isn't free yet."""
        self._attempts: dict[int, int] = {}
        self._waits = list(dag.parents)
        self._ready: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """What tasks take → heap of these (priority, negated; place in the file)."""
        for at in self.done:
            for child in dag.children[at]:
                self._waits[child] -= 1
        for at, waits in enumerate(self._waits):
            if not waits and at not in self.done:
                self._is_ready(at)

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing can start any more."""
        return not self.running and not self._unended and (self.stopped or not self._ready)

    def next(self) -> int | None:
        """Start a task, which takes its part of the host; None: none may start now."""
        if self.stopped or not self.slots:
            return None
        fitting = [
            (heap[0], needs)
            for needs, heap in self._ready.items()
            if needs[0] <= self.cpus and needs[1] <= self.memory_mb
        ]
        if not fitting:
            return None
        needs = min(fitting)[1]
        at = heapq.heappop(self._ready[needs])[1]
        if not self._ready[needs]:
            del self._ready[needs]
        self._take(at, 1)
        self.running[at] = self._attempts[at] = self._attempts.get(at, 0) + 1
        return at

    def gone(self, at: int) -> None:
        """Its process has ended: give its part of the host back. To be followed by `ended`."""
        del self.running[at]
        self._unended.add(at)
        self._take(at, -1)

    def ended(self, at: int, *, success: bool) -> bool:
        """Its end is written down: what waited for it may start, or it itself once more. Will it?"""
        self._unended.remove(at)
        if success:
            self.done.add(at)
            for child in self.dag.children[at]:
                self._waits[child] -= 1
                if not self._waits[child] and child not in self.done:
                    self._is_ready(child)
            return False
        if self._attempts[at] < self.dag.tasks[at].tries and not self.stopped:
            self._is_ready(at)
            return True
        self.failed.add(at)
        if self._max_failures and len(self.failed) >= self._max_failures:
            self.stop()
        return False

    def stop(self) -> None:
        """Nothing more is to start; what was to be tried again has failed."""
        self.stopped = True
        waiting = {at for heap in self._ready.values() for _, at in heap}
        self.failed |= waiting & self._attempts.keys()

    def _is_ready(self, at: int) -> None:
        task = self.dag.tasks[at]
        heap = self._ready.setdefault((task.cpus, task.memory_mb), [])
        heapq.heappush(heap, (-task.priority, at))

    def _take(self, at: int, sign: int) -> None:
        task = self.dag.tasks[at]
        self.slots -= sign
        self.cpus -= sign * task.cpus
        self.memory_mb -= sign * task.memory_mb

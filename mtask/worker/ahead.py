"""How many tasks each slot of all workers has ahead of it: that says how small a message should be cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mtask.errors import BagNotFoundError
from mtask.model import Bag
from mtask.table import Table

__all__ = ["Ahead"]

COUNT_S = 5.0
"""Between two looks at how many tasks are left of a bag."""
WORKERS_S = 10.0
PER_WORKER_S = 0.05
"""Between two looks at all heartbeats: the first, or the second for each worker, so that those of a large fleet
don't keep the table busy by reading of each other."""
OLD_S = 30.0
"""What was read longer ago says nothing any more; and what wasn't asked for so long isn't read again."""


class Ahead:
    """Answers at once from what was read last; `refresh` reads, which may take long, in another thread."""

    def __init__(
        self,
        table: Table,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._table, self._clock, self._wall = table, clock, wall
        self._asked: dict[str, tuple[Bag, float]] = {}
        """By uid: the bag, and when it was asked for last."""
        self._left: dict[str, tuple[int, float]] = {}
        """By uid: its tasks without a row, and when they were counted."""
        self._slots = 0
        self._workers_at_s = -OLD_S
        """When to look at the heartbeats again."""
        self._lock = threading.Lock()

    def tasks_a_slot(self, bag: Bag) -> float:
        """Of this bag; 0: not known, or not any more."""
        now_s = self._clock()
        with self._lock:
            self._asked[bag.uid] = bag, now_s
            left, counted_s = self._left.get(bag.uid, (0, now_s))
        return left / self._slots if self._slots and now_s - counted_s < OLD_S else 0.0

    def refresh(self) -> None:
        """Read again what was asked for lately and is due."""
        now_s = self._clock()
        with self._lock:
            for uid in [uid for uid, (_, asked_s) in self._asked.items() if now_s - asked_s > OLD_S]:
                del self._asked[uid]
                self._left.pop(uid, None)
            due = [
                bag
                for uid, (bag, _) in self._asked.items()
                if uid not in self._left or now_s - self._left[uid][1] >= COUNT_S
            ]
        if due and now_s >= self._workers_at_s:
            now, workers = self._wall(), self._table.workers()
            self._slots = sum(w.slots for w in workers if w.state == "working" and w.alive(now))
            self._workers_at_s = now_s + max(WORKERS_S, PER_WORKER_S * len(workers))
        for bag in due:
            try:
                left = self._table.counts(bag.name).left
            except BagNotFoundError:
                left = 0
            with self._lock:
                self._left[bag.uid] = left, now_s

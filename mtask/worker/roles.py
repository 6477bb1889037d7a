"""The role of a worker that takes it from the table, and this worker's part in keeping the split; see `mtask.roles`."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal

from mtask.errors import BackendError
from mtask.heartbeat import WorkerStatus
from mtask.model import BagState
from mtask.roles import (
    AUTO,
    BY_BACKLOG,
    Split,
    follow,
    offered,
    open_by_role,
    read,
    swap,
    unasked,
)
from mtask.table import Table, leave_out
from mtask.worker.notes import Notes
from mtask.worker.service import Service

__all__ = ["RoleKeeper"]

LOOK_S = 1.0
"""Between two looks at the split; `LOOK_CLOUD_S` where the table says how often it wants heartbeats."""
LOOK_CLOUD_S = 2.0
PER_WORKER_S = 0.05
"""Between two looks at all heartbeats, times the workers of the pool, so that a large one doesn't keep the table busy."""
DEAD_S = 6.0
"""A worker whose heartbeat stands still for so long, by the clock of who looks, has died. If not, it enters itself again."""
SKEW_S = 60.0
"""A heartbeat that is older than one's own by so much is of a worker that died before; clocks differ by less."""
AGAIN_S = 0.3
"""At most so long, by chance, waits who wanted to change the split and found that another has."""
BACKLOG_S = 3.0
"""Between two looks at the backlog."""
FINISHED_S = 30.0
"""The same at bags in which nothing was left."""
STAY_S = 10.0
"""By backlog, roles are changed so often at most, unless there are open tasks that nobody serves."""
LATELY_S = 15.0
"""A role that had open tasks so lately keeps its last worker, if no other needs it."""


class RoleKeeper(Service):
    """Looks at the split, mends it, and tells `on_role` when this worker's role is another."""

    def __init__(
        self,
        table: Table,
        worker: str,
        pool: Literal["auto", "by-backlog"],
        notes: Notes,
        on_role: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("roles")
        self._table, self._worker, self._pool = table, worker, pool
        self._notes, self._on_role, self._clock = notes, on_role, clock
        self._stopped = threading.Event()
        self._every_s = LOOK_CLOUD_S if getattr(table, "beat_s", None) else LOOK_S
        self._role = ""
        self._look_at_s = 0.0
        """When to look at the heartbeats again."""
        self._seen: dict[str, tuple[float, float]] = {}
        """Worker → its last heartbeat, and since when it stands still (by our clock)."""
        self._offered: set[str] = set()
        self._backlog = Backlog(table, clock)

    def stop(self) -> None:
        self._stopped.set()

    def work(self) -> None:
        pause_s = 0.0
        while not self._stopped.wait(pause_s):
            try:
                pause_s = self._every_s if self.look() else random.uniform(0.0, AGAIN_S)
                self._notes.well("table")
            except BackendError as error:
                self._notes.trouble("table", error)
                pause_s = self._every_s
        with contextlib.suppress(BackendError):
            self.leave()

    def look(self) -> bool:
        """Once: at the split, and now and then at the heartbeats and the backlog. False: others were quicker to
        change it."""
        split, version = read(self._table, self._pool)
        gone = self._gone(split)
        new = split.among([*(each for each in split.held if each not in gone), self._worker])
        follows = False
        if self._pool == BY_BACKLOG and self._worker == min(new.held):
            before, new = new, self._backlog.followed(new, self._offered)
            follows = new != before
        written = new == split or swap(self._table, self._pool, new, version)
        if follows:
            self._backlog.changed(written)
        if not written:
            return False
        self._tell(new)
        return True

    def leave(self) -> None:
        """Another may have the role of this worker now; it is no matter if others notice that it's gone by themselves."""
        split, version = read(self._table, self._pool)
        if self._worker in split.held:
            swap(self._table, self._pool, split.among(split.held.keys() - {self._worker}), version)

    def _gone(self, split: Split) -> set[str]:
        """Those of the pool that have died, or are about to stop."""
        now_s = self._clock()
        if now_s < self._look_at_s:
            return set()
        self._look_at_s = now_s + PER_WORKER_S * len(split.held)
        workers = {each.worker: each for each in self._table.workers()}
        own = workers.get(self._worker)
        self._offered = offered(each for each in workers.values() if not _has_stopped(each, own))
        seen, self._seen = self._seen, {self._worker: (0.0, now_s)}
        gone = set()
        for name in split.held.keys() - {self._worker}:
            status = workers.get(name)
            beat_at = status.beat_at if status is not None else 0.0
            last_at, since_s = seen.get(name, (beat_at, now_s))
            self._seen[name] = beat_at, (since_s if beat_at == last_at else now_s)
            if _has_stopped(status, own) or now_s - self._seen[name][1] >= DEAD_S:
                gone.add(name)
        return gone

    def _tell(self, split: Split) -> None:
        role = split.held.get(self._worker, "")
        if not role and self._pool == AUTO:
            self._notes.once("no roles are set, this worker waits; `mtask roles set ROLE=N …` sets them")
        elif not role:
            self._notes.once("no bag asks for a role, this worker waits")
        if role != self._role:
            self._role = role
            self._on_role(role)  # before the table is asked, which may fail
            if role and (problem := unasked(self._table, [role])):
                self._notes.once(f"{problem}; this worker waits for one that does")


class Backlog:
    """What is open of each role, and what follows from that; asked by one worker of the pool."""

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table, self._clock = table, clock
        self._look_at_s = 0.0
        self._changed_s = -STAY_S
        self._open_s: dict[str, float] = {}
        """Role → when it had open tasks last."""
        self._finished: dict[tuple[str, int, BagState], float] = {}
        """Bags in which nothing was left → when to look again."""

    def followed(self, split: Split, offered: Collection[str]) -> Split:
        """The same for the open tasks of now."""
        now_s = self._clock()
        if now_s < self._look_at_s:
            return split
        self._look_at_s = now_s + BACKLOG_S
        found: dict[str, float] = {role: count for role, count in self._count(offered).items() if count}
        self._open_s |= dict.fromkeys(found, now_s)
        serving = Counter(role for role in split.held.values() if role)
        starving = len(split.held) >= len(found) and any(not serving[role] for role in found)
        complete = serving.total() == len(split.held)
        if not found or (complete and not starving and now_s - self._changed_s < STAY_S):
            return split
        for role, open_s in self._open_s.items():
            if role not in found and now_s - open_s < LATELY_S:
                found[role] = 0.5
        want = follow(found, serving, len(split.held))
        if want == dict(serving):
            return split
        return Split(want=want, held=split.held).among(split.held)

    def changed(self, written: bool) -> None:
        """What followed is the split now; or it isn't `written`, since somebody else was quicker: look again."""
        if written:
            self._changed_s = self._clock()
        else:
            self._look_at_s = 0.0

    def _count(self, offered: Collection[str]) -> dict[str, int]:
        now_s, found = self._clock(), Counter[str]()
        for bag in self._table.bags(skipped=leave_out):  # the pulse says what it can't read
            key = bag.uid, bag.generation, bag.state
            if now_s < self._finished.get(key, 0.0):
                continue
            counts = open_by_role(self._table, [bag], offered)
            if counts and not any(counts.values()) and bag.state is BagState.SEALED:
                self._finished[key] = now_s + FINISHED_S
            found.update(counts)
        return dict(found)


def _has_stopped(status: WorkerStatus | None, own: WorkerStatus | None) -> bool:
    """By what it says, or because it says nothing for very long."""
    if status is None:
        return False  # it may be about to write its first heartbeat
    old = own is not None and own.beat_at - status.beat_at > SKEW_S
    return old or status.state != "working"

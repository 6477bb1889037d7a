"""How a bag stands: counts, pace, workers, and why tasks failed."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from mtask.costs import Cost
from mtask.errors import BackendError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState, Counts, Reason, Result, State
from mtask.requirements import Requirements, can_with, lacking
from mtask.roles import BY_BACKLOG, role_of
from mtask.table import Table

if TYPE_CHECKING:
    from mtask.bag import BagHandle

__all__ = [
    "BagStatus",
    "FailureGroup",
    "Summary",
    "group_failures",
    "headline",
    "status_of",
    "summarize",
    "unable",
    "unserved",
]

MOST_FAILURES = 10_000
"""So many failed tasks are looked at to group them."""
SAMPLE = 2_000
RUNNING = (BagState.OPEN, BagState.SEALED, BagState.RESENDING)


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed tasks whose errors look alike."""

    count: int
    state: State
    type: str
    message: str
    """Of the example."""
    index: int
    """The example: the first such task."""
    id: str | None = None


class BagStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a bag stands now."""

    bag: str
    state: BagState
    title: str
    total: int
    done: int
    failed: int
    expired: int
    left: int
    rate: float
    """Tasks a second that the workers of this bag end of late."""
    eta_s: float | None
    failures: tuple[FailureGroup, ...]
    workers: tuple[WorkerStatus, ...]
    cost: Cost | None = None
    """What the bag has used so far; None: nothing that anybody bills, or it wasn't asked for."""
    unserved: tuple[str, ...] = ()
    """What none of the workers can do, of what its tasks need; or why HTCondor doesn't run some of them."""
    open: bool = False
    """May tasks be added to it?"""
    elsewhere: str = ""
    """What its messages do just now, where the queue's vendor runs them and not a worker."""

    @property
    def finished(self) -> bool:
        return self.state is BagState.CANCELLED or (self.state is BagState.SEALED and self.left == 0)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `mtask run` says at its end."""

    bag: str
    total: int
    done: int
    failed: int
    expired: int
    left: int
    ran: int
    """Tasks that ended in this run; the others had ended before."""
    wall_s: float
    tasks_per_s: float
    p50_s: float | None
    p95_s: float | None
    """Of the attempts' durations; from a sample of `SAMPLE` tasks where there are more."""
    efficiency: float | None
    """Part of the slots' time in which tasks ran, 0 to 1."""
    failures: tuple[FailureGroup, ...] = ()
    cost: Cost | None = None
    """What the bag has used in all, not in this run alone; None: nothing that anybody bills."""


def status_of(table: Table, bag: BagHandle, *, failures: bool = True, cost: bool = False) -> BagStatus:
    """`failures`, `cost`: look at these, too, which takes further requests."""
    info, counts, now = bag.info, bag.counts(), time.time()
    known = table.workers()
    workers = tuple(worker for worker in known if worker.alive(now))
    mine = [w for w in workers if any(task.bag == info.name for task in w.running)] or list(workers)
    rate = sum(worker.rate for worker in mine)
    groups: list[FailureGroup] = []
    if failures and counts.failed + counts.expired:
        groups = group_failures(bag.results(states=(State.FAILED, State.EXPIRED)))
    elsewhere, waits = _elsewhere(bag) if counts.left and info.state in RUNNING else ("", ())
    if not elsewhere and counts.left and info.state in RUNNING:
        waits = tuple(unserved(info, workers))
    return BagStatus(
        bag=info.name,
        state=info.state,
        title=info.spec.title,
        total=counts.total,
        done=counts.done,
        failed=counts.failed,
        expired=counts.expired,
        left=counts.left,
        rate=round(rate, 3),
        eta_s=round(counts.left / rate, 1) if rate and counts.left else None,
        failures=tuple(groups),
        workers=workers,
        cost=bag.cost(known) if cost else None,
        unserved=waits,
        open=info.endless and info.state is BagState.OPEN,
        elsewhere=elsewhere,
    )


def _elsewhere(bag: BagHandle) -> tuple[str, tuple[str, ...]]:
    """What a vendor who runs the messages itself says of them; empty: it is workers who do."""
    try:
        standing = bag.standing()
    except BackendError as error:
        return "how its jobs stand isn't known", (str(error),)
    return (standing.text, standing.troubles) if standing is not None else ("", ())


def unserved(bag: Bag, workers: Sequence[WorkerStatus]) -> list[str]:
    """Why some tasks of the bag wait in vain for these workers; nothing when there are none at all."""
    if not workers:
        return []
    those = (
        "the only worker doesn't have that"
        if len(workers) == 1
        else f"none of the {len(workers)} workers has that"
    )
    found = [
        f"needs {lane.requires}: {those}"
        for lane in bag.lanes
        if all(unable(worker, lane.requires) for worker in workers)
    ]
    if not bag.lanes and all(unable(worker, Requirements()) for worker in workers):
        found.append("asks for no role, and all workers serve roles only (`--roles`)")
    refusals = [worker.cannot.get(bag.uid) for worker in workers]
    if all(refusals):
        found.append(f"no worker can run it: {refusals[0]}")
    return found


def unable(worker: WorkerStatus, needs: Requirements) -> str:
    """What a worker lacks for such a task; of roles, those count that it has now, or can come to by itself."""
    lacks = lacking(worker.can, worker.roles, needs)
    if not lacks or worker.takes != BY_BACKLOG:
        return lacks
    role = role_of(needs, set(worker.can.tags) - set(worker.roles or ()))
    return lacks if not role else lacking(can_with(worker.can, (role,)), (role,), needs)


def group_failures(results: Iterable[Result]) -> list[FailureGroup]:
    """Groups of errors that differ in numbers only, largest first; of the first `MOST_FAILURES`."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    for result in islice(results, MOST_FAILURES):
        error = result.error
        if error is None:
            continue
        key = (result.state, error.type, re.sub(r"\d+", "#", error.message))
        group = groups.get(key)
        if group is not None:
            groups[key] = msgspec.structs.replace(group, count=group.count + 1)
        else:
            groups[key] = FailureGroup(
                count=1,
                state=result.state,
                type=error.type,
                message=error.message,
                index=result.index,
                id=result.id,
            )
    return sorted(groups.values(), key=lambda group: (-group.count, group.index))


def headline(kind: str, message: str) -> str:
    """An error in a line: `ValueError: no 3`, or just `exit status 3` where there was no exception."""
    if kind in _NO_EXCEPTION:
        return message or kind
    return f"{kind}: {message}" if message else kind


_NO_EXCEPTION = {*Reason, "expired"}
"""What stands in place of an exception's class, and says no more than the message."""


def summarize(bag: BagHandle, *, wall_s: float, ended: int, slots: int | None = None) -> Summary:
    """`ended`: tasks that ended within `wall_s`; `slots`: of the worker, if it was the only one."""
    counts = bag.counts()
    walls = _durations(bag, counts)
    mean_s = sum(walls) / len(walls) if walls else 0.0
    efficiency = min(1.0, mean_s * ended / (slots * wall_s)) if slots and ended and wall_s else None
    failures = (
        group_failures(bag.results(states=(State.FAILED, State.EXPIRED)))
        if counts.ended > counts.done
        else []
    )
    return Summary(
        bag=bag.name,
        total=counts.total,
        done=counts.done,
        failed=counts.failed,
        expired=counts.expired,
        left=counts.left,
        ran=ended,
        wall_s=round(wall_s, 3),
        tasks_per_s=round(ended / wall_s, 3) if wall_s else 0.0,
        p50_s=_quantile(walls, 0.50),
        p95_s=_quantile(walls, 0.95),
        efficiency=None if efficiency is None else round(efficiency, 4),
        failures=tuple(failures),
        cost=bag.cost(),
    )


def _durations(bag: BagHandle, counts: Counts) -> list[float]:
    """Of all attempts, or of a sample of tasks, sorted."""
    indexes = None
    if counts.total > SAMPLE:
        indexes = sorted(random.Random(0).sample(range(counts.total), SAMPLE))
    return sorted(result.wall_s for result in bag.results(indexes=indexes))


def _quantile(ordered: list[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None

"""What no scheduler can beat, and what one without requests, latencies and preemptions reaches."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from benchmarks.simulate.times import Seconds

__all__ = ["Outage", "greedy_s", "shortest_s"]

Outage = tuple[float, float, int]
"""So many slots are away from the first until before the second time."""


def shortest_s(work_s: float, slots: int, outages: Iterable[Outage]) -> float:
    """When so many slots, less those that are away, have done the work if none ever waits."""
    changes = [(start, -n) for start, _, n in outages] + [(stop, n) for _, stop, n in outages]
    now, done, up = 0.0, 0.0, slots
    for at, change in sorted(changes):
        if done + (at - now) * up >= work_s:
            break
        done += (at - now) * up
        now, up = at, up + change
    return now + (work_s - done) / up


def greedy_s(times_s: Seconds, slots: int) -> float:
    """Makespan when each task, in order, goes to the slot that is free first, at no cost."""
    free = [0.0] * min(slots, len(times_s))
    for task_s in times_s.tolist():
        heapq.heapreplace(free, free[0] + task_s)
    return max(free)

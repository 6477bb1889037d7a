"""Limits that hold over all workers: how many tasks of a bag run at a time, how many start in a second.

Each limited bag has a document in the table, for all of its lanes, which workers change by compare-and-swap:

    {"held": {worker: [running, beats]}, "next_at": time}

A worker counts up `beats` while it lives. Whoever sees an entry stand still for `DEAD_S`, by its own
clock that nobody sets, takes it away: its worker died with what it ran. `next_at` is the theoretical
arrival time of the generic cell rate algorithm (ITU-T I.371): when the next task may start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

from mtask.requirements import Lane
from mtask.table import Table

__all__ = ["Limits"]

DEAD_S = 15.0
RENEW_S = 3.0
FORGET_S = 4 * DEAD_S
LOOK_AGAIN_S = 3.0
"""However late the next start is due: another worker may give back what it was allowed and has not used."""
EMPTY_S = 0.5
"""Between two looks into a lane that had nothing."""
FULL_S = 0.1
"""Between two questions for a place when all are taken."""
BURST_S = 0.25
"""What was allowed and not used for so long may be made up for."""
AHEAD_S = 10.0
"""A `next_at` further ahead than any worker may set it comes from a clock that was wrong."""


class _State(msgspec.Struct):
    held: dict[str, tuple[int, int]] = {}
    next_at: float = 0.0


class _Mine:
    """What this worker knows of a bag's limit."""

    def __init__(self) -> None:
        self.beats = 0
        self.coming = 0
        """Tasks that may start, whose messages are not held yet."""
        self.unused = 0
        """Tasks that might have started and did not, which the others don't know yet."""
        self.written: tuple[int, float] = (0, 0.0)
        """(running, when by the monotonic clock): what the others see."""
        self.seen: dict[str, tuple[int, float]] = {}
        """Of the others: (beats, since when they stand so)."""
        self.asked_s = 0.0
        self.ask_at_s = 0.0
        """Before, the answer would be no (monotonic clock)."""
        self.empty: dict[str, float] = {}
        """Lane → until when it is not looked at, because it had nothing."""


class Limits:
    """This worker's part in all limits; safe to call from any thread. Raises what the table raises."""

    def __init__(
        self,
        table: Table,
        worker: str,
        held: Callable[[str], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`held`: how many messages of the limited bag with this uid the worker holds; each has one task."""
        self._table, self._worker, self._held = table, worker, held
        self._clock, self._wall = clock, wall
        self._bags: dict[str, tuple[Lane, _Mine]] = {}
        """Uid → one of its lanes, for the limits, which are the same for all."""
        self._lock = threading.Lock()

    def allow(self, lane: Lane, want: int) -> int:
        """How many of `want` tasks may start now. To be followed by `arrived`."""
        with self._lock:
            mine, now_s = self._mine(lane), self._clock()
            mine.asked_s = now_s
            if want < 1 or now_s < max(mine.ask_at_s, mine.empty.get(lane.name, 0.0)):
                return 0
            mine.coming = self._swap(lane, mine, want)
            return mine.coming

    def pause_s(self, lane: Lane) -> float:
        """When `allow` has just said no: after which time it may say something else."""
        with self._lock:
            mine = self._mine(lane)
            due_s = max(mine.ask_at_s, mine.empty.get(lane.name, 0.0)) - self._clock()
            return due_s if due_s > 0 else FULL_S

    def arrived(self, lane: Lane, messages: int, started: int = 0) -> None:
        """So many came from the lane, of which so many are held and will start; what else was allowed may
        start elsewhere."""
        if not lane.limited:
            return
        with self._lock:
            mine = self._mine(lane)
            if messages:
                mine.empty.pop(lane.name, None)
            else:
                mine.empty[lane.name] = self._clock() + EMPTY_S
            mine.unused += max(0, mine.coming - started)
            mine.coming = 0
            if mine.unused:
                self._swap(lane, mine, 0)

    def renew(self) -> None:
        """To be called every `RENEW_S` or oftener."""
        with self._lock:
            for uid, (lane, mine) in list(self._bags.items()):
                running, since_s = self._held(uid) + mine.coming, mine.written[1]
                changed = mine.unused or running != mine.written[0]
                if changed or (running and self._clock() - since_s >= RENEW_S):
                    self._swap(lane, mine, 0)
                if not running and self._clock() - mine.asked_s > FORGET_S:
                    del self._bags[uid]

    def leave(self) -> None:
        """This worker runs nothing more: others need not wait until it counts as dead."""
        with self._lock:
            self._held = lambda _: 0
            for lane, mine in self._bags.values():
                mine.unused, mine.coming = mine.unused + mine.coming, 0
                if mine.unused or mine.written[0]:
                    self._swap(lane, mine, 0)

    def _mine(self, lane: Lane) -> _Mine:
        return self._bags.setdefault(lane.uid, (lane, _Mine()))[1]

    def _swap(self, lane: Lane, mine: _Mine, want: int) -> int:
        """Write down what this worker runs, and up to `want` more; returns how many of these it may."""
        key = f"limit/{lane.uid}"
        while True:
            raw, version = self._table.shared(key)
            state = msgspec.json.decode(raw, type=_State) if raw else _State()
            others = self._living(state, mine)
            running = self._held(lane.uid) + mine.coming
            granted = min(want, _free(lane, running, others), self._due(lane, mine, state)) if want else 0
            if want and not granted and not mine.unused and running == mine.written[0]:
                return 0
            running += granted
            new = _State(held=dict(others), next_at=state.next_at)
            if running:
                new.held[self._worker] = running, mine.beats + 1
            if lane.rate is not None:
                earliest = self._wall() - BURST_S if granted else 0.0
                new.next_at = max(state.next_at, earliest) + (granted - mine.unused) / lane.rate
            if self._table.swap(key, msgspec.json.encode(new), version):
                mine.beats, mine.unused = mine.beats + 1, 0
                mine.written = running, self._clock()
                return granted

    def _living(self, state: _State, mine: _Mine) -> dict[str, tuple[int, int]]:
        """What the other workers hold, without those that have stood still for too long."""
        now_s = self._clock()
        living: dict[str, tuple[int, int]] = {}
        for worker, (_, beats) in state.held.items():
            if worker == self._worker:
                continue
            last, since_s = mine.seen.get(worker, (-1, now_s))
            if last != beats:
                since_s = now_s
            mine.seen[worker] = beats, since_s
            if now_s - since_s < DEAD_S:
                living[worker] = state.held[worker]
        mine.seen = {worker: mine.seen[worker] for worker in mine.seen if worker in state.held}
        return living

    def _due(self, lane: Lane, mine: _Mine, state: _State) -> int:
        """How many may start now by the rate."""
        if lane.rate is None:
            return 2**31
        now = self._wall()
        if state.next_at > now + AHEAD_S + 1 / lane.rate:
            state.next_at = now
        first = max(state.next_at, now - BURST_S)
        if first > now:
            mine.ask_at_s = self._clock() + min(first - now, LOOK_AGAIN_S)
            return 0
        return 1 + int((now - first) * lane.rate)


def _free(lane: Lane, running: int, others: dict[str, tuple[int, int]]) -> int:
    if lane.max_running is None:
        return 2**31
    return max(0, lane.max_running - running - sum(theirs for theirs, _ in others.values()))

"""Limits that hold over all workers: how many tasks of a bag run at a time, how many start in a second.

Each limited lane has a document in the table, which workers change by compare-and-swap:

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
EMPTY_S = 0.5
"""Between two looks into a lane that had nothing."""
BURST_S = 0.25
"""What was allowed and not used for so long may be made up for."""
AHEAD_S = 10.0
"""A `next_at` further ahead than any worker may set it comes from a clock that was wrong."""


class _State(msgspec.Struct):
    held: dict[str, tuple[int, int]] = {}
    next_at: float = 0.0


class _Mine:
    """What this worker knows of a lane's limit."""

    def __init__(self) -> None:
        self.coming = self.beats = 0
        """Tasks that may start, whose messages are not held yet."""
        self.written: tuple[int, float] = (0, 0.0)
        """(running, when by the monotonic clock): what the others see."""
        self.seen: dict[str, tuple[int, float]] = {}
        """Of the others: (beats, since when they stand so)."""
        self.asked_s = 0.0
        self.ask_at_s = 0.0
        """Before, the answer would be no (monotonic clock)."""


class Limits:
    """This worker's part in all limits; safe to call from any thread. Raises what the table raises."""

    def __init__(
        self,
        table: Table,
        worker: str,
        held: Callable[[str], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held`: how many messages of the lane of this name the worker holds; of a limited lane, each has
        one task."""
        self._table, self._worker, self._held, self._clock = table, worker, held, clock
        self._lanes: dict[str, tuple[Lane, _Mine]] = {}
        self._lock = threading.Lock()

    def allow(self, lane: Lane, want: int) -> int:
        """How many of `want` tasks may start now. To be followed by `arrived`."""
        with self._lock:
            mine = self._lanes.setdefault(lane.name, (lane, _Mine()))[1]
            mine.asked_s = self._clock()
            if want < 1 or mine.asked_s < mine.ask_at_s:
                return 0
            mine.coming = self._swap(lane, mine, want)
            return mine.coming

    def arrived(self, lane: Lane, messages: int) -> None:
        """So many of those allowed are held by now; the others may start elsewhere."""
        if not lane.limited:
            return
        with self._lock:
            mine = self._lanes.setdefault(lane.name, (lane, _Mine()))[1]
            unused, mine.coming = mine.coming - messages, 0
            if unused > 0:
                # There was nothing to start: it needn't be asked for again at once.
                mine.ask_at_s = self._clock() + (EMPTY_S if not messages else 0.0)
                self._swap(lane, mine, 0, unused=unused)

    def renew(self) -> None:
        """To be called every `RENEW_S` or oftener."""
        with self._lock:
            for name, (lane, mine) in list(self._lanes.items()):
                running, since_s = self._held(name) + mine.coming, mine.written[1]
                if running != mine.written[0] or (running and self._clock() - since_s >= RENEW_S):
                    self._swap(lane, mine, 0)
                if not running and self._clock() - mine.asked_s > FORGET_S:
                    del self._lanes[name]

    def _swap(self, lane: Lane, mine: _Mine, want: int, *, unused: int = 0) -> int:
        """Write down what this worker runs, and up to `want` more; returns how many of these it may."""
        key = f"limit/{lane.name}"
        while True:
            raw, version = self._table.shared(key)
            state = msgspec.json.decode(raw, type=_State) if raw else _State()
            others = self._living(state, mine)
            running = self._held(lane.name) + mine.coming
            granted = min(want, _free(lane, running, others), self._due(lane, mine, state))
            if want and not granted and running == mine.written[0]:
                return 0
            running += granted
            new = _State(held=dict(others), next_at=state.next_at)
            if running:
                new.held[self._worker] = running, mine.beats + 1
            if lane.rate is not None:
                earliest = time.time() - BURST_S if granted else 0.0
                new.next_at = max(state.next_at, earliest) + (granted - unused) / lane.rate
            if self._table.swap(key, msgspec.json.encode(new), version):
                mine.beats, mine.written = mine.beats + 1, (running, self._clock())
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
        now = time.time()
        if state.next_at > now + AHEAD_S + 1 / lane.rate:
            state.next_at = now
        first = max(state.next_at, now - BURST_S)
        if first > now:
            mine.ask_at_s = self._clock() + first - now
            return 0
        return 1 + int((now - first) * lane.rate)


def _free(lane: Lane, running: int, others: dict[str, tuple[int, int]]) -> int:
    if lane.max_running is None:
        return 2**31
    return max(0, lane.max_running - running - sum(theirs for theirs, _ in others.values()))

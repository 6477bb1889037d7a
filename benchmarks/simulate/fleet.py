"""The simulation. Events are those of messages, not of tasks: the tasks of one run one after the other."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.simulate.bound import Outage, shortest_s
from benchmarks.simulate.clouds import Meter
from benchmarks.simulate.parts import CAME_BACK, CHECKED, PLAIN, Parcel, Slot, Worker
from benchmarks.simulate.setup import Outcome, Setup
from benchmarks.simulate.splitting import SPLITS
from mtask.packing import pack
from mtask.worker.options import time_to_save_s
from mtask.worker.receiver import LONG_POLL_S

__all__ = ["Fleet", "simulate"]

ASK, NOTICE, TAKEN, BACK, ARRIVE, RETURN = (-1 - n for n in range(6))
"""Kinds of events; that of a slot is its number."""
MARKS = (0.5, 0.9, 0.99)


class Fleet:
    """One run; `run` may be called once."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.cloud = setup, setup.cloud
        self.meter = Meter(setup.cloud, setup.row_bytes)
        self.total = len(setup.times_s)
        self._ends = np.concatenate(([0.0], np.cumsum(setup.times_s)))
        self._at = memoryview(self._ends)  # type: ignore[arg-type]
        self.done = bytearray(self.total)
        self.left = self.total
        self.ready: deque[Parcel] = deque()
        self.out = Outcome(work_s=float(self._ends[-1]), longest_s=float(setup.times_s.max()))
        self._random = random.Random(setup.seed)
        self._split = SPLITS[setup.split](self.total, setup.slots)
        self._wait_s = min(LONG_POLL_S, self.cloud.wait_s, setup.lease_s / 4)
        self._lag_s = self.cloud.flush_s + self.cloud.table_s
        notice_s = self.cloud.notice_s
        self._grace_s = max(0.0, notice_s - time_to_save_s(notice_s))
        self._events: list[tuple[float, int, int, Any]] = []
        self._serials = itertools.count()
        self._hungry: deque[tuple[Worker, float]] = deque()
        self._in_flight = 0
        self._marks = deque((share, self.total - share * self.total) for share in MARKS)
        self._taken: list[Outage] = []
        self._noticed: list[Outage] = []
        each = setup.slots_per_worker
        self.workers = [Worker(min(each, setup.slots - at)) for at in range(0, setup.slots, each)]

    # -- the clock ----------------------------------------------------------------------------------

    def run(self) -> Outcome:
        rows = itertools.repeat(b"x" * (self.setup.row_bytes - 1), self.total)
        bag = [
            Parcel(first, first + count) for first, count, _ in pack(rows, per_message=self.setup.per_message)
        ]
        self._count_sends(bag)
        self.ready.extend(bag)
        for worker in self.workers:
            self._back(0.0, worker)
        for at_s, number in self.setup.takes:
            self._later(at_s, NOTICE, self.workers[number])
        now_s, events, pop = 0.0, self._events, heapq.heappop
        steps: dict[int, Callable[[float, Any], None]] = {
            ASK: self._asks,
            NOTICE: self._notice,
            TAKEN: self._take,
            BACK: self._back,
            ARRIVE: self._arrive,
            RETURN: self._return,
        }
        while self.left:
            now_s, _, what, whom = pop(events)
            if what < 0:
                steps[what](now_s, whom)
            elif whom.version == what:
                self._look(now_s, whom)
        return self._outcome(now_s)

    def _later(self, at_s: float, what: int, whom: Any) -> None:
        heapq.heappush(self._events, (at_s, next(self._serials), what, whom))

    def _outcome(self, now_s: float) -> Outcome:
        out, slots = self.out, self.setup.slots
        out.makespan_s = now_s + self._lag_s
        out.work_bound_s = shortest_s(out.work_s, slots, self._taken)
        out.bound_s = max(out.longest_s, out.work_bound_s)
        out.notice_bound_s = max(out.longest_s, shortest_s(out.work_s, slots, self._noticed))
        out.count = self.meter.count
        for slot in (slot for worker in self.workers for slot in self._busy(worker)):
            out.twice_s += max(0.0, now_s - slot.begun_s)  # all have rows by now
            self._free(now_s, slot)
        for worker, since_s in self._hungry:
            if worker.hungry_s == since_s:
                self.meter.received(0, 0, self._empty(now_s - since_s))
        return out

    # -- receiving ----------------------------------------------------------------------------------

    def _asks(self, now_s: float, worker: Worker) -> None:
        if not worker.free or not worker.up or worker.hungry_s is not None or now_s < worker.asked_s:
            return  # if it was asking, it will ask again
        if self.ready:
            self._deliver(now_s, worker, now_s + self.cloud.receive_s, 0)
        else:
            worker.hungry_s = now_s
            self._hungry.append((worker, now_s))

    def _arrive(self, now_s: float, parcels: list[Parcel]) -> None:
        self.ready.extend(parcels)
        delay_s = self.cloud.receive_s / 2 + (self._wait_s / 2 if self.cloud.polls else 0.0)
        while self.ready and self._hungry:
            worker, since_s = self._hungry.popleft()
            if worker.hungry_s == since_s:
                worker.hungry_s = None
                self._deliver(now_s, worker, now_s + delay_s, self._empty(now_s - since_s))

    def _return(self, now_s: float, parcels: list[Parcel]) -> None:
        """What was given back: behind all others, or before them."""
        if self.setup.returns_first:
            self.ready.extendleft(parcels)
            parcels = []
        self._arrive(now_s, parcels)

    def _empty(self, waited_s: float) -> int:
        """Requests that came back without a message."""
        return int(waited_s / self._wait_s)

    def _deliver(self, now_s: float, worker: Worker, at_s: float, empty: int) -> None:
        """One answer of the queue, with messages for the free slots; they begin at `at_s`."""
        if now_s >= worker.due_s:
            self._keep(now_s, worker)
        ready, free = self.ready, worker.free
        n = min(len(free), len(ready), self.cloud.receive_batch)
        tasks = 0
        for _ in range(n):
            parcel = ready.popleft()
            tasks += parcel.stop - parcel.first
            if parcel.kind == PLAIN or self._is_to_run(at_s, worker, parcel):
                self._begin(at_s, free.pop(), parcel)
        self.meter.received(tasks, n, empty)
        worker.asked_s = at_s
        if free:
            self._later(at_s, ASK, worker)

    def _is_to_run(self, now_s: float, worker: Worker, parcel: Parcel) -> bool:
        """Look its tasks up; take it apart if it came back."""
        first, stop, kind = parcel
        self.meter.count.reads += stop - first
        rest = [index for index in range(first, stop) if not self.done[index]]
        if kind == CHECKED and rest:
            return True
        self._send(now_s, [Parcel(index, index + 1, CHECKED) for index in rest])
        self._over(now_s, worker)
        return False

    def _begin(self, now_s: float, slot: Slot, parcel: Parcel) -> None:
        first, stop = slot.first, slot.stop = parcel.first, parcel.stop
        slot.parcel = parcel
        slot.got_s = slot.renewed_s = now_s
        slot.begun_s = begun_s = now_s + self.setup.start_s
        slot.end_s = begun_s + self._at[stop] - self._at[first]
        worker = slot.worker
        worker.due_s = min(worker.due_s, now_s + self.setup.lease_s / 3)
        self._in_flight += 1
        self.out.most_in_flight = max(self.out.most_in_flight, self._in_flight)
        self._watch(now_s, slot)

    def _watch(self, now_s: float, slot: Slot) -> None:
        """Look again when all is run, or when it may be cut."""
        at_s = slot.end_s
        if slot.stop - slot.first > 1:
            at_s = min(at_s, now_s + self.setup.split_after_s)
        heapq.heappush(self._events, (at_s, next(self._serials), slot.version, slot))

    # -- running ------------------------------------------------------------------------------------

    def _look(self, now_s: float, slot: Slot) -> None:
        if now_s < slot.end_s:
            self._cut(now_s, slot)
            return
        worker = slot.worker
        if now_s >= worker.due_s:
            self._keep(now_s, worker)
        self._ran(now_s, slot.first, slot.stop)
        self._over(now_s, worker)
        self._free(now_s, slot)
        if now_s < worker.asked_s:
            self._later(worker.asked_s, ASK, worker)
        else:
            self._asks(now_s, worker)

    def _cut(self, now_s: float, slot: Slot) -> None:
        """Split the message as mtask does: what isn't running goes back to the queue."""
        first, stop = slot.first, slot.stop
        running = self._running(now_s, slot)
        if running + 1 < stop:
            pieces = self._split(
                now_s - slot.got_s, running + 1 - first, stop - running - 1, self.setup.split_after_s
            )
            if pieces is None:
                return self._watch(now_s, slot)
            self._send(now_s + self._lag_s, [Parcel(first + a, first + b) for a, b in pieces])
            slot.stop = running + 1
            slot.end_s = slot.begun_s + self._at[running + 1] - self._at[first]
        self._watch(now_s, slot)

    def _running(self, now_s: float, slot: Slot) -> int:
        """The task that runs; the last one if all are over."""
        reached = self._at[slot.first] + max(0.0, now_s - slot.begun_s)
        return min(bisect_right(self._at, reached, slot.first, slot.stop) - 1, slot.stop - 1)

    def _ran(self, now_s: float, first: int, stop: int) -> None:
        """These tasks have ended and are written down."""
        done, out = self.done, self.out
        out.runs += stop - first
        new = done.count(0, first, stop)
        if new < stop - first:
            out.twice_s += sum(self._at[i + 1] - self._at[i] for i in range(first, stop) if done[i])
        done[first:stop] = b"\x01" * (stop - first)
        self.meter.count.rows += stop - first
        self.left -= new
        while self._marks and self.left <= self._marks[0][1]:
            out.marks_s[self._marks.popleft()[0]] = now_s

    def _free(self, now_s: float, slot: Slot) -> None:
        self.out.slot_s += max(0.0, now_s - slot.begun_s)
        slot.parcel = None
        slot.version += 1
        slot.worker.free.append(slot)
        self._in_flight -= 1

    # -- requests of the recorder and the keeper of leases -------------------------------------------

    def _over(self, now_s: float, worker: Worker) -> None:
        """Delete a message, with all others that were over before the recorder came to it."""
        if now_s > worker.writing_s:
            worker.writing_s = max(now_s, worker.writing_s + self.cloud.table_s + self.cloud.delete_s)
            worker.deletes = 0
        self.meter.count.deletes += worker.deletes % self.cloud.delete_batch == 0
        worker.deletes += 1

    def _send(self, now_s: float, parcels: list[Parcel], what: int = ARRIVE) -> None:
        for number, batch in enumerate(self._count_sends(parcels), 1):
            self._later(now_s + number * self.cloud.send_s, what, batch)

    def _count_sends(self, parcels: list[Parcel]) -> list[list[Parcel]]:
        size = self.cloud.send_batch
        batches = [parcels[at : at + size] for at in range(0, len(parcels), size)]
        for batch in batches:
            self.meter.sent(sum(stop - first for first, stop, _ in batch), len(batch))
        return batches

    def _keep(self, now_s: float, worker: Worker) -> None:
        """All extensions since the last look: those due at a third of the lease take along those at a quarter."""
        lease_s, due_s = self.setup.lease_s, worker.due_s
        while due_s <= now_s:
            extended, next_s = 0, math.inf
            for slot in worker.slots:
                if slot.parcel is not None:
                    if due_s >= slot.renewed_s + lease_s / 4:
                        slot.renewed_s = due_s
                        extended += 1
                    next_s = min(next_s, slot.renewed_s + lease_s / 3)
            self.meter.count.extends += -(-extended // self.cloud.delete_batch)
            due_s = next_s
        worker.due_s = due_s

    # -- preemption ---------------------------------------------------------------------------------

    def _back(self, now_s: float, worker: Worker) -> None:
        """A worker, or another in its place, begins."""
        worker.up = True
        worker.free = list(worker.slots)
        if self.setup.preempt_per_hour:
            self._later(now_s + self._random.expovariate(self.setup.preempt_per_hour / 3600), NOTICE, worker)
        self._asks(now_s, worker)

    def _notice(self, now_s: float, worker: Worker) -> None:
        """Drain: what isn't running goes back at once, as one message for each slot."""
        if not worker.up:
            return
        worker.up, worker.hungry_s, worker.free = False, None, []
        killed = self._random.random() < self.setup.killed
        notice_s = 0.0 if killed or not self._grace_s else self.cloud.notice_s
        taken_s, back_s = now_s + notice_s, now_s + notice_s + self.setup.boot_s
        self._taken.append((taken_s, back_s, len(worker.slots)))
        self._noticed.append((now_s, back_s, len(worker.slots)))
        self.out.preempted += 1
        if now_s >= worker.due_s:
            self._keep(now_s, worker)
        if notice_s:
            for slot in self._busy(worker):
                self._give_rest(now_s, slot)
            self._later(now_s + self._grace_s, TAKEN, worker)
        else:
            for slot in self._busy(worker):
                self._die(now_s, slot)
        self._later(back_s, BACK, worker)

    def _busy(self, worker: Worker) -> Iterator[Slot]:
        return (slot for slot in worker.slots if slot.parcel is not None)

    def _give_rest(self, now_s: float, slot: Slot) -> None:
        running = self._running(now_s, slot)
        if running + 1 < slot.stop:
            self._send(now_s + self._lag_s, [Parcel(running + 1, slot.stop)], RETURN)
            slot.stop = running + 1
            slot.end_s = slot.begun_s + self._at[slot.stop] - self._at[slot.first]
            slot.version += 1
            self._watch(now_s, slot)

    def _take(self, now_s: float, worker: Worker) -> None:
        """The grace is over: what still runs is stopped and given back, at no cost to it."""
        for slot in self._busy(worker):
            last = slot.stop - 1
            self._ran(now_s, slot.first, last)
            self.out.lost_running_s += self._into(now_s, slot, last)
            if self.cloud.counts_releases or slot.parcel != (last, last + 1, PLAIN):
                self._send(now_s, [Parcel(last, last + 1)], RETURN)
                self._over(now_s, worker)
            else:
                self.meter.count.releases += 1
                self._later(now_s + self.cloud.delete_s, RETURN, [slot.parcel])
            self._free(now_s, slot)
        worker.free = []

    def _die(self, now_s: float, slot: Slot) -> None:
        """Nobody says so: its message comes back when the lease ends, all of it, whatever of it was sent on."""
        parcel = slot.parcel
        assert parcel is not None
        first, running = slot.first, self._running(now_s, slot)
        written = min(running, self._running(now_s - self._lag_s, slot))
        if written > first:
            self._ran(now_s, first, written)
        self.out.lost_done_s += self._at[running] - self._at[written]
        self.out.lost_running_s += self._into(now_s, slot, running)
        self.out.twin_tasks += parcel.stop - slot.stop
        kind = CAME_BACK if parcel.stop - parcel.first > 1 else CHECKED
        self._later(slot.renewed_s + self.setup.lease_s, RETURN, [parcel._replace(kind=kind)])
        self._free(now_s, slot)
        slot.worker.free = []

    def _into(self, now_s: float, slot: Slot, task: int) -> float:
        """How long this task of the slot has run."""
        return max(0.0, now_s - slot.begun_s - (self._at[task] - self._at[slot.first]))


def simulate(setup: Setup) -> Outcome:
    return Fleet(setup).run()

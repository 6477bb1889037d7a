"""The simulation. Events are those of messages, not of tasks: the tasks of one run one after the other."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from benchmarks.simulate.bound import Outage, shortest_s
from benchmarks.simulate.clouds import Meter
from benchmarks.simulate.parts import CAME_BACK, CHECKED, PLAIN, Parcel, Slot, Worker
from benchmarks.simulate.setup import Outcome, Setup
from mtask.packing import pack, piece_size
from mtask.worker.ahead import COUNT_S
from mtask.worker.options import time_to_save_s
from mtask.worker.receiver import LONG_POLL_S
from mtask.worker.served import FRONT_S

__all__ = ["Fleet", "simulate"]

ASK, NOTICE, TAKEN, BACK, ARRIVE, FRONT, LOOK = (-1 - n for n in range(7))
"""Kinds of events; that of a slot is its number."""
LOOK_S = 1.0
"""Between two looks whether a message that was held for long is to be cut; a worker looks more often."""
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
        self.front: deque[Parcel] = deque()
        """What was given back, in a lane of its own."""
        self._front_used = False
        self.out = Outcome(work_s=float(self._ends[-1]), longest_s=float(setup.times_s.max()))
        self._random = random.Random(setup.seed)
        self._ahead, self._counted_s = 0.0, -COUNT_S
        """Tasks a slot, as counted then."""
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
            FRONT: self._arrive_in_front,
            LOOK: self._looks,
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
        at_s, looks = now_s + self.cloud.receive_s, 0
        from_front = self.ready and worker.from_front  # then it is the others' turn
        if self._front_used and now_s >= worker.front_at_s and not from_front:
            if self.front:
                return self._deliver(now_s, worker, at_s, self.front)
            at_s, looks = at_s + self.cloud.receive_s, 1
            worker.front_at_s = now_s + FRONT_S
        if self.ready:
            self._deliver(now_s, worker, at_s, self.ready, looks)
        else:
            self.meter.count.receives += looks
            self.meter.count.received_units += looks
            worker.hungry_s = now_s
            self._hungry.append((worker, now_s))

    def _arrive(self, now_s: float, parcels: list[Parcel]) -> None:
        self.ready.extend(parcels)
        delay_s = self.cloud.receive_s / 2 + (self._wait_s / 2 if self.cloud.polls else 0.0)
        while self.ready and self._hungry:
            worker, since_s = self._hungry.popleft()
            if worker.hungry_s == since_s:
                self._wake(now_s, worker, now_s + delay_s, self.ready)

    def _arrive_in_front(self, now_s: float, parcels: list[Parcel]) -> None:
        """Who waits elsewhere looks here when that is over."""
        self._front_used = True
        self.front.extend(parcels)
        ends = (
            (now_s + self._wait_s - (now_s - since_s) % self._wait_s, worker)
            for worker, since_s in self._hungry
            if worker.hungry_s == since_s
        )
        for at_s, worker in heapq.nsmallest(len(parcels), ends, key=itemgetter(0)):
            self._later(at_s, LOOK, worker)

    def _looks(self, now_s: float, worker: Worker) -> None:
        if self.front and worker.hungry_s is not None:
            self._wake(now_s, worker, now_s + self.cloud.receive_s, self.front)

    def _wake(self, now_s: float, worker: Worker, at_s: float, queue: deque[Parcel]) -> None:
        assert worker.hungry_s is not None
        empty, worker.hungry_s = self._empty(now_s - worker.hungry_s), None
        self._deliver(now_s, worker, at_s, queue, empty)

    def _empty(self, waited_s: float) -> int:
        """Requests that came back without a message."""
        return int(waited_s / self._wait_s) * (1 + self._front_used)

    def _deliver(
        self, now_s: float, worker: Worker, at_s: float, queue: deque[Parcel], empty: int = 0
    ) -> None:
        """One answer of the queue, with messages for the free slots; they begin at `at_s`."""
        self._keep(now_s, worker)
        free = worker.free
        n = min(len(free), len(queue), self.cloud.receive_batch)
        worker.from_front = queue is self.front
        tasks = 0
        for _ in range(n):
            parcel = queue.popleft()
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
        self._watch(now_s, slot, self.setup.start_s + self.setup.split_after_s)

    def _watch(self, now_s: float, slot: Slot, look_s: float) -> None:
        """Look again when all is run, or when it may be cut."""
        at_s = slot.end_s
        if slot.stop - slot.first > 1:
            at_s = min(at_s, now_s + look_s)
        heapq.heappush(self._events, (at_s, next(self._serials), slot.version, slot))

    # -- running ------------------------------------------------------------------------------------

    def _look(self, now_s: float, slot: Slot) -> None:
        if now_s < slot.end_s:
            self._cut(now_s, slot)
            return
        worker = slot.worker
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
        first, stop, running = slot.first, slot.stop, self._running(now_s, slot)
        cut, left = running + 1, stop - running - 1
        size = left and piece_size(
            left,
            begun=cut - first,
            took_s=now_s - slot.begun_s,
            ahead=self._tasks_a_slot(now_s),
            least_s=self.setup.split_after_s / 2,
        )
        if size:
            self._send(
                now_s + self._lag_s, [Parcel(at, min(at + size, stop)) for at in range(cut, stop, size)]
            )
            self._keep_until(slot, cut)
        self._watch(now_s, slot, LOOK_S)

    def _tasks_a_slot(self, now_s: float) -> float:
        """As a worker knows it: counted now and then."""
        if now_s - self._counted_s >= COUNT_S:
            self._ahead, self._counted_s = self.left / self.setup.slots, now_s
        return self._ahead

    def _keep_until(self, slot: Slot, stop: int) -> None:
        """What comes after that task of its message was sent on."""
        slot.stop = stop
        slot.end_s = slot.begun_s + self._at[stop] - self._at[slot.first]

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
        together = worker.over(now_s, self.cloud.table_s + self.cloud.delete_s)
        self.meter.count.deletes += together % self.cloud.delete_batch == 0

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
        if now_s >= worker.due_s:
            for extended in worker.extend(now_s, self.setup.lease_s):
                self.meter.count.extends += -(-extended // self.cloud.delete_batch)

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
        worker.crowded = not worker.free
        worker.up, worker.hungry_s, worker.free = False, None, []
        killed = self._random.random() < self.setup.killed
        notice_s = 0.0 if killed or not self._grace_s else self.cloud.notice_s
        taken_s, back_s = now_s + notice_s, now_s + notice_s + self.setup.boot_s
        self._taken.append((taken_s, back_s, len(worker.slots)))
        self._noticed.append((now_s, back_s, len(worker.slots)))
        self.out.preempted += 1
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
            self._send(now_s + self._lag_s, [Parcel(running + 1, slot.stop)], self._goes_to(slot))
            self._keep_until(slot, running + 1)
            slot.version += 1
            self._watch(now_s, slot, math.inf)

    def _goes_to(self, slot: Slot) -> int:
        """To the lane that is received first, if there are others for whom the rest would have to wait."""
        assert slot.parcel is not None
        return FRONT if self.setup.front and slot.worker.crowded and slot.parcel.kind == PLAIN else ARRIVE

    def _take(self, now_s: float, worker: Worker) -> None:
        """The grace is over: what still runs is stopped and given back, at no cost to it."""
        for slot in self._busy(worker):
            last = slot.stop - 1
            self._ran(now_s, slot.first, last)
            self.out.lost_running_s += self._into(now_s, slot, last)
            where = self._goes_to(slot)
            if where == FRONT or self.cloud.counts_releases or slot.parcel != (last, last + 1, PLAIN):
                self._send(now_s, [Parcel(last, last + 1)], where)
                self._over(now_s, worker)
            else:
                self.meter.count.releases += 1
                self._later(now_s + self.cloud.delete_s, ARRIVE, [slot.parcel])
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
        self._later(slot.renewed_s + self.setup.lease_s, ARRIVE, [parcel._replace(kind=kind)])
        self._free(now_s, slot)
        slot.worker.free = []

    def _into(self, now_s: float, slot: Slot, task: int) -> float:
        """How long this task of the slot has run."""
        return max(0.0, now_s - slot.begun_s - (self._at[task] - self._at[slot.first]))


def simulate(setup: Setup) -> Outcome:
    return Fleet(setup).run()

"""Gives held messages to slots: as many as the host has room for, and back to the queue what waits too long."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from mtask.model import Bag
from mtask.packing import piece_size
from mtask.queue import QueueLimits
from mtask.requirements import DEFAULT_LANE, Lane, Requirements
from mtask.worker.guard import GUARD_S
from mtask.worker.held import Held, Job
from mtask.worker.options import Options
from mtask.worker.pace import LEAD_S, Pace
from mtask.worker.receiver import Receiver, Wish
from mtask.worker.recorder import Recorder
from mtask.worker.room import Room
from mtask.worker.runner import Runner
from mtask.worker.slots import Slot

__all__ = ["Dispatcher"]

STUCK_S = 0.5
"""What waits longer than this behind one task goes to another slot, or another host."""


class Dispatcher:
    """Holds what is ready to run; lives in the worker's main thread."""

    def __init__(
        self,
        slots: Sequence[Slot],
        room: Room,
        *,
        receiver: Receiver,
        recorder: Recorder,
        limits: QueueLimits,
        options: Options,
        ahead: Callable[[Bag], float] = lambda _: 0.0,
    ) -> None:
        """`ahead`: how many tasks of a bag each slot of all workers has ahead of it; 0: unknown."""
        self._slots, self._room = slots, room
        self._receiver, self._recorder = receiver, recorder
        self._limits, self._options, self._ahead = limits, options, ahead
        self.ready: deque[Job] = deque()
        self.rounds = 0
        """How many requests of the receiver have been looked at."""
        self._pace = Pace()
        self.due_s = math.inf
        """When the next slot is about to be free (monotonic clock): `dispatch` then."""
        self._list_front: Callable[[Lane], None] | None = None

    def job_over(self, took_s: float) -> None:
        """The pace of late says how many messages may wait behind one that runs."""
        self._pace.over(took_s)

    def warm(self, needs: Requirements, tasks: int, *, functions: bool) -> None:
        """Get ready for so many tasks; not for such as have GPUs or cores of their own, of which each
        slot's are others."""
        share = self._room.take(needs)
        if share is None or share.gpus or share.cores:
            return
        self._room.give(share)
        for slot in self._slots[: min(tasks, self._room.copies(needs))]:
            slot.warm(share, functions)

    def dispatch(self) -> None:
        """Start what can be started, and ask the receiver for as much as there is room for."""
        behind = self._pace.room_behind()
        # Asked for by halves: a request for one message takes nearly as long as one for sixteen.
        enough = behind + 1 - behind // 2
        self.due_s = math.inf
        soon = self._soon_free() if self._pace.steady and not behind else ()
        if not self.ready and not soon and all(len(slot.jobs) >= enough for slot in self._slots):
            self._receiver.want(None, self.rounds)
            return
        for slot in self._slots:
            if slot.share is not None and not slot.jobs:
                self._room.give(slot.share)
                slot.share = None
        if self._isolate():
            return
        while self.ready and self._start(self.ready[0]):
            self.ready.popleft()
        while behind and self.ready:
            front = self._slot_behind(self.ready[0])
            if front is None or len(front.jobs) > behind:
                break
            self.ready[0].share = front.share
            front.start(self.ready.popleft())
        for slot in soon:
            if self.ready and _may_wait_behind(self.ready[0], slot):
                slot.start(self.ready.popleft())
        wish = None
        # What is ready and doesn't fit is waited for: small tasks must not take its place for ever.
        if not self.ready and not self._recorder.full():
            queued = self._queued(behind, enough) if behind else _one_each(soon)
            space = self._room.space()
            wish = Wish(space, queued) if space.slots or queued else None
        self._receiver.want(wish, self.rounds)

    def _soon_free(self) -> Sequence[Slot]:
        """Those that a message should wait for them already, as long as none does."""
        now_s, soon = time.monotonic(), list[Slot]()
        for slot in self._slots:
            if slot.runner is None or len(slot.jobs) != 1:
                continue
            ends_s = self._pace.ends_s(slot.runner.front_began_s())
            if now_s < ends_s - LEAD_S:
                self.due_s = min(self.due_s, ends_s - LEAD_S)
            elif now_s < ends_s + LEAD_S:  # else it is another kind of message
                soon.append(slot)
        return soon

    def _slot_behind(self, job: Job) -> Slot | None:
        """Where it can wait: the one with the fewest of those that run the same kind."""
        slot = min(self._slots, key=lambda slot: len(slot.jobs))
        if _may_wait_behind(job, slot):
            return slot
        others = [slot for slot in self._slots if _may_wait_behind(job, slot)]
        return min(others, key=lambda slot: len(slot.jobs), default=None)

    def _queued(self, behind: int, enough: int) -> Mapping[Requirements, int]:
        """How many more messages may wait behind those that run, by what these need."""
        found: defaultdict[Requirements, int] = defaultdict(int)
        ordinary = 0  # counted apart, for this is on the fast path
        for slot in self._slots:
            jobs = slot.jobs
            if len(jobs) < enough:
                more = behind + 1 - max(1, len(jobs))
                lane = jobs[0].held.lane if jobs else DEFAULT_LANE
                if not lane.name:
                    ordinary += more
                elif not lane.limited:
                    found[lane.requires] += more
        found[DEFAULT_LANE.requires] += ordinary
        return found

    def _start(self, job: Job) -> bool:
        """In a slot that is free, with a share of the host; False: not just now."""
        requires = job.held.lane.requires
        free = [slot for slot in self._slots if not slot.jobs and not slot.retiring]
        warm = {gpu for slot in free for gpu in slot.gpus()} if requires.gpus else ()
        share = self._room.take(requires, prefer_gpus=warm) if free else None
        if share is None:
            return False
        slot = next((slot for slot in free if slot.suits(share, job)), None)
        # A child that has seen a GPU keeps memory on it, until it ends.
        holders = [each for each in self._slots if each is not slot and set(each.gpus()) & set(share.gpus)]
        if slot is None or holders:
            for each in holders or free[:1]:
                each.retire()
            self._room.give(share)
            return False
        slot.share = job.share = share
        slot.start(job)
        return True

    def _isolate(self) -> bool:
        """A task with which nearly enough workers have died runs alone, so that no neighbour is taken
        for its cause. True: nothing else is to be started now."""
        busy = [slot for slot in self._slots if slot.jobs]
        runs = any(job.held.is_suspect for slot in busy for job in slot.jobs)
        suspect = None if runs else next((job for job in self.ready if job.held.is_suspect), None)
        if not runs and suspect is None:
            return False
        self._receiver.want(None, self.rounds)
        for job in [job for job in self.ready if job is not suspect and self._may_give_back(job)]:
            self.ready.remove(job)
            self.give_back(job)
        if suspect is None or busy:
            return True
        first = next((job for job in self.ready if job is not suspect), suspect)
        # What is on its way in, or not yet given back, would be counted as dead with the suspect.
        alone = self._receiver.quiet(self.rounds) and self._recorder.quiet()
        if (first is not suspect or alone) and self._start(first):
            self.ready.remove(first)
        return True

    def _may_give_back(self, job: Job) -> bool:
        return job.whole or self._limits.workers_send

    def relieve(self, runner: Runner) -> None:
        """Take from a slot what waits behind a long task; split a message that is held for long."""
        running = runner.running()
        if running is None:
            return
        held, since_s = running[0].held, running[2]
        # A setup function says nothing of the tasks' pace.
        cuts = self._limits.workers_send and runner.setup_s() is None
        size = self._piece_size(runner, *running) if cuts else None
        before_s = time.monotonic() - STUCK_S
        stuck = since_s > STUCK_S and any(
            job.held is not held and job.began_s < before_s for job in runner.jobs
        )
        if not (size or stuck):
            return
        self._pace.forget()
        for rest in runner.cut():
            if rest.held is not held:
                self.ready.append(rest)
            elif size:
                self._recorder.hand_on(held, rest.pieces(size))
            else:
                runner.start(rest)

    def _piece_size(self, runner: Runner, job: Job, offset: int, since_s: float) -> int | None:
        """How many tasks go into each piece of the message whose task at `offset` runs; None: it isn't cut."""
        held, after_s = job.held, self._options.split_after_s
        left = job.stop - offset - 1
        left += sum(other.left for other in runner.jobs if other.held is held and other is not job)
        took_s = held.took_s(since_s)
        if not left or took_s <= after_s / 2:
            return None
        ahead = self._ahead(held.bag)  # asked for in time: who is asked reads it now and then only
        if took_s <= after_s:
            return None
        return piece_size(left, begun=offset + 1, took_s=took_s, ahead=ahead, least_s=after_s / 2)

    def give_back_stuck(self) -> None:
        """What found no slot within `STUCK_S` may find one elsewhere; but not what room is being made for."""
        keep = sum(not slot.jobs for slot in self._slots)
        if self.ready and self.ready[0].held.lane != DEFAULT_LANE:
            keep = max(1, keep)
        while (
            len(self.ready) > keep
            and not self.ready[-1].held.is_suspect
            and time.monotonic() - self.ready[-1].ready_s > STUCK_S
            and self._may_give_back(self.ready[-1])
        ):
            self.give_back(self.ready.pop())

    def keep_only(self, serves: Callable[[Lane], bool]) -> None:
        """Give back what hasn't started of other lanes than these."""
        for slot in self._slots:
            if slot.runner is not None and any(not serves(job.held.lane) for job in slot.jobs):
                self.ready.extend(slot.runner.cut())
        ready = list(self.ready)
        self.ready.clear()
        for job in ready:
            if serves(job.held.lane) or not self._may_give_back(job):
                self.ready.append(job)
            else:
                self.give_back(job)

    def drain(self, list_lane: Callable[[Lane], None]) -> None:
        """From now on what is given back goes where it is received first, if it would have to wait for others;
        `list_lane` has such a lane entered in the list that workers read."""
        if all(slot.jobs for slot in self._slots):  # else there is nothing in the queue to wait for
            self._list_front = list_lane

    def give_back(self, job: Job) -> None:
        """To the queue, for anyone, at no cost to the tasks."""
        held = job.held
        if held.lost:
            return
        if self._list_front is not None and self._limits.workers_send and held.front is not None:
            self._list_front(held.front)
            self._recorder.hand_on(held, [held.in_front(held.front, job.got, job.stop)])
        elif job.whole:
            self._recorder.release(held)
        elif self._limits.workers_send:
            self._recorder.hand_on(held, [held.part(job.got, job.stop)])
        # else: with the rest of its message, when the worker stops

    def hand_over(self, held: Held, worker: str) -> None:
        """Of a message that can't be held for much longer, only what runs stays here, under guard; the rest is given
        back."""
        if held.lost or held.guarded_parts or not self._limits.workers_send:
            return
        for slot in self._slots:
            if slot.runner is not None and any(job.held is held for job in slot.jobs):
                self.ready.extend(slot.runner.cut())
        for job in [job for job in self.ready if job.held is held]:
            self.ready.remove(job)
            self.give_back(job)
        runs = [
            (job.got, job.stop) for slot in self._slots for job in slot.jobs if job.held is held and job.left
        ]
        if runs:
            copies = [held.guarded(start, stop, worker) for start, stop in runs]
            held.guarded_parts = runs
            self._recorder.hand_over(held, copies, delay_s=min(self._limits.delay_s, GUARD_S))

    def give_back_all(self) -> None:
        """Instead of `dispatch`, from when on nothing is to be started any more."""
        self.due_s = math.inf
        while self.ready:
            self.give_back(self.ready.popleft())


def _one_each(slots: Sequence[Slot]) -> Mapping[Requirements, int]:
    """One more message for each slot that has only one, by what these need."""
    lanes = [slot.jobs[0].held.lane for slot in slots if len(slot.jobs) == 1]
    return Counter(lane.requires for lane in lanes if not lane.limited)


def _may_wait_behind(job: Job, slot: Slot) -> bool:
    """With the share of those before it."""
    limited = job.held.lane.limited or (bool(slot.jobs) and slot.jobs[0].held.lane.limited)
    return not limited and slot.takes_behind(job)

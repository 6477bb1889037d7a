"""The worker: one supervisor process a host, which holds messages and gives them to its slots.

The main thread runs the slots: it starts children and commands, reads what they send, and waits for
nothing but its selector. Beside it run the receiver, the recorder, the LeaseKeeper and the pulse,
each of which may wait for a vendor.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from mtask.errors import BackendError, UnavailableError
from mtask.giveback import give_back
from mtask.lanes import Lanes
from mtask.model import Delivery, Result
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane, Requirements, can_with, lacking
from mtask.table import Table
from mtask.worker.ahead import Ahead
from mtask.worker.bags import Bags
from mtask.worker.capabilities import found
from mtask.worker.dispatcher import Dispatcher
from mtask.worker.ending import Ending
from mtask.worker.expenses import Expenses
from mtask.worker.gathered import Gathered
from mtask.worker.held import Held, Job
from mtask.worker.inbox import Inbox
from mtask.worker.leases import LeaseKeeper
from mtask.worker.limits import Limits
from mtask.worker.notes import Notes
from mtask.worker.options import Options
from mtask.worker.orphans import watch_for_orphans
from mtask.worker.outcomes import Outcomes
from mtask.worker.pulse import Pulse
from mtask.worker.receiver import Receiver
from mtask.worker.recorder import Recorder
from mtask.worker.room import Room
from mtask.worker.runner import HOSTNAME, Cause
from mtask.worker.service import Service
from mtask.worker.slots import Slot
from mtask.worker.submits import Submits

if TYPE_CHECKING:
    from mtask.worker.notices import Notice, Watcher
    from mtask.worker.roles import RoleKeeper

__all__ = ["Options", "Worker"]

TICK_S = 0.1
IDLE_TICK_S = 0.5
"""The same of a worker that has nothing to do."""
LAST_WRITES_S = 5.0
"""Longer than the grace a stopping worker waits for a table or queue that doesn't answer."""


class Worker:
    """Receives, runs and records until it is told to drain; see `run`."""

    def __init__(
        self,
        queue: Queue,
        table: Table,
        options: Options,
        *,
        say: Callable[[str], None] | None = None,
        on_written: Callable[[Sequence[Result | Portion]], None] = lambda _: None,
        on_done: Callable[[Portion], bool] = lambda _: False,
        name: str | None = None,
    ):
        """`on_written` is called with results that have been recorded, from another thread; they may be none. `on_done`,
        with most of those that are done, before they are recorded, from the thread that `run`s the worker and must not
        wait: it returns whether nobody waits for their rows any more, which may then be written a little later.
        `name`: one that no other worker of this time has."""
        self.queue, self.table, self.options = Lanes.over(queue), table, options
        self.name = name or f"{HOSTNAME}-{os.getpid()}-{os.urandom(2).hex()}"
        self.notes = Notes(say)
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.own = self.can = found(options)
        """What it has, without and with the role that it takes from the table."""
        self.roles = () if options.takes else options.roles
        """What a bag must ask for to be served; None: nothing."""
        self.bags, self.ahead = Bags(table, options.timeout_s), Ahead(table)
        self.expenses = Expenses((self.queue.main, table))
        self._inbox = Inbox()
        self._keeper = LeaseKeeper(
            self.queue,
            lambda held: self._inbox.post(lambda: self._lost(held)),
            self.notes,
            lambda held: self._inbox.post(lambda: self._hand_over(held)),
        )
        self.limits = Limits(table, self.name, self._keeper.count)
        self.submits = Submits(self.queue, table, self.notes, allowed=options.submits)
        self._recorder = Recorder(
            self.queue,
            table,
            self._keeper,
            self.notes,
            self._tell_written,
            on_over=self.submits.look_whether_done,
            is_gone=self.bags.is_gone,
        )
        self._gathered = Gathered(self._recorder)
        self.outcomes = Outcomes(
            self.name,
            options,
            self.selector,
            self.notes,
            bags=self.bags,
            expenses=self.expenses,
            submits=self.submits,
            recorder=self._recorder,
            gathered=self._gathered,
            inbox=self._inbox,
            hands_on=self.queue.limits.workers_send,
            on_broken=self._stop_for,
            on_done=on_done,
        )
        self.slots = [
            Slot(
                self.outcomes,
                max_tasks_per_child=options.max_tasks_per_child,
                max_memory_per_child_bytes=options.max_memory_per_child_bytes,
                machine=self.can,
                forks=options.forks,
            )
            for _ in range(options.slots)
        ]
        self._receiver = Receiver(
            self.queue,
            table,
            bags=self.bags,
            keeper=self._keeper,
            recorder=self._recorder,
            notes=self.notes,
            on_job=lambda job: self._inbox.post(lambda: self._on_job(job)),
            on_round=lambda: self._inbox.post(self._on_round),
            worker=self.name,
            lease_s=options.lease_s,
            can=self.can,
            limits=self.limits,
            options=msgspec.structs.replace(options, roles=self.roles),
        )
        self._dispatcher = Dispatcher(
            self.slots,
            Room(self.can, options.slots, cores=os.sched_getaffinity(0) if options.pin else ()),
            receiver=self._receiver,
            recorder=self._recorder,
            limits=self.queue.limits,
            options=options,
            ahead=self.ahead.tasks_a_slot,
        )
        self.outcomes.dispatcher = self._dispatcher
        self._pulse = Pulse(self, table)
        self._role_keeper: RoleKeeper | None = None
        if options.takes:
            from mtask.worker.roles import RoleKeeper

            self._role_keeper = RoleKeeper(
                table,
                self.name,
                options.takes,
                self.notes,
                lambda role: self._inbox.post(lambda: self._take(role)),
            )
        self._watcher: Watcher | None = None
        if options.notices != "off":
            from mtask.worker.notices import Watcher  # an HTTP client: worth 10 ms

            self._watcher = Watcher(
                options.notices, lambda notice: self._inbox.post(lambda: self._noticed(notice))
            )
        self._ending = Ending(options)
        self._written, self._tell_others = False, on_written
        self._error: BaseException | None = None
        """Why it has to stop, if something is wrong."""

    # -- from any thread ----------------------------------------------------------------------------

    def drain(self, reason: str = "told to stop", *, grace_s: float | None = None) -> None:
        """Give back what hasn't started, and stop when what runs has ended, or after the grace."""
        self._inbox.post(lambda: self._drain(reason, grace_s))

    def hand(self, delivery: Delivery, *, lease_s: float, asked_s: float) -> None:
        """Run what the caller has received from the queue (not from another lane of it) because this worker has a free
        slot. The lease began at `asked_s` (monotonic clock) or later."""
        self._receiver.hand(delivery, lease_s=lease_s, asked_s=asked_s)

    def cancelled(self, over: dict[str, int]) -> None:
        """These bags (by uid: up to this generation), and no others, are over: stop what runs of them."""
        self._inbox.post(lambda: self._cancelled(over))

    def bags_in_use(self) -> set[str]:
        """The uids of the bags of all held messages."""
        return {held.bag.uid for held in self._keeper.held()}

    def running_on(self) -> list[Held]:
        """What runs though its message is held no more."""
        return self._keeper.running_on()

    def busy(self) -> tuple[int, int]:
        """(slots that run something, slots)."""
        return sum(bool(slot.jobs) for slot in self.slots), len(self.slots)

    @property
    def draining(self) -> bool:
        return self._ending.reason is not None

    # -- before it runs -----------------------------------------------------------------------------

    def warm(self, needs: Requirements, tasks: int, *, functions: bool) -> None:
        """Start the processes for so many tasks that need this: functions, or commands."""
        self._dispatcher.warm(needs, tasks, functions=functions)

    def discard(self) -> None:
        """End what `warm` has started, when nothing is to be run."""
        for slot in self.slots:
            slot.close()
        self._close()

    # -- the main loop ------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Work until drained; `until` is asked now and then whether that should begin.

        Raises BackendError when it can run nothing at all, with what its child printed, or when its last
        results can't be written; and any error that nobody foresaw.
        """
        self.selector.register(self._inbox.fd, selectors.EVENT_READ, self._inbox.awake)
        self.submits.on_failure = self._failed
        services: list[Service] = [self._keeper, self._recorder, self._receiver, self._pulse]
        services += [self._role_keeper] if self._role_keeper is not None else []
        for service in services:
            service.on_failure = self._failed
            service.start()
        if self._watcher is not None:
            self._watcher.start()
        with watch_for_orphans(self.name) if self.options.orphans else contextlib.nullcontext():
            try:
                self._loop(until)
            except BaseException as error:
                self._error = error
            finally:
                self._stop()
        if self._error is not None:
            raise self._error

    def _loop(self, until: Callable[[], bool] | None) -> None:
        self._ending.start()
        next_tick_s = time.monotonic()
        busy = False
        while True:
            wait_s = min(next_tick_s, self._gathered.due_s, self._dispatcher.due_s) - time.monotonic()
            for key, _ in self.selector.select(max(0.0, wait_s)):
                key.data()
            self._inbox.read()
            jobs, was_busy = [slot.jobs for slot in self.slots], busy
            if (self._gathered.awaited and not all(jobs)) or time.monotonic() >= self._gathered.due_s:
                self._gathered.pass_on()
            if self.draining and not (
                any(jobs) or self._dispatcher.ready or not self._receiver.ended or self._inbox
            ):
                return
            if self.draining:
                self._dispatcher.give_back_all()
            else:
                self._dispatcher.dispatch()
            now, busy = time.monotonic(), any(slot.jobs for slot in self.slots)
            waiting = self._dispatcher.ready or self._receiver.held_back
            if busy or was_busy or waiting or self.notes.troubled("queue"):  # which may be full
                self._ending.busy()
            tick_s = IDLE_TICK_S if not (busy or waiting or self.draining) else TICK_S
            next_tick_s = min(next_tick_s, now + tick_s)
            if now >= next_tick_s or self._written:
                next_tick_s, written, self._written = now + tick_s, self._written, False
                self._tick()
                if not self.draining and until is not None and (written or not busy):
                    with contextlib.suppress(UnavailableError):
                        if until():
                            self._drain("done", None)
            vain_s = self._receiver.vain_s
            if (reason := self._ending.limit_reached(self.outcomes.ended, vain_s)) is not None:
                self._drain(reason, None)

    def _tell_written(self, rows: Sequence[Result | Portion]) -> None:
        self._tell_others(rows)
        self._inbox.post(self._on_written)

    def _on_written(self) -> None:
        self._written = True

    def _on_job(self, job: Job) -> None:
        if self.options.takes and not self._serves(job.held.lane):  # it came too late
            self._dispatcher.give_back(job)
        else:
            self._dispatcher.ready.append(job)

    def _take(self, role: str) -> None:
        """Another role: what runs of the last one may end, the rest is given back."""
        self.roles = (role,) if role else ()
        self.can = can_with(self.own, self.roles)
        self.notes.say(f"its role is now {role}" if role else "it has no role now")
        self._receiver.serve(self.can, self.roles)
        self._pulse.beat_soon()
        if not self.draining:
            self._dispatcher.keep_only(self._serves)

    def _serves(self, lane: Lane) -> bool:
        return not lacking(self.can, self.roles, lane.requires)

    def _on_round(self) -> None:
        self._dispatcher.rounds += 1
        self._ending.busy()  # also if nothing of what came had to be run

    def _stop(self) -> None:
        """Recorder and LeaseKeeper go last, because they keep what the others still finish."""
        if self._role_keeper is not None:
            self._role_keeper.stop()
            self._role_keeper.join(LAST_WRITES_S)
        self._receiver.stop()
        self._receiver.join()
        for slot in self.slots:
            slot.retire()
        for slot in self.slots:
            slot.close()
        self.submits.abandon()
        self._gathered.pass_on()
        self._recorder.stop()
        if not self.draining:  # an error ended its loop
            self._ending.begin(str(self._error), 0)
        while self._recorder.is_alive():
            self._inbox.read()  # a second signal hurries
            self._recorder.give_up_at(self._ending.kill_at_s + LAST_WRITES_S)
            self._recorder.join(TICK_S)
        self._keeper.stop()
        self._keeper.join()
        self._inbox.read()
        if self._error is None or isinstance(self._error, UnavailableError):
            self._release_the_rest()
        self._pulse.stop()
        self._pulse.join()
        self.submits.stop()
        self.submits.join(LAST_WRITES_S)
        if self._watcher is not None:
            self._watcher.stop()
        self._inbox.read()
        self._close()

    def _close(self) -> None:
        self.selector.close()
        self._inbox.close()

    def _release_the_rest(self) -> None:
        """What could only be given back as a whole, because this worker can't send the rest of it alone,
        or whose results can't be written. After any other error the leases run out: that counts."""
        if rest := [held.delivery for held in self._keeper.held() if not (held.lost or held.let_go)]:
            with contextlib.suppress(BackendError):
                give_back(self.queue, rest, check=True)

    def _failed(self, error: BaseException) -> None:
        """A service can't go on, and the worker not without it."""
        self._inbox.post(lambda: self._stop_for(error))

    def _stop_for(self, error: BaseException) -> None:
        self._error = self._error or error
        self._drain(str(error), 0)

    def _tick(self) -> None:
        to_save_s = self._ending.to_save_s()
        for slot in self.slots:
            slot.check()
            if slot.runner is None or not slot.jobs:
                continue
            if to_save_s is not None:
                slot.runner.stop_task(Cause.INTERRUPTED, grace_s=to_save_s)
            elif not self.draining:
                self._dispatcher.relieve(slot.runner)
        self._dispatcher.give_back_stuck()

    # -- stopping -----------------------------------------------------------------------------------

    def _drain(self, reason: str, grace_s: float | None) -> None:
        if not self._ending.begin(reason, grace_s):
            return
        if self._role_keeper is not None:  # others take its role
            self._role_keeper.stop()
        self._receiver.stop()
        # What it gives back after an error might be what broke it.
        if self._error is None and self.options.lanes:
            self._dispatcher.drain(lambda lane: self.queue.list_when_used(lane, self.table))
        for slot in self.slots:
            slot.tell_stopping()
            for rest in slot.runner.cut() if slot.runner is not None else ():
                self._dispatcher.give_back(rest)
        self._pulse.beat_soon()

    def _noticed(self, notice: Notice) -> None:
        from mtask.worker.notices import grace_of

        left = "" if notice.left_s is None else f" in {notice.left_s:.0f} s"
        self.notes.say(f"{notice.what}{left}: stopping")
        self._drain(notice.what, grace_of(notice, self.options.grace_s))

    def _lost(self, held: Held) -> None:
        self.notes.once(f"a lease was lost (bag {held.bag.name!r}): its tasks may run elsewhere by now")
        self._stop_jobs(lambda job: job.held is held, Cause.LOST_LEASE)

    def _hand_over(self, held: Held) -> None:
        self._gathered.pass_on()
        self._dispatcher.hand_over(held, self.name)
        self._pulse.beat_soon()

    def _cancelled(self, over: dict[str, int]) -> None:
        self.outcomes.over = over
        if over:
            self._stop_jobs(self.outcomes.is_over, Cause.CANCELLED)

    def _stop_jobs(self, chosen: Callable[[Job], bool], cause: Cause) -> None:
        """`left_over` knows what is to become of those chosen."""
        ready = list(self._dispatcher.ready)
        self._dispatcher.ready.clear()
        self.outcomes.left_over(ready)
        for slot in self.slots:
            runner = slot.runner
            if runner is not None and any(chosen(job) for job in runner.jobs):
                self.outcomes.left_over(runner.cut())
                if runner.jobs and chosen(runner.jobs[-1]):
                    runner.stop_task(cause)

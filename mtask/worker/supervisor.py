"""The worker: one supervisor process a host, which holds messages and gives them to its slots.

The main thread runs the slots: it starts children and commands, reads what they send, and waits for
nothing but its selector. Beside it run the receiver, the recorder, the LeaseKeeper and the pulse,
each of which may wait for a vendor.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from mtask.errors import BackendError
from mtask.model import DeadMessage, Result, State
from mtask.packing import slice_message
from mtask.queue import Queue
from mtask.table import Table
from mtask.worker.bags import Bags
from mtask.worker.commands import CommandRunner
from mtask.worker.functions import FunctionRunner
from mtask.worker.held import Held, Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.pulse import Pulse
from mtask.worker.receiver import Receiver
from mtask.worker.recorder import Recorder
from mtask.worker.slots import HOSTNAME, Cause, Runner

__all__ = ["Options", "Worker"]

TICK_S = 0.1
QUEUED_S = 0.1
"""A slot is given so much work in advance, by the pace of late: enough that it never waits for the
next message, too little to be missed elsewhere."""
MOST_QUEUED = 32
STUCK_S = 0.5
"""What waits behind a task that runs longer than this goes to another slot, or another host."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works; durations in seconds."""

    slots: int = 1
    lease_s: float | None = None
    """Instead of what the bags say."""
    split_after_s: float = 10.0
    """A message held for longer is cut, and what isn't running is sent back as smaller ones."""
    grace_s: float = 30.0
    """How long running tasks may go on when the worker drains."""
    idle_exit_s: float | None = None
    max_runtime_s: float | None = None
    max_tasks_per_child: int | None = None
    path: tuple[str, ...] = ()
    """Goes first in the children's sys.path."""


class Slot:
    """Runs one task at a time: a function in its child, or a command."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.runner: Runner | None = None
        self._runners: dict[bool, Runner] = {}

    @property
    def jobs(self) -> Sequence[Job]:
        return self.runner.jobs if self.runner is not None else ()

    def start(self, job: Job) -> None:
        is_function = _is_function(job)
        if is_function not in self._runners:
            options = self._worker.options
            self._runners[is_function] = (
                FunctionRunner(self._worker, max_tasks_per_child=options.max_tasks_per_child)
                if is_function
                else CommandRunner(self._worker)
            )
        self.runner = self._runners[is_function]
        self.runner.start(job)

    def takes_behind(self, job: Job) -> bool:
        """Can this job wait behind those that run now?"""
        front = self.jobs[0] if self.jobs else None
        return front is not None and _is_function(front) and _is_function(job) and not self.retiring

    @property
    def retiring(self) -> bool:
        return self.runner is not None and self.runner.retiring

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def _is_function(job: Job) -> bool:
    return job.held.bag.spec.kind == "call"


class Worker:
    """Receives, runs and records until it is told to drain; see `run`."""

    def __init__(self, queue: Queue, table: Table, options: Options, *, say: Callable[[str], None] | None = None):
        self.queue, self.table, self.options = queue, table, options
        self.name = f"{HOSTNAME}-{os.getpid()}-{secrets.token_hex(2)}"
        self.path = options.path
        self.notes = Notes(say)
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.slots = [Slot(self) for _ in range(options.slots)]
        self.done = self.failed = 0
        self.problem: str | None = None
        """Why it had to stop, if it had to."""
        self._ready: deque[Job] = deque()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self.bags = Bags(table)
        self._keeper = LeaseKeeper(queue, lambda held: self._post(lambda: self._lost(held)), self.notes)
        self._recorder = Recorder(queue, table, self._keeper, self.notes, lambda: self._post(self._on_written))
        self._receiver = Receiver(
            queue,
            table,
            bags=self.bags,
            keeper=self._keeper,
            recorder=self._recorder,
            notes=self.notes,
            on_job=lambda job: self._post(lambda: self._ready.append(job)),
            worker=self.name,
            lease_s=options.lease_s,
        )
        self._pulse = Pulse(self, table)
        self._message_s: float | None = None
        self._drain_reason: str | None = None
        self._kill_at_s: float | None = None
        self._written = False

    # -- from any thread ----------------------------------------------------------------------------

    def drain(self, reason: str = "told to stop", *, grace_s: float | None = None) -> None:
        """Give back what hasn't started, and stop when what runs has ended, or after the grace."""
        self._post(lambda: self._drain(reason, grace_s))

    def cancelled(self, uids: set[str]) -> None:
        """These bags are over: stop what runs of them."""
        self._post(lambda: self._cancelled(uids))

    def busy(self) -> tuple[int, int]:
        """(slots that run something, slots)."""
        return sum(bool(slot.jobs) for slot in self.slots), len(self.slots)

    @property
    def draining(self) -> bool:
        return self._drain_reason is not None

    def _post(self, event: Callable[[], None]) -> None:
        self._inbox.append(event)
        with contextlib.suppress(OSError):  # it is awake already, or has stopped
            os.write(self._wake_in, b"!")

    # -- the main loop ------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Work until drained; `until` is asked now and then whether that should begin.

        Raises BackendError when it can run nothing at all, with what its child printed.
        """
        self.selector.register(self._wake_out, selectors.EVENT_READ, self._on_wake)
        threads: list[threading.Thread] = [self._keeper, self._recorder, self._receiver, self._pulse]
        for thread in threads:
            thread.start()
        try:
            self._loop(until)
        finally:
            self._stop()
        if self.problem is not None:
            raise BackendError(self.problem)

    def _loop(self, until: Callable[[], bool] | None) -> None:
        began_s = idle_since_s = next_tick_s = time.monotonic()
        while True:
            for key, _ in self.selector.select(max(0.0, next_tick_s - time.monotonic())):
                key.data()
            while self._inbox:
                self._inbox.popleft()()
            busy = any(slot.jobs for slot in self.slots)
            if self.draining and not (busy or self._ready or self._receiver.is_alive() or self._inbox):
                return
            self._dispatch()
            now = time.monotonic()
            if busy or self._ready:
                idle_since_s = now
            if now >= next_tick_s or self._written:
                next_tick_s = now + TICK_S
                self._tick(now)
                if not self.draining and until is not None and self._written_or_idle(busy) and until():
                    self._drain("done", None)
            idle_s, limit_s = self.options.idle_exit_s, self.options.max_runtime_s
            if idle_s is not None and now - idle_since_s >= idle_s:
                self._drain("idle", None)
            if limit_s is not None and now - began_s >= limit_s:
                self._drain("its time is over", None)

    def _written_or_idle(self, busy: bool) -> bool:
        written, self._written = self._written, False
        return written or not busy

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 4096)

    def _on_written(self) -> None:
        self._written = True

    def _stop(self) -> None:
        """Recorder and LeaseKeeper go last, because they keep what the others still finish."""
        self._receiver.stop()
        self._receiver.join()
        for slot in self.slots:
            slot.close()
        self._recorder.stop()
        self._recorder.join()
        self._keeper.stop()
        self._keeper.join()
        self._pulse.stop()
        self._pulse.join()
        self.selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    # -- giving work to slots -----------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self.draining:
            while self._ready:
                self._give_back(self._ready.popleft())
            return
        for slot in self.slots:
            if self._ready and not slot.jobs and not slot.retiring:
                slot.start(self._ready.popleft())
        room = self._queue_depth()
        while room and self._ready:
            slot = min(self.slots, key=lambda slot: len(slot.jobs))
            if len(slot.jobs) > room or not slot.takes_behind(self._ready[0]):
                break
            slot.start(self._ready.popleft())
        if self._recorder.full():
            self._receiver.want(0)
            return
        wanted = sum(max(0, room + 1 - len(slot.jobs)) for slot in self.slots)
        self._receiver.want(wanted - len(self._ready))

    def _queue_depth(self) -> int:
        """How many messages may wait behind the one that a slot runs."""
        if not self._message_s or self._message_s > QUEUED_S / 2:
            return 0
        return min(MOST_QUEUED, int(QUEUED_S / self._message_s))

    def _tick(self, now_s: float) -> None:
        for slot in self.slots:
            if slot.runner is None or not slot.jobs:
                continue
            slot.runner.check()
            if self._kill_at_s is not None and now_s >= self._kill_at_s:
                slot.runner.stop_task(Cause.INTERRUPTED, grace_s=2.0)
            elif not self.draining:
                self._relieve(slot.runner)
        idle = sum(not slot.jobs for slot in self.slots)
        while len(self._ready) > idle and now_s - self._ready[-1].ready_s > STUCK_S:
            self._give_back(self._ready.pop())

    def _relieve(self, runner: Runner) -> None:
        """Take from a slot what waits behind a long task; split a message that is held for long."""
        running = runner.running()
        if running is None:
            return
        job, _, since_s = running
        slow = job.held.age_s() > self.options.split_after_s and job.stop - job.got > 1
        if not slow and not (len(runner.jobs) > 1 and since_s > STUCK_S):
            return
        self._message_s = None
        for rest in runner.cut():
            if rest.held is not job.held:
                self._ready.append(rest)
            elif slow and self.queue.limits.workers_send:
                self._split(rest)
            else:
                runner.start(rest)

    def _split(self, rest: Job) -> None:
        """Send the rest of a held message as smaller ones, each of some seconds at the pace seen."""
        held = rest.held
        task_s = held.age_s() / max(1, rest.start)
        size = max(1, int(self.options.split_after_s / 2 / task_s)) if rest.start > 1 else 1
        cuts = range(rest.start, rest.stop, size)
        self._recorder.hand_on(
            held, [slice_message(held.message, held.rows, at, min(at + size, rest.stop)) for at in cuts]
        )

    def _give_back(self, job: Job) -> None:
        """To the queue, for anyone, at no cost to the tasks."""
        held = job.held
        if held.lost:
            return
        if job.whole or not self.queue.limits.workers_send:
            self._recorder.release(held)
        else:
            self._recorder.hand_on(held, [slice_message(held.message, held.rows, job.got, job.stop)])

    # -- what the runners say (Host) ----------------------------------------------------------------

    def attempts_ended(self, job: Job, results: list[Result]) -> None:
        failed = sum(result.state is not State.DONE for result in results)
        self.failed += failed
        self.done += len(results) - failed
        if not job.held.lost:
            self._recorder.attempts_ended(job.held, results)

    def job_over(self, job: Job, took_s: float) -> None:
        self._message_s = took_s if self._message_s is None else 0.8 * self._message_s + 0.2 * took_s

    def left_over(self, jobs: Sequence[Job], cause: Cause | None) -> None:
        for job in jobs:
            if job.held.lost:
                continue
            if cause is Cause.CANCELLED:
                self._recorder.settle(job.held, job.stop - job.got)
            elif cause is None:
                self._ready.appendleft(job)
            else:
                self._give_back(job)

    def bad_message(self, job: Job, problem: str) -> None:
        delivery = job.held.delivery
        self.notes.once(f"a message can't be read and is set aside (see `mtask dead`): {problem}")
        dead = DeadMessage(body=delivery.body, reason=problem, worker=self.name)
        self._recorder.set_aside(delivery, dead, job.held)

    def broken(self, problem: str) -> None:
        self.problem = problem
        self._drain(problem, 0)

    # -- stopping -----------------------------------------------------------------------------------

    def _drain(self, reason: str, grace_s: float | None) -> None:
        grace_s = self.options.grace_s if grace_s is None else grace_s
        kill_at_s = time.monotonic() + grace_s
        self._kill_at_s = kill_at_s if self._kill_at_s is None else min(self._kill_at_s, kill_at_s)
        if self.draining:
            return
        self._drain_reason = reason
        self._receiver.stop()
        for slot in self.slots:
            for rest in slot.runner.cut() if slot.runner is not None else ():
                self._give_back(rest)
        self._pulse.beat_soon()

    def _lost(self, held: Held) -> None:
        self.notes.once(f"a lease was lost (bag {held.bag.name!r}): its tasks may run elsewhere by now")
        self._stop_jobs(lambda job: job.held is held, Cause.LOST_LEASE)

    def _cancelled(self, uids: set[str]) -> None:
        self._stop_jobs(lambda job: job.held.bag.uid in uids, Cause.CANCELLED)

    def _stop_jobs(self, chosen: Callable[[Job], bool], cause: Cause) -> None:
        ready, self._ready = self._ready, deque()
        for job in ready:
            if chosen(job):
                self.left_over([job], cause)
            else:
                self._ready.append(job)
        for slot in self.slots:
            runner = slot.runner
            if runner is None or not any(chosen(job) for job in runner.jobs):
                continue
            for rest in runner.cut():
                self.left_over([rest], cause if chosen(rest) else None)
            if runner.jobs and chosen(runner.jobs[-1]):
                runner.stop_task(cause)

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
import time
from collections import deque
from collections.abc import Callable, Sequence

from mtask.errors import BackendError, UnavailableError
from mtask.model import DeadMessage, Result, State
from mtask.queue import Queue
from mtask.table import Table
from mtask.worker.bags import Bags
from mtask.worker.held import Held, Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.notices import Notice, Watcher, grace_of
from mtask.worker.options import Options
from mtask.worker.pulse import Pulse
from mtask.worker.receiver import Receiver
from mtask.worker.recorder import Recorder
from mtask.worker.runner import HOSTNAME, Cause, Runner
from mtask.worker.service import Service
from mtask.worker.slots import Slot, room_behind

__all__ = ["Options", "Worker"]

TICK_S = 0.1
STUCK_S = 0.5
"""What waits behind a task that runs longer than this goes to another slot, or another host."""
LAST_WRITES_S = 5.0
"""Longer than the grace a stopping worker waits for a table or queue that doesn't answer."""


class Worker:
    """Receives, runs and records until it is told to drain; see `run`."""

    def __init__(
        self, queue: Queue, table: Table, options: Options, *, say: Callable[[str], None] | None = None
    ):
        self.queue, self.table, self.options = queue, table, options
        self.name = f"{HOSTNAME}-{os.getpid()}-{secrets.token_hex(2)}"
        self.path, self.checkpoints = options.path, options.checkpoints
        self.notes = Notes(say)
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.slots = [
            Slot(self, max_tasks_per_child=options.max_tasks_per_child) for _ in range(options.slots)
        ]
        self.done = self.failed = 0
        self.bags = Bags(table)
        self._ready: deque[Job] = deque()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._keeper = LeaseKeeper(queue, lambda held: self._post(lambda: self._lost(held)), self.notes)
        self._recorder = Recorder(
            queue, table, self._keeper, self.notes, lambda: self._post(self._on_written)
        )
        self._receiver = Receiver(
            queue,
            table,
            bags=self.bags,
            keeper=self._keeper,
            recorder=self._recorder,
            notes=self.notes,
            on_job=lambda job: self._post(lambda: self._ready.append(job)),
            on_round=lambda: self._post(self._on_round),
            worker=self.name,
            lease_s=options.lease_s,
        )
        self._pulse = Pulse(self, table)
        self._watcher: Watcher | None = None
        if options.notices != "off":
            self._watcher = Watcher(options.notices, lambda notice: self._post(lambda: self._noticed(notice)))
        self._rounds = 0
        self._message_s: float | None = None
        self._over: dict[str, int] = {}
        """Bags that were cancelled or are gone, by uid: up to which generation."""
        self._drain_reason: str | None = None
        self._kill_at_s: float | None = None
        self._written = False
        self._error: BaseException | None = None
        """Why it has to stop, if something is wrong."""

    # -- from any thread ----------------------------------------------------------------------------

    def drain(self, reason: str = "told to stop", *, grace_s: float | None = None) -> None:
        """Give back what hasn't started, and stop when what runs has ended, or after the grace."""
        self._post(lambda: self._drain(reason, grace_s))

    def cancelled(self, over: dict[str, int]) -> None:
        """These bags (by uid: up to this generation), and no others, are over: stop what runs of them."""
        self._post(lambda: self._cancelled(over))

    def bags_in_use(self) -> set[str]:
        """The uids of the bags of all held messages."""
        return {held.bag.uid for held in self._keeper.held()}

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

        Raises BackendError when it can run nothing at all, with what its child printed, or when its last
        results can't be written; and any error that nobody foresaw.
        """
        self.selector.register(self._wake_out, selectors.EVENT_READ, self._on_wake)
        services: list[Service] = [self._keeper, self._recorder, self._receiver, self._pulse]
        for service in services:
            service.on_failure = self._failed
            service.start()
        if self._watcher is not None:
            self._watcher.start()
        try:
            self._loop(until)
        except BaseException as error:
            self._error = error
        finally:
            self._stop()
        if self._error is not None:
            raise self._error

    def _loop(self, until: Callable[[], bool] | None) -> None:
        began_s = idle_since_s = next_tick_s = time.monotonic()
        while True:
            for key, _ in self.selector.select(max(0.0, next_tick_s - time.monotonic())):
                key.data()
            self._read_inbox()
            busy = any(slot.jobs for slot in self.slots)
            if self.draining and not (busy or self._ready or self._receiver.is_alive() or self._inbox):
                return
            self._dispatch()
            now = time.monotonic()
            if busy or self._ready or self.notes.troubled("queue"):  # which may be full
                idle_since_s = now
            if now >= next_tick_s or self._written:
                next_tick_s = now + TICK_S
                self._tick(now)
                if not self.draining and until is not None and self._written_or_idle(busy):
                    with contextlib.suppress(UnavailableError):
                        if until():
                            self._drain("done", None)
            idle_s, limit_s = self.options.idle_exit_s, self.options.max_runtime_s
            if idle_s is not None and now - idle_since_s >= idle_s:
                self._drain("idle", None)
            if limit_s is not None and now - began_s >= limit_s:
                self._drain("its time is over", None)
            if self.options.max_tasks is not None and self.done + self.failed >= self.options.max_tasks:
                self._drain("it has run enough tasks", None)

    def _written_or_idle(self, busy: bool) -> bool:
        written, self._written = self._written, False
        return written or not busy

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 4096)

    def _read_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _on_written(self) -> None:
        self._written = True

    def _on_round(self) -> None:
        self._rounds += 1

    def _stop(self) -> None:
        """Recorder and LeaseKeeper go last, because they keep what the others still finish."""
        self._receiver.stop()
        self._receiver.join()
        for slot in self.slots:
            slot.retire()
        for slot in self.slots:
            slot.close()
        self._recorder.stop()
        while self._recorder.is_alive():
            self._read_inbox()  # a second signal hurries
            if self._kill_at_s is None:
                self._kill_at_s = time.monotonic()
            self._recorder.give_up_at(self._kill_at_s + LAST_WRITES_S)
            self._recorder.join(TICK_S)
        self._keeper.stop()
        self._keeper.join()
        self._read_inbox()
        if self._error is None or isinstance(self._error, UnavailableError):
            self._release_the_rest()
        self._pulse.stop()
        self._pulse.join()
        if self._watcher is not None:
            self._watcher.stop()
        self._read_inbox()
        self.selector.close()
        wake_in, self._wake_in = self._wake_in, -1
        os.close(wake_in)
        os.close(self._wake_out)

    def _release_the_rest(self) -> None:
        """What could only be given back as a whole, because this worker can't send the rest of it alone,
        or whose results can't be written. After any other error the leases run out: that counts."""
        if rest := [held.delivery for held in self._keeper.held() if not held.lost]:
            with contextlib.suppress(BackendError):
                self.queue.release(rest)

    def _failed(self, error: BaseException) -> None:
        """A service can't go on, and the worker not without it."""
        self._post(lambda: self._stop_for(error))

    def _stop_for(self, error: BaseException) -> None:
        self._error = self._error or error
        self._drain(str(error), 0)

    # -- giving work to slots -----------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self.draining:
            while self._ready:
                self._give_back(self._ready.popleft())
            return
        if self._isolate():
            return
        for slot in self.slots:
            if self._ready and not slot.jobs and not slot.retiring:
                slot.start(self._ready.popleft())
        room = room_behind(self._message_s)
        while room and self._ready:
            slot = min(self.slots, key=lambda slot: len(slot.jobs))
            if len(slot.jobs) > room or not slot.takes_behind(self._ready[0]):
                break
            slot.start(self._ready.popleft())
        wanted = sum(max(0, room + 1 - len(slot.jobs)) for slot in self.slots) - len(self._ready)
        self._receiver.want(0 if self._recorder.full() else wanted, self._rounds)

    def _isolate(self) -> bool:
        """A task with which nearly enough workers have died runs alone, so that no neighbour is taken
        for its cause. True: nothing else is to be started now."""
        busy = [slot for slot in self.slots if slot.jobs]
        runs = any(job.held.is_suspect for slot in busy for job in slot.jobs)
        suspect = None if runs else next((job for job in self._ready if job.held.is_suspect), None)
        if not runs and suspect is None:
            return False
        self._receiver.want(0, self._rounds)
        for job in [job for job in self._ready if job is not suspect and self._may_give_back(job)]:
            self._ready.remove(job)
            self._give_back(job)
        free = next((slot for slot in self.slots if not slot.retiring), None)
        if suspect is None or busy or free is None:
            return True
        first = next((job for job in self._ready if job is not suspect), suspect)
        # What is on its way in, or not yet given back, would be counted as dead with the suspect.
        if first is not suspect or (self._receiver.quiet(self._rounds) and self._recorder.quiet()):
            self._ready.remove(first)
            free.start(first)
        return True

    def _may_give_back(self, job: Job) -> bool:
        return job.whole or self.queue.limits.workers_send

    def _tick(self, now_s: float) -> None:
        for slot in self.slots:
            if slot.runner is None or not slot.runner.pid:
                continue
            slot.runner.check()
            if not slot.jobs:
                continue
            if self._kill_at_s is not None and now_s >= self._kill_at_s:
                slot.runner.stop_task(Cause.INTERRUPTED, grace_s=2.0)
            elif not self.draining:
                self._relieve(slot.runner)
        idle = sum(not slot.jobs for slot in self.slots)
        while (
            len(self._ready) > idle
            and not self._ready[-1].held.is_suspect
            and now_s - self._ready[-1].ready_s > STUCK_S
            and self._may_give_back(self._ready[-1])
        ):
            self._give_back(self._ready.pop())

    def _relieve(self, runner: Runner) -> None:
        """Take from a slot what waits behind a long task; split a message that is held for long."""
        running = runner.running()
        if running is None:
            return
        held, since_s = running[0].held, running[2]
        mine = sum(job.left for job in runner.jobs if job.held is held)
        slow = mine > 1 and held.age_s() > self.options.split_after_s and self.queue.limits.workers_send
        stuck = since_s > STUCK_S and any(job.held is not held for job in runner.jobs)
        if not (slow or stuck):
            return
        self._message_s = None
        for rest in runner.cut():
            if rest.held is not held:
                self._ready.append(rest)
            elif slow:
                self._recorder.hand_on(held, rest.pieces(self.options.split_after_s / 2))
            else:
                runner.start(rest)

    def _give_back(self, job: Job) -> None:
        """To the queue, for anyone, at no cost to the tasks."""
        if job.held.lost:
            return
        if job.whole:
            self._recorder.release(job.held)
        elif self.queue.limits.workers_send:
            self._recorder.hand_on(job.held, [job.held.part(job.got, job.stop)])
        # else: with the rest of its message, when the worker stops

    # -- what the runners say (Host) ----------------------------------------------------------------

    def attempts_ended(self, job: Job, results: list[Result], size_bytes: int = 0) -> None:
        failed = sum(result.state is not State.DONE for result in results)
        self.failed += failed
        self.done += len(results) - failed
        if not job.held.lost:
            self._recorder.attempts_ended(job.held, results, size_bytes)

    def job_over(self, took_s: float) -> None:
        self._message_s = took_s if self._message_s is None else 0.8 * self._message_s + 0.2 * took_s

    def left_over(self, jobs: Sequence[Job]) -> None:
        for job in reversed(jobs):
            if job.held.lost:
                continue
            if self._is_over(job):
                self._recorder.settle(job.held, job.left)
            else:
                self._ready.appendleft(job)

    def bad_message(self, job: Job, problem: str) -> None:
        delivery = job.held.delivery
        self.notes.once(f"a message can't be read and is set aside (see `mtask dead`): {problem}")
        dead = DeadMessage(body=delivery.body, reason=problem, worker=self.name)
        self._recorder.set_aside(delivery, dead, job.held)

    def broken(self, problem: str) -> None:
        self._stop_for(BackendError(problem))

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
            slot.tell_stopping()
            for rest in slot.runner.cut() if slot.runner is not None else ():
                self._give_back(rest)
        self._pulse.beat_soon()

    def _noticed(self, notice: Notice) -> None:
        left = "" if notice.left_s is None else f" in {notice.left_s:.0f} s"
        self.notes.say(f"{notice.what}{left}: stopping")
        self._drain(notice.what, grace_of(notice, self.options.grace_s))

    def _lost(self, held: Held) -> None:
        self.notes.once(f"a lease was lost (bag {held.bag.name!r}): its tasks may run elsewhere by now")
        self._stop_jobs(lambda job: job.held is held, Cause.LOST_LEASE)

    def _cancelled(self, over: dict[str, int]) -> None:
        self._over = over
        if over:
            self._stop_jobs(self._is_over, Cause.CANCELLED)

    def _is_over(self, job: Job) -> bool:
        """Was it sent before its bag was cancelled?"""
        return job.held.message.generation <= self._over.get(job.held.bag.uid, -1)

    def _stop_jobs(self, chosen: Callable[[Job], bool], cause: Cause) -> None:
        """`left_over` knows what is to become of those chosen."""
        ready = list(self._ready)
        self._ready.clear()
        self.left_over(ready)
        for slot in self.slots:
            runner = slot.runner
            if runner is not None and any(chosen(job) for job in runner.jobs):
                self.left_over(runner.cut())
                if runner.jobs and chosen(runner.jobs[-1]):
                    runner.stop_task(cause)

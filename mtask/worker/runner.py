"""What the two kinds of slots, for functions and for commands, have in common."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

from mtask.model import Failure, Reason, Result
from mtask.portion import Portion
from mtask.requirements import Capabilities
from mtask.retry import is_wanted
from mtask.worker.held import Job
from mtask.worker.memory import resident_bytes
from mtask.worker.notes import Notes
from mtask.worker.output import take_tail, trim
from mtask.worker.process import signal_group
from mtask.worker.room import Share

__all__ = ["HOSTNAME", "Cause", "Host", "Runner", "failed_attempt"]

KILL_AFTER_S = 5.0
"""Between SIGTERM and SIGKILL, where nothing else is said."""
HOSTNAME = socket.gethostname()


class Cause(Enum):
    """Why a running task, or an idle child, is stopped."""

    TIMEOUT = "timeout"
    MEMORY = "memory"
    LOST_LEASE = "its lease was lost"
    CANCELLED = "its bag was cancelled"
    INTERRUPTED = "the worker is stopping"
    RETIRED = "the child has run enough tasks, or holds too much memory"

    @property
    def is_failure(self) -> bool:
        """Is it the task's own failure?"""
        return self in (Cause.TIMEOUT, Cause.MEMORY)


class Host(Protocol):
    """What a runner asks of its worker."""

    selector: selectors.BaseSelector
    name: str
    notes: Notes
    path: tuple[str, ...]
    checkpoints: str

    def attempts_ended(self, job: Job, results: list[Result], size_bytes: int = 0) -> None:
        """These attempts have ended, done or failed; the results take about so much memory."""
        ...

    def portion_done(self, job: Job, portion: Portion) -> None:
        """These attempts have ended, done all of them."""
        ...

    def job_over(self, took_s: float) -> None:
        """A job has run to its end, in so many seconds."""
        ...

    def left_over(self, jobs: Sequence[Job]) -> None:
        """These were not run, or were stopped and not tried."""
        ...

    def bad_message(self, job: Job, problem: str) -> None:
        """The rows of the job's message can't be read."""
        ...

    def submit(self, request: bytes, answer: Callable[[bytes], None]) -> None:
        """A task submits tasks; `answer` is to be called by the main thread. See `mtask.worker.submits`."""
        ...

    def broken(self, problem: str) -> None:
        """This worker can't run anything."""
        ...


class Runner:
    """Runs jobs of one kind in one slot, one task at a time; lives in the worker's main thread."""

    pid = 0
    """Of the process, and process group, that is there; 0: none."""

    def __init__(self, host: Host, *, machine: Capabilities | None = None) -> None:
        """`machine`: what the tasks' shares are shares of."""
        self.host, self._machine = host, machine or Capabilities()
        self.jobs: deque[Job] = deque()
        self._cause: Cause | None = None
        self._meant: tuple[Job, int] | None = None
        """The task that `_cause` is about: by the time the process dies, another one may run in it."""
        self._kill_at_s = self._over_s = 0.0
        self._taken_bytes = 0
        """Memory, when that was too much."""
        self._setup_over_s: float | None = None
        """How long its setup function might have taken, if it was that which took too long."""

    # -- for the worker -----------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        """Run this job, after those already here."""
        raise NotImplementedError

    def warm(self, share: Share) -> None:
        """Do what can be done before the first job comes."""

    def front_began_s(self) -> float:
        """When the first of its jobs, of which there is one, began (monotonic clock)."""
        return max(self.jobs[0].began_s, self._over_s)

    def cut(self) -> list[Job]:
        """Keep only the task that is running; returns the rest of its job and the jobs behind it."""
        raise NotImplementedError

    def running(self) -> tuple[Job, int, float] | None:
        """(job, offset, seconds since its start) of the task that is running."""
        raise NotImplementedError

    def setup_s(self) -> float | None:
        """While a setup function of the running task runs, how long it may take; the task's time is since then."""
        return None

    def outputs(self) -> tuple[int, int]:
        """Descriptors of what the running task prints to stdout and stderr."""
        raise NotImplementedError

    def check(self) -> None:
        """To be called now and then: ends what has run too long or doesn't obey."""
        if self._cause is not None and time.monotonic() >= self._kill_at_s:
            self._signal(signal.SIGKILL)
        setup_s = self.setup_s()
        if (running := self.running()) is None:
            return
        job, offset, since_s = running
        timeout_s = job.held.bag.spec.timeout_s if setup_s is None else setup_s
        if (
            self._cause is None
            and timeout_s is not None
            and since_s > timeout_s
            and setup_s == self.setup_s()
        ):
            self.stop_task(Cause.TIMEOUT)
            self._meant, self._setup_over_s = (job, offset), setup_s
        memory_bytes = job.held.memory_bytes
        if self._cause is None and memory_bytes is not None:
            self._taken_bytes = self.taken_bytes()
            if self._taken_bytes > memory_bytes:
                self.stop_task(Cause.MEMORY, grace_s=0)
                self._signal(signal.SIGKILL)  # it would only take more
                self._meant = job, offset
        if since_s > 1:
            for fd in self.outputs():
                trim(fd)

    def stop_task(self, cause: Cause, *, grace_s: float = KILL_AFTER_S) -> None:
        """SIGTERM to the running task's process group; SIGKILL after `grace_s`."""
        if self._cause is None:
            self._hold()
            running = self.running()
            self._meant = running[:2] if running is not None else None
            self._cause, self._kill_at_s = cause, time.monotonic() + grace_s
            self._signal(signal.SIGTERM)
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + grace_s)

    def suits(self, _share: Share) -> bool:
        """Can a task with this share be started? If not, the process that is there must be retired before."""
        return True

    def gpus(self) -> tuple[str, ...]:
        """On which a process that runs nothing just now may hold memory."""
        return ()

    @property
    def retiring(self) -> bool:
        """Its process is about to go: give it nothing more until it has gone."""
        return self._cause is not None

    def taken_bytes(self) -> int:
        """Memory that the running task takes."""
        return resident_bytes(self.pid)

    def tell_stopping(self) -> None:
        """Let the running task know that the worker is about to stop."""

    def retire(self) -> None:
        """End a process that has nothing to do; it goes in its own time."""

    def close(self) -> None:
        """End the processes at once, and free what the slot holds."""
        raise NotImplementedError

    # -- for the two kinds --------------------------------------------------------------------------

    def _hold(self) -> None:
        """Whatever becomes of the signal that is about to be sent, no other task begins."""

    def _signal(self, number: int) -> None:
        """To the process group. The process itself must not have been waited for."""
        if self.pid:
            signal_group(self.pid, number)

    def _why_stopped(self, job: Job) -> Failure:
        """Of a task that was stopped for a failure of its own."""
        if self._cause is Cause.MEMORY:
            limit_bytes = job.held.memory_bytes or 0
            text = f"took {self._taken_bytes / 1e6:,.0f} MB; it may take {limit_bytes / 1e6:,.0f} MB"
            return Failure(reason=Reason.MEMORY, type="memory", message=text)
        spec = job.held.bag.spec
        if self._setup_over_s is not None:
            return Failure(
                reason=Reason.SETUP,
                type="timeout",
                message=f"a setup function ran longer than {self._setup_over_s:g} s",
                final=not is_wanted(spec, {Reason.SETUP.value, Reason.TIMEOUT.value}),
            )
        timeout_s = spec.timeout_s
        return Failure(reason=Reason.TIMEOUT, type="timeout", message=f"ran longer than {timeout_s:g} s")

    def _over(self, job: Job) -> None:
        """Tell how long the job took, without its wait behind the one before."""
        now_s = time.monotonic()
        began_s, self._over_s = max(job.began_s, self._over_s), now_s
        self.host.job_over(now_s - began_s)


def failed_attempt(
    runner: Runner, job: Job, offset: int, error: Failure, wall_s: float, **fields: Any
) -> Result:
    """The result of an attempt of which only the supervisor can tell."""
    message, now = job.held.message, time.time()
    stdout, stderr = runner.outputs()
    return Result.failed(
        message.bag,
        message.first + offset,
        error,
        id=job.held.id_of(offset),
        stdout=take_tail(stdout, job.held.bag.spec.tail_bytes),
        stderr=take_tail(stderr, job.held.bag.spec.tail_bytes),
        attempt=message.attempt + 1,
        worker=runner.host.name,
        host=HOSTNAME,
        queued_at=message.sent_at,
        started_at=round(now - wall_s, 6),
        finished_at=round(now, 6),
        wall_s=round(wall_s, 9),
        **fields,
    )

"""A slot for command tasks: each in a process group of its own, started by the supervisor itself."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mtask import task
from mtask.errors import MtaskError
from mtask.model import COMMAND_COLUMN, Failure, Reason, Result, Spec, State
from mtask.requirements import Capabilities
from mtask.template import Template, shell_environment, split_command, text_of
from mtask.worker.environment import environment_of, pinned
from mtask.worker.held import Job
from mtask.worker.orphans import MARK
from mtask.worker.output import take_tail
from mtask.worker.porter import Answer, Porter
from mtask.worker.process import spawn
from mtask.worker.room import Share
from mtask.worker.runner import HOSTNAME, Host, Runner, failed_attempt, why_it_died
from mtask.worker.sandbox import Sandbox

if TYPE_CHECKING:
    from mtask.staging import Staging

__all__ = ["CommandRunner"]

LAST_REMOVALS_S = 5.0
"""So long a worker that ends waits for the store of checkpoints."""
_ROWS = msgspec.json.Decoder(list[list[Any]])


class CommandRunner(Runner):
    """Starts one command after the other.

    A command owns its process group and its scratch directory: when it ends, what it left in them goes.
    """

    def __init__(self, host: Host, *, machine: Capabilities | None = None) -> None:
        super().__init__(host, machine=machine)
        self._sandbox, self._spare = Sandbox(host.name), Sandbox(host.name)
        """Of the command that runs, and of the next one: that is started before this one's is cleaned."""
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._makers: dict[tuple[str, tuple[str, ...]], _Maker] = {}
        self._porter: Porter | None = None
        self._staged = False
        self._outputs: dict[str, str] = {}
        """Of the task that runs: name → URL."""
        self._carrying: Callable[[Failure | None, dict[str, str]], None] | None = None
        """What follows when its inputs are there, or its outputs have been put; till then the porter runs for it."""
        self._rows: dict[int, list[list[Any]]] = {}
        """Of each job's message."""
        self._started_s = self._started_at = 0.0
        self._remover: _Remover | None = None
        self._checkpoints = task.rooted(host.checkpoints)
        self._surroundings: tuple[Share | None, dict[str, str]] | None = None
        """The share of late, and the environment that all commands with it have in common."""

    # -- jobs ---------------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        message = job.held.message
        try:
            rows = _ROWS.decode(message.rows)
            if any(len(row) != len(message.columns) for row in rows):
                raise ValueError("a row doesn't match the columns")
        except (ValueError, RecursionError) as error:
            self.host.bad_message(job, str(error))
            return
        job.began_s = time.monotonic()
        self.jobs.append(job)
        self._rows[job.serial] = rows
        if len(self.jobs) == 1:
            self._next()

    def cut(self) -> list[Job]:
        rests: list[Job] = []
        while len(self.jobs) > 1:
            rests.insert(0, self.jobs.pop())
        if self.jobs:
            job = self.jobs[0]
            stop = job.got + (1 if self.pid else 0)
            if stop < job.stop:
                rests.insert(0, Job(job.held, stop, job.stop))
                job.stop = stop
        return rests

    def running(self) -> tuple[Job, int, float] | None:
        if not self.pid or not self.jobs:
            return None
        return self.jobs[0], self.jobs[0].got, time.monotonic() - self._started_s

    def outputs(self) -> tuple[int, int]:
        return self._sandbox.outputs

    # -- one command --------------------------------------------------------------------------------

    def _next(self) -> None:
        """Start the next task; ends the jobs that have none left."""
        while self.jobs and not self.pid:
            job = self.jobs[0]
            if job.left and job.held.is_expired:
                expired = job.held.expired(job.held.message.first + job.got, self.host.name)
                job.got += 1
                self.host.attempts_ended(job, [expired])
            elif job.left:
                self._start(job, self._rows[job.serial][job.got])
            else:
                self.jobs.popleft()
                del self._rows[job.serial]
                self._over(job)

    def _start(self, job: Job, row: list[Any]) -> None:
        self._started_s, self._started_at = time.monotonic(), time.time()
        self._cause = self._meant = None
        message = job.held.message
        key = (message.uid, message.columns)
        try:
            if key not in self._makers:
                self._makers = {key: _Maker(job.held.bag.spec, message.columns)}
            staging = self._makers[key].staging
            if staging is None:
                return self._launch(job, row, {})
            inputs, self._outputs = staging.urls(row)
            self._carry(
                lambda porter: porter.open(inputs, self._outputs),
                lambda failure, paths: self._fail(job, failure) if failure else self._launch(job, row, paths),
            )
        except (OSError, ValueError, MtaskError) as error:
            self._fail(job, Failure(reason=Reason.START, type=type(error).__name__, message=str(error)))

    def _launch(self, job: Job, row: list[Any], paths: dict[str, str]) -> None:
        argv: list[str] = []
        try:
            argv, environment = self._command(job, row, paths)
            stdout, stderr = self._sandbox.outputs
            with pinned(job.share):
                self.pid = spawn(argv, environment, stdin=self._null, stdout=stdout, stderr=stderr)
        except (OSError, ValueError, RecursionError, MtaskError) as error:
            text = (
                f"can't start {argv[0]!r}: {error.strerror}"
                if argv and isinstance(error, OSError)
                else str(error)
            )
            self._fail(job, Failure(reason=Reason.START, type=type(error).__name__, message=text))
            return
        self._pidfd = os.pidfd_open(self.pid)
        self.host.selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def _fail(self, job: Job, failure: Failure, wall_s: float | None = None, **fields: Any) -> None:
        """The attempt of the task that was to run, or has run, just now."""
        if wall_s is None:
            wall_s = time.monotonic() - self._started_s
        result = failed_attempt(self, job, job.got, failure, wall_s, **fields)
        if failure.reason in (Reason.EXIT, Reason.SIGNAL) and (said := result.stderr.strip()):
            text = f"{failure.message}: {said.splitlines()[-1][-500:]}"
            result = msgspec.structs.replace(result, error=msgspec.structs.replace(failure, message=text))
        self._cause = self._meant = None  # nothing is about to go any more
        self._stage_over()
        self._sandbox.clean()
        job.got += 1
        self.host.attempts_ended(job, [result], len(result.stdout) + len(result.stderr))

    def _command(self, job: Job, row: list[Any], paths: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """(argv, environment) of a task. Raises ValueError when the row has no command in it."""
        message = job.held.message
        scratch = self._sandbox.scratch()
        environment = {
            **self._environment(job.share),
            "TMPDIR": scratch,
            "MTASK_SCRATCH": scratch,
            "MTASK_BAG": message.bag,
            "MTASK_INDEX": str(message.first + job.got),
            "MTASK_ID": job.held.id_of(job.got) or "",
            "MTASK_ATTEMPT": str(message.attempt + 1),
            "MTASK_CHECKPOINT_DIR": self._checkpoint(job, job.got),
        }
        argv, parameters = self._makers[message.uid, message.columns](row, paths)
        return argv, environment | parameters

    def _environment(self, share: Share | None) -> dict[str, str]:
        """Made anew only for another share: `os.environ` is decoded anew each time it is read."""
        if self._surroundings is None or share != self._surroundings[0]:
            own = environment_of(share, self._machine)
            self._surroundings = share, {**os.environ, **own, MARK: self.host.name}
        return self._surroundings[1]

    def _checkpoint(self, job: Job, offset: int) -> str:
        return task.place_of(self._checkpoints, job.held.bag.uid, job.held.message.first + offset)

    def _remove_checkpoint(self, place: str) -> None:
        if "://" not in place:
            task.remove(place)
            return
        if self._remover is None:
            self._remover = _Remover()
            self._remover.start()
        self._remover.places.put(place)

    def _on_exit(self) -> None:
        self._signal(signal.SIGKILL)  # what it has started goes with it
        _, wait_status, usage = os.wait4(self.pid, 0)
        wall_s = time.monotonic() - self._started_s
        self.pid = 0
        status, cause, job = os.waitstatus_to_exitcode(wait_status), self._cause, self.jobs[0]
        fields: dict[str, Any] = {
            "exit_code": status,
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 6),
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        if status == 0 and cause is None:
            return self._put(job, fields) if self._outputs else self._done(job, wall_s, fields, self._pidfd)
        self._forget(self._pidfd)
        if cause is not None and not cause.is_failure:
            return self._stopped()
        error = why_it_died(status) if cause is None else self._why_stopped(job)
        self._fail(job, error, wall_s, **fields)
        self._next()

    # -- what is fetched for it, and put somewhere after it ------------------------------------------

    def _carry(
        self, ask: Callable[[Porter], None], then: Callable[[Failure | None, dict[str, str]], None]
    ) -> None:
        """Meanwhile the porter's process stands for the task's: what stops the task ends it. Raises OSError."""
        if self._porter is None:
            self._porter = Porter(self.host.selector, self.host.name, self._on_answer, self._on_porter_exit)
        ask(self._porter)
        self.pid, self._carrying, self._staged = self._porter.pid, then, True

    def _on_answer(self, answer: Answer) -> None:
        if self._carrying is None:
            return
        if self._cause is not None and (answer.paths or answer.failure):
            return  # its process is about to go, and tells then; but what has been put in its place is done
        self._cause = self._meant = None
        self.pid, then, self._carrying = 0, self._carrying, None
        then(answer.failure, answer.paths)
        self._next()

    def _on_porter_exit(self, status: int) -> None:
        if self._carrying is None:
            return
        self.pid, self._carrying = 0, None
        if self._cause is not None and not self._cause.is_failure:
            return self._stopped()
        job = self.jobs[0]
        self._fail(job, why_it_died(status) if self._cause is None else self._why_stopped(job))
        self._next()

    def _put(self, job: Job, fields: dict[str, Any]) -> None:
        """What the command, which has succeeded, wrote. Until all of it is there, the task isn't done."""

        def then(failure: Failure | None, _: dict[str, str]) -> None:
            if failure is not None:
                return self._fail(job, failure, **fields)
            self._done(job, time.monotonic() - self._started_s, fields)

        self._forget(self._pidfd)
        try:
            self._carry(lambda porter: porter.put(self._outputs), then)
        except OSError as error:
            self._fail(job, Failure(reason=Reason.START, type=type(error).__name__, message=str(error)))
            self._next()

    def _stage_over(self) -> None:
        if self._staged and self._porter is not None:
            self._porter.end()
        self._staged, self._outputs = False, {}

    def taken_bytes(self) -> int:
        return 0 if self._carrying else super().taken_bytes()  # the porter's memory isn't the task's

    # -- the end of it ------------------------------------------------------------------------------

    def _done(self, job: Job, wall_s: float, fields: dict[str, Any], pidfd: int | None = None) -> None:
        """The next command is started first, and runs while this one's end is written down."""
        offset, started_at, sandbox = job.got, self._started_at, self._sandbox
        self._sandbox, self._spare = self._spare, sandbox
        job.got += 1
        self._stage_over()
        self._next()
        if pidfd is not None:
            self._forget(pidfd)
        message, tail_bytes = job.held.message, job.held.bag.spec.tail_bytes
        stdout, stderr = (take_tail(fd, tail_bytes) for fd in sandbox.outputs)
        sandbox.clean()
        result = Result(
            bag=message.bag,
            index=message.first + offset,
            state=State.DONE,
            id=job.held.id_of(offset),
            stdout=stdout,
            stderr=stderr,
            attempt=message.attempt + 1,
            worker=self.host.name,
            host=HOSTNAME,
            queued_at=message.sent_at,
            started_at=round(started_at, 6),
            finished_at=round(started_at + wall_s, 6),
            wall_s=round(wall_s, 9),
            **fields,
        )
        self._remove_checkpoint(self._checkpoint(job, offset))
        self.host.attempts_ended(job, [result], len(stdout) + len(stderr))

    def _forget(self, pidfd: int) -> None:
        self.host.selector.unregister(pidfd)
        os.close(pidfd)

    def _stopped(self) -> None:
        """The task was stopped, not tried: it and what is behind it go back to the worker."""
        self._stage_over()
        self._sandbox.clean()
        for fd in self._sandbox.outputs:
            take_tail(fd)
        rests = [job.rest() for job in self.jobs if job.left]
        self.jobs.clear()
        self._rows.clear()
        self._cause = self._meant = None
        self.host.left_over(rests)

    def close(self) -> None:
        if self._porter is not None:
            self.pid = 0 if self._carrying else self.pid
            self._carrying = None
            self._porter.close()
        if self.pid:
            self._signal(signal.SIGKILL)
            os.wait4(self.pid, 0)
            self._forget(self._pidfd)
            self.pid = 0
        self.jobs.clear()
        self._sandbox.close()
        self._spare.close()
        os.close(self._null)
        if self._remover is not None:
            self._remover.places.put(None)
            self._remover.join(LAST_REMOVALS_S)


class _Remover(threading.Thread):
    """Removes checkpoints at URLs, because the worker's main thread can't wait for a store."""

    def __init__(self) -> None:
        super().__init__(name="mtask-checkpoints", daemon=True)
        self.places = queue.SimpleQueue[str | None]()

    def run(self) -> None:
        while (place := self.places.get()) is not None:
            with contextlib.suppress(Exception):  # the task is done all the same
                task.remove(place)


class _Maker:
    """From a row, and the paths of what is staged, to argv and the row's own environment variables."""

    def __init__(self, spec: Spec, columns: tuple[str, ...]) -> None:
        """Raises UsageError or ValueError, as calling it does."""
        self.staging: Staging | None = None
        if spec.staged:
            from mtask.staging import Staging

            self.staging = Staging(spec, columns)
        self._make = _maker(spec, columns if self.staging is None else self.staging.columns)
        self._is_command = spec.kind == "command"

    def __call__(self, row: list[Any], paths: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        if self.staging is None:
            return self._make(row)
        argv, environment = self._make(self.staging.filled(row, paths))
        if self._is_command:
            for name, path in paths.items():
                argv = [word.replace(f"{{{name}}}", path) for word in argv]
        return argv, environment | paths


def _maker(spec: Spec, columns: tuple[str, ...]) -> Callable[[list[Any]], tuple[list[str], dict[str, str]]]:
    """From a row to argv and the row's own environment variables; raises UsageError or ValueError."""
    if spec.kind == "shell":
        variables = shell_environment(columns)
        return lambda row: (["/bin/sh", "-c", spec.target[0]], variables(row))
    if spec.kind == "command":
        at = columns.index(COMMAND_COLUMN)
        return lambda row: (split_command(text_of(row[at])), {})
    template = Template(spec.target, columns)
    return lambda row: (template.argv(row), {})

"""A slot for command tasks: each in a process group of its own, started by the supervisor itself."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgspec

from mtask.errors import MtaskError
from mtask.model import COMMAND_COLUMN, Failure, Reason, Result, Spec, State
from mtask.template import Template, shell_environment, split_command, text_of
from mtask.worker.held import Job
from mtask.worker.output import new_output, take_tail
from mtask.worker.slots import HOSTNAME, Cause, Host, Runner, failed_attempt

__all__ = ["CommandRunner"]

_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ]
"""Python ignores these; a command should not."""


class CommandRunner(Runner):
    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._stdout, self._stderr = new_output(), new_output()
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._scratch = ""
        self._makers: dict[tuple[str, tuple[str, ...]], Callable[[list[Any]], tuple[list[str], dict[str, str]]]] = {}
        self._started_s = self._started_at = 0.0

    # -- jobs ---------------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        job.began_s = time.monotonic()
        self.jobs.append(job)
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
        return self._stdout, self._stderr

    # -- one command --------------------------------------------------------------------------------

    def _next(self) -> None:
        """Start the next task; ends the jobs that have none left."""
        while self.jobs and not self.pid:
            job = self.jobs[0]
            if job.got >= job.stop:
                self.jobs.popleft()
                self._over(job)
                continue
            try:
                row = msgspec.json.decode(job.held.rows[job.got], type=list[Any])
                if len(row) != len(job.held.message.columns):
                    raise ValueError("a row doesn't match the message's columns")
            except (IndexError, ValueError, msgspec.DecodeError) as error:
                self.jobs.popleft()
                self.host.bad_message(job, str(error))
                continue
            self._start(job, row)

    def _start(self, job: Job, row: list[Any]) -> None:
        self._started_s, self._started_at = time.monotonic(), time.time()
        self._cause = None
        argv: list[str] = []
        try:
            argv, environment = self._command(job, row)
            self.pid = os.posix_spawnp(
                argv[0],
                argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._null, 0),
                    (os.POSIX_SPAWN_DUP2, self._stdout, 1),
                    (os.POSIX_SPAWN_DUP2, self._stderr, 2),
                ],
                setpgroup=0,
                setsigdef=_DEFAULT_SIGNALS,
            )
        except (OSError, ValueError, MtaskError) as error:
            text = f"can't start {argv[0]!r}: {error.strerror}" if argv and isinstance(error, OSError) else str(error)
            failure = Failure(reason=Reason.START, type=type(error).__name__, message=text)
            result = failed_attempt(self, job, job.got, failure, 0.0)
            job.got += 1
            self.host.attempts_ended(job, [result])
            return
        self._pidfd = os.pidfd_open(self.pid)
        self.host.selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def _command(self, job: Job, row: list[Any]) -> tuple[list[str], dict[str, str]]:
        """(argv, environment) of a task. Raises ValueError when the row has no command in it."""
        spec, message = job.held.bag.spec, job.held.message
        if not self._scratch:
            self._scratch = tempfile.mkdtemp(prefix="mtask-scratch-")
        environment = {
            **os.environ,
            "TMPDIR": self._scratch,
            "MTASK_SCRATCH": self._scratch,
            "MTASK_BAG": message.bag,
            "MTASK_INDEX": str(message.first + job.got),
            "MTASK_ID": job.held.id_of(job.got) or "",
            "MTASK_ATTEMPT": str(message.attempt + 1),
        }
        key = (message.uid, message.columns)
        if key not in self._makers:
            self._makers = {key: _maker(spec, message.columns)}
        argv, parameters = self._makers[key](row)
        return argv, environment | parameters

    def _on_exit(self) -> None:
        _, wait_status, usage = os.wait4(self.pid, 0)
        wall_s = time.monotonic() - self._started_s
        self.host.selector.unregister(self._pidfd)
        os.close(self._pidfd)
        if self._cause is not None:
            # Whoever didn't obey the signal that ended the command goes with it.
            self._signal(signal.SIGKILL)
        self.pid = 0
        status, cause, job = os.waitstatus_to_exitcode(wait_status), self._cause, self.jobs[0]
        self._clean_scratch()
        if cause not in (None, Cause.TIMEOUT):
            return self._stopped(job, cause)
        fields: dict[str, Any] = {
            "exit_code": status,
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 6),
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        if status == 0 and cause is None:
            result = self._done(job, wall_s, fields)
        else:
            result = failed_attempt(self, job, job.got, self._failure(cause, status), wall_s, **fields)
            if cause is None and (said := result.stderr.strip()):
                assert result.error is not None
                text = f"{result.error.message}: {said.splitlines()[-1][-500:]}"
                error = msgspec.structs.replace(result.error, message=text)
                result = msgspec.structs.replace(result, error=error)
        job.got += 1
        self.host.attempts_ended(job, [result])
        self._next()

    def _done(self, job: Job, wall_s: float, fields: dict[str, Any]) -> Result:
        message = job.held.message
        return Result(
            bag=message.bag,
            index=message.first + job.got,
            state=State.DONE,
            id=job.held.id_of(job.got),
            stdout=take_tail(self._stdout),
            stderr=take_tail(self._stderr),
            attempt=message.attempt + 1,
            worker=self.host.name,
            host=HOSTNAME,
            queued_at=message.sent_at,
            started_at=round(self._started_at, 6),
            finished_at=round(self._started_at + wall_s, 6),
            wall_s=round(wall_s, 9),
            **fields,
        )

    def _stopped(self, job: Job, cause: Cause | None) -> None:
        """The task was stopped, not tried: it and what is behind it go back to the worker."""
        take_tail(self._stdout), take_tail(self._stderr)
        behind = [self.jobs.pop() for _ in range(len(self.jobs) - 1)][::-1]
        self.jobs.clear()
        self.host.left_over([Job(job.held, job.got, job.stop)], cause)
        self.host.left_over(behind, None)

    def _clean_scratch(self) -> None:
        with os.scandir(self._scratch) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)

    def close(self) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        for fd in (self._stdout, self._stderr, self._null):
            os.close(fd)


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

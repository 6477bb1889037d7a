"""Command tasks, in the process that starts them: each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from mtask import task
from mtask.errors import MtaskError
from mtask.model import COMMAND_COLUMN, Failure, Message, Reason, Spec
from mtask.portion import Done, line_of
from mtask.template import Template, shell_environment, split_command, text_of
from mtask.worker.child.sandbox import Sandbox
from mtask.worker.failure import noted, why_it_died
from mtask.worker.output import take_tail
from mtask.worker.process import signal_group, spawn
from mtask.worker.wire import STOPPED, Cell

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from mtask.staging import Staging
    from mtask.worker.child.loop import Child, Run, ShareFrame
    from mtask.worker.child.stage import Stage

__all__ = ["Commands"]

NO_VALUE = msgspec.Raw(b"null")


class Commands:
    """Starts a command for each task, and waits for it.

    The supervisor's SIGTERM goes on to the command; its SIGUSR1 kills it. Both end this process when no command runs,
    but not while the end of one is noted. Of others they mean nothing: who sends them to all processes of a service,
    or of a batch job, has sent them to the command and to the supervisor, too.
    """

    def __init__(self, child: Child) -> None:
        self._child, self._words = child, child.cell.words
        self._outputs = child.printed.outputs
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._sandbox = Sandbox(os.path.join(child.kit.folder, "scratch"))
        self._makers: dict[tuple[str, tuple[str, ...]], _Maker] = {}
        self._stage: Stage | None = None
        """Made for the first task that has inputs or outputs."""
        self._own, self._cores = dict(os.environb), os.sched_getaffinity(0)
        self._share: ShareFrame | None = None
        self._surroundings = self._own
        """The environment that all commands with this share have in common."""
        self._encoder = msgspec.json.Encoder()
        self._remover: ThreadPoolExecutor | None = None
        """Of checkpoints at URLs."""
        self._pid, self._starts, self._told, self._over = 0, False, 0, False
        """Of the command that runs; is it being started; the signal that has told it to end; is its end being noted."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def of(self, message: Message, spec: Spec) -> Run:
        if self._share is not self._child.share:
            self._take(self._child.share)
        common = self._surroundings | {
            b"MTASK_BAG": os.fsencode(message.bag),
            b"MTASK_ATTEMPT": b"%d" % (message.attempt + 1),
        }
        return partial(self._run, message, spec, common)

    def _take(self, share: ShareFrame) -> None:
        self._share = share
        more = {os.fsencode(name): os.fsencode(value) for name, value in share.variables.items()}
        self._surroundings = self._own | more
        # A command inherits them, and so has no moment without. Cores that the worker has lost are nobody's loss.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, share.cores or self._cores)

    def _run(
        self,
        message: Message,
        spec: Spec,
        common: dict[bytes, bytes],
        index: int,
        row: list[Any],
        name: str | None,
    ) -> tuple[bytes, bool]:
        started_at, began_s = time.time(), time.monotonic()
        checkpoint = task.place_of(self._child.kit.checkpoints, message.uid, index)
        ended = Done(index, "done", name, NO_VALUE)
        try:
            environment = common | {
                b"MTASK_INDEX": b"%d" % index,
                b"MTASK_ID": os.fsencode(name or ""),
                b"MTASK_CHECKPOINT_DIR": os.fsencode(checkpoint),
            }
            failure = self._do(self._maker(message, spec), row, environment, ended)
        except (OSError, ValueError, RecursionError, MtaskError) as error:
            failure = noted(error, "staging", Failure)
            failure = failure or Failure(reason=Reason.START, type=type(error).__name__, message=str(error))
        self._over = True
        wall_s = time.monotonic() - began_s
        if self._stage is not None:
            self._stage.close()
        ended.stdout, ended.stderr = (take_tail(fd, spec.tail_bytes) for fd in self._outputs)
        self._sandbox.clean()
        ended.attempt, ended.queued_at = message.attempt + 1, message.sent_at
        ended.worker, ended.host = self._child.worker, self._child.host
        ended.started_at, ended.finished_at = round(started_at, 6), round(started_at + wall_s, 6)
        ended.wall_s = round(wall_s, 9)
        if failure is None:
            self._remove(checkpoint)
            line = self._encoder.encode(ended)[1:]
        else:
            line = line_of(ended.failed(message.bag, _explained(failure, ended.stderr)))
        self._told, self._over = 0, False
        return line, failure is None

    def _do(
        self, maker: _Maker, row: list[Any], environment: dict[bytes, bytes], ended: Done
    ) -> Failure | None:
        """Why it failed; what can be told of its end is noted in `ended`. Raises StageError, OSError and ValueError."""
        paths: dict[str, str] = {}
        outputs: dict[str, str] = {}
        if maker.staging is not None:
            inputs, outputs = maker.staging.urls(row)
            paths = self._open(inputs, outputs)
        argv, variables = maker(row, paths)
        if not argv:
            raise ValueError("the command is empty")
        scratch = os.fsencode(self._sandbox.scratch())
        environment |= {b"TMPDIR": scratch, b"MTASK_SCRATCH": scratch}
        environment |= {os.fsencode(key): os.fsencode(value) for key, value in variables.items()}
        try:
            status = self._wait(argv, environment, ended)
        except OSError as error:
            text = f"can't start {argv[0]!r}: {error.strerror}"
            return Failure(reason=Reason.START, type=type(error).__name__, message=text)
        if self._told:
            return Failure(reason=Reason.SIGNAL, type=STOPPED, message="told to stop")
        if status:
            return why_it_died(status)
        if outputs and self._stage is not None:
            self._stage.put(outputs)
        return None

    def _wait(self, argv: list[str], environment: dict[bytes, bytes], ended: Done) -> int:
        """The exit status; -N for signal N. Raises OSError and ValueError."""
        stdout, stderr = self._outputs
        self._told, self._starts = 0, True
        self._words[Cell.COMMAND] = -1
        try:
            self._pid = spawn(argv, environment, stdin=self._null, stdout=stdout, stderr=stderr)
        finally:
            self._words[Cell.COMMAND] = self._pid
            self._starts = False
        if self._told:  # meanwhile
            self._signal(self._told)
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        pid, self._pid = self._pid, 0
        signal_group(pid, signal.SIGKILL)  # what it has started goes with it
        self._words[Cell.COMMAND] = 0
        _, wait_status, usage = os.wait4(pid, 0)
        ended.exit_code = status = os.waitstatus_to_exitcode(wait_status)
        ended.cpu_s = round(usage.ru_utime + usage.ru_stime, 6)
        ended.peak_bytes = usage.ru_maxrss * 1024
        return status

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._words[Cell.TOLD]:
            return
        if self._pid or self._starts:
            self._told = number
            self._signal(number)
        elif not (self._told or self._over):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _signal(self, number: int) -> None:
        if self._pid:
            signal_group(self._pid, signal.SIGTERM if number == signal.SIGTERM else signal.SIGKILL)

    def _maker(self, message: Message, spec: Spec) -> _Maker:
        """Raises UsageError or ValueError."""
        key = (message.uid, message.columns)
        if key not in self._makers:
            self._makers = {key: _Maker(spec, message.columns)}
        return self._makers[key]

    def _open(self, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, str]:
        """Raises StageError."""
        if self._stage is None:
            from mtask.worker.child.stage import Stage

            self._stage = Stage(os.path.join(self._child.kit.folder, "out"))
        return self._stage.open(inputs, outputs)

    def _remove(self, checkpoint: str) -> None:
        """Of a task that is done all the same."""
        if "://" not in checkpoint:
            with contextlib.suppress(Exception):
                task.remove(checkpoint)
            return
        if self._remover is None:  # the next command doesn't wait for a store
            from concurrent.futures import ThreadPoolExecutor

            self._remover = ThreadPoolExecutor(1, "mtask-checkpoints")
        self._remover.submit(task.remove, checkpoint)


def _explained(failure: Failure, stderr: str) -> Failure:
    """With what the command said last."""
    if failure.reason not in (Reason.EXIT, Reason.SIGNAL) or not (said := stderr.strip()):
        return failure
    return msgspec.structs.replace(failure, message=f"{failure.message}: {said.splitlines()[-1][-500:]}")


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

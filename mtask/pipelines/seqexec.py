"""`mtask seqexec`: a list of commands, one a line, in the place of pegasus-cluster.

Source of the options, records and exit statuses: the manual page pegasus-cluster(1) of Pegasus 5.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mtask.errors import InputError, MtaskError
from mtask.pipelines.crew import Crew, Ended
from mtask.pipelines.dag import refuse
from mtask.pipelines.host import Stopping
from mtask.pipelines.logs import Log
from mtask.pipelines.outputs import pour, write_all
from mtask.pipelines.records import Quoted, application_of, date_text, record
from mtask.pipelines.words import split_words
from mtask.worker.failure import why_it_died
from mtask.worker.orphans import MARK, watch_for_orphans
from mtask.worker.runner import HOSTNAME

__all__ = [
    "BAD_INPUT",
    "BAD_STATUS",
    "CommandList",
    "open_input",
    "read_commands",
    "run_sequence",
    "slots_of",
]

TASK_FAILED, BAD_STATUS, BAD_INPUT, INTERRUPTED = 5, 2, 3, 130
_SETUP, _CLEANUP = -1, -2
"""Keys of the two commands around the sequence."""


@dataclass(frozen=True, kw_only=True)
class CommandList:
    """The options of pegasus-cluster."""

    commands: list[Command]
    lines: int
    slots: int = 1
    always_succeed: bool = False
    fail_hard: bool = False
    good_codes: Collection[int] = ()
    status_fd: int = 1
    progress: str | None = None
    verbosity: int = 0


class Command(NamedTuple):
    """A line of the file."""

    line: int
    argv: list[str]


def read_commands(text: str, source: str) -> tuple[list[Command], int]:
    """The commands, and the number of lines. Raises InputError, which names every malformed line by its number."""
    lines = text.split("\n")
    commands: list[Command] = []
    problems: list[tuple[int, str]] = []
    for at, raw in enumerate(lines, 1):
        line = raw.strip(" \t\r\v\f")
        if not line or line.startswith("#"):
            continue
        try:
            argv = split_words(line)
            if "\0" in line:
                raise ValueError("there is a NUL in it, which no program can be given")
            if not argv[0]:
                raise ValueError("there is no program in it")
        except ValueError as error:
            problems.append((at, f"{error}: {line[:60]!r}"))
            continue
        commands.append(Command(at, argv))
    refuse(source, problems)
    return commands, len(lines) - (not lines[-1])


def run_sequence(options: CommandList) -> int:
    """Exit status: 0, 5 when a command failed, 130 stopped by a signal."""
    name = f"{HOSTNAME}-{os.getpid()}-{secrets.token_hex(2)}"
    stopping = Stopping()
    with (
        watch_for_orphans(name),
        contextlib.closing(Crew({**os.environ, MARK: name})) as crew,
        stopping.watched(),
    ):
        return _Run(options, crew, stopping).to_the_end()


class _Run:
    """One run of a list of commands."""

    def __init__(self, options: CommandList, crew: Crew, stopping: Stopping) -> None:
        self._options, self._crew, self._stopping = options, crew, stopping
        self._log = Log("mtask seqexec", options.verbosity)
        self._progress = _Progress(options.progress, self._log)
        self._todo = deque(enumerate(options.commands, 1))
        self._running: dict[int, Command] = {}
        self._started = self._failed = self._extra = 0
        self._broken = False

    def to_the_end(self) -> int:
        started_at, began_s = time.time(), time.monotonic()
        self._progress.begun(started_at)
        self._beside("SEQEXEC_SETUP", _SETUP)
        while self._todo or self._running:
            self._fill()
            if not self._running:
                break
            ended = self._crew.wait()
            for each in ended:
                self._running.pop(each.key)
            if self._stopping.count:
                self._stop(f"stopped by {self._stopping.signal}")
            if self._stopping.count > 1:
                self._crew.kill()
            # After a failure nothing more may be wanted. Behind success others run while it is written down.
            for each in [each for each in ended if each.status]:
                self._conclude(each)
            self._fill()
            for each in [each for each in ended if not each.status]:
                self._conclude(each)
        self._beside("SEQEXEC_CLEANUP", _CLEANUP)
        self._progress.close()
        return self._finish(started_at, began_s)

    def _fill(self) -> None:
        while self._todo and len(self._running) < self._options.slots:
            number, command = self._todo.popleft()
            self._running[number] = command
            self._started += 1
            self._crew.start(number, command.argv, {})

    def _stop(self, why: str) -> None:
        """Start nothing more, and end what runs."""
        if not self._broken:
            self._broken = True
            self._todo.clear()
            self._log(f"{why}; what runs ({len(self._running)}) is ended")
            self._crew.stop()

    def _conclude(self, ended: Ended) -> None:
        command = self._options.commands[ended.key - 1]
        code = os.waitstatus_to_exitcode(ended.status)
        said = record(
            "cluster-task",
            id=ended.key,
            start=date_text(ended.started_at),
            duration=ended.duration_s,
            status=ended.status,
            line=command.line,
            pid=ended.pid,
            app=application_of(command.argv),
        )
        good = code == 0 or code in self._options.good_codes
        if not self._print(ended, said):
            good = False
        if not good:
            self._failed += 1
            self._log(f"line {command.line} failed: {ended.problem or why_it_died(code).message}", level=0)
            if self._options.fail_hard and self._todo:
                self._log(f"{len(self._todo):,} commands are not started (-f)")
                self._todo.clear()
        self._progress.ended(str(ended.key), ended)

    def _print(self, ended: Ended, said: str) -> bool:
        """What the command has printed, and the record behind it. False: it can't be written."""
        try:
            if ended.problem:
                write_all(ended.stderr, os.fsencode(f"mtask: {ended.problem}\n"))
            pour(ended.stderr, 2)
            pour(ended.stdout, self._options.status_fd, behind=os.fsencode(said))
        except OSError as error:
            self._stop(f"stopped: can't write what commands print: {error.strerror}")
            return False
        finally:
            os.close(ended.stdout)
            os.close(ended.stderr)
        return True

    def _beside(self, variable: str, key: int) -> None:
        """The command of an environment variable, before or after all others; its failure is only said."""
        text = os.environ.get(variable)
        if not text or self._broken:
            return
        try:
            argv = split_words(text)
        except ValueError as error:
            self._log(f"{variable}: {error}; it is not run")
            return
        if not argv:
            return
        self._extra += 1
        self._crew.start(key, argv, {})
        ended: list[Ended] = []
        while not ended:
            ended = self._crew.wait()
            if self._stopping.count:
                self._stop(f"stopped by {self._stopping.signal}")
        self._print(ended[0], "")
        if ended[0].status:
            code = os.waitstatus_to_exitcode(ended[0].status)
            self._log(f"{variable} failed: {ended[0].problem or why_it_died(code).message}")
        self._progress.ended("setup" if key == _SETUP else "cleanup", ended[0])

    def _finish(self, started_at: float, began_s: float) -> int:
        failed = bool(self._failed or self._broken)
        code = 0 if self._options.always_succeed and not self._broken else TASK_FAILED if failed else 0
        if self._stopping.count and self._broken:
            code = INTERRUPTED
        summary = record(
            "cluster-summary",
            stat=Quoted("fail" if code else "ok"),
            lines=self._options.lines,
            tasks=self._started,
            succeeded=self._started - self._failed,
            failed=self._failed,
            extra=self._extra,
            duration=time.monotonic() - began_s,
            start=date_text(started_at),
            pid=os.getpid(),
            app=Quoted(sys.argv[0]),
        )
        try:
            write_all(self._options.status_fd, os.fsencode(summary))
        except OSError as error:
            self._log(f"can't write the summary: {error.strerror}")
            return code or TASK_FAILED
        return code


class _Progress:
    """A line for each command that has ended, in a file that several runs may append to (-R)."""

    def __init__(self, path: str | None, log: Log) -> None:
        """Raises MtaskError."""
        self._fd, self._log = -1, log
        self._who = f"{HOSTNAME.partition('.')[0]}:{os.getpid()}"
        if path:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise MtaskError(f"can't open the progress file {path}: {error.strerror}") from error

    def begun(self, at: float) -> None:
        system = platform.uname()
        words = " ".join(sys.argv)
        self._line(
            f"{date_text(at)} {self._who} 0 0/0 START {words} ### sysname={system.system} "
            f"machine={system.machine} release={system.release}"
        )

    def ended(self, name: str, ended: Ended) -> None:
        usage = ""
        if ended.usage is not None:
            usage = (
                f" ### utime={ended.usage.ru_utime:.3f} stime={ended.usage.ru_stime:.3f} "
                f"maxrss={ended.usage.ru_maxrss}"
            )
        code = f"{ended.status >> 8}/{ended.status & 127}"
        at = date_text(ended.started_at + ended.duration_s)
        words = _without_kickstart(ended.argv)
        self._line(f"{at} {self._who} {name} {code} {ended.duration_s:.3f} {words}{usage}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _line(self, text: str) -> None:
        if self._fd >= 0:
            try:
                write_all(self._fd, os.fsencode(text.replace("\n", " ") + "\n"))
            except OSError as error:
                self._log(f"can't write the progress file: {error.strerror}; going on without it")
                os.close(self._fd)
                self._fd = -1


def _without_kickstart(argv: Sequence[str]) -> str:
    program = application_of(argv)
    return " ".join(argv[list(argv).index(program) :])


def slots_of(text: str | None, environment: Mapping[str, str], cpus: int) -> int:
    """From `-n`, or SEQEXEC_CPUS: a number, or auto. Raises ValueError."""
    said = text if text is not None else environment.get("SEQEXEC_CPUS", "1")
    if said.lower() == "auto":
        return cpus
    if not re.fullmatch(r"\d{1,9}", said):
        raise ValueError(f"must be a number of at most 9 digits, or auto, not {said[:40]!r}")
    return max(1, int(said))


def open_input(path: str | None) -> str:
    """The text of the file, or of standard input. Raises InputError."""
    try:
        with open(0 if path is None else path, "rb", closefd=path is not None) as file:
            return os.fsdecode(file.read())
    except OSError as error:
        raise InputError(f"can't read it: {error.strerror}", source=path or "standard input") from error

"""The commands that run just now, each with files of its own for what it prints."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtask.errors import MtaskError
from mtask.pipelines.detached import Detached
from mtask.worker.output import new_output
from mtask.worker.process import signal_group, spawn

__all__ = ["Crew", "Ended"]

KILL_AFTER_S = 5.0
"""Between SIGTERM and SIGKILL."""
START_FAILED = 127 << 8
"""The raw wait status of a program that couldn't be started, as the shell has it."""
_ABOVE = 200
"""Descriptors beyond the numbers that commands see as theirs."""
_CHUNK_BYTES = 1 << 16


@dataclass(slots=True)
class Ended:
    """A command's end; whoever takes it closes `stdout` and `stderr`."""

    key: int
    argv: list[str]
    started_at: float
    duration_s: float
    status: int
    """The raw status, as wait(2) gives it."""
    stdout: int
    stderr: int
    pid: int
    problem: str = ""
    """Why it couldn't be started."""
    forwarded: dict[str, bytearray] = field(default_factory=dict)
    """What was written into each of its pipes."""
    usage: Any = None
    """A `resource.struct_rusage`; None: it was never there."""


@dataclass(slots=True)
class _Running:
    ended: Ended
    began_s: float
    pidfd: int
    pipes: dict[str, int]
    """Variable → our end."""


class Crew:
    """Starts commands, and tells of their ends; what a command has started itself ends with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment`: what all commands have in common."""
        self._environment = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, _Running] = {}
        self._ended: list[Ended] = []
        """Not waited for yet."""
        self._temporary = _Temporary()
        self._detached = Detached()
        self._kill_at_s = 0.0
        # A signal's handler has run when this is readable: it ends the wait.
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._ended)

    def start(
        self, key: int, argv: list[str], variables: Mapping[str, str], pipes: Sequence[str] = ()
    ) -> None:
        """The `key` comes back with its end, also when it can't be started; `pipes` are names of variables.

        Raises MtaskError when there is no room for what it would print.
        """
        stdout, stderr = self._temporary.new(), self._temporary.new()
        started_at, began_s = time.time(), time.monotonic()
        ended = Ended(key, argv, started_at, 0.0, START_FAILED, stdout, stderr, 0)
        ours, theirs = dict[str, int](), dict[int, int]()
        own = {**variables, **self._detached.mark(key)}
        try:
            for number, name in enumerate(pipes, 3):
                ours[name], theirs[number] = _pipe()
                own[name] = str(number)
            environment = self._environment | {os.fsencode(k): os.fsencode(v) for k, v in own.items()}
            ended.pid = spawn(argv, environment, stdin=self._null, stdout=stdout, stderr=stderr, more=theirs)
            pidfd = os.pidfd_open(ended.pid)
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            ended.problem = f"can't start {argv[0]!r}: {said}"
            if ended.pid:  # it can't be watched
                signal_group(ended.pid, signal.SIGKILL)
                os.waitpid(ended.pid, 0)
            for fd in ours.values():
                os.close(fd)
            self._ended.append(ended)
            return
        finally:
            for fd in theirs.values():
                os.close(fd)
        running = _Running(ended, began_s, pidfd, ours)
        self._running[key] = running
        self._selector.register(running.pidfd, selectors.EVENT_READ, (key, None))
        for name, fd in ours.items():
            self._selector.register(fd, selectors.EVENT_READ, (key, name))

    def wait(self, timeout_s: float | None = None) -> list[Ended]:
        """Those that have ended; none: the time is over, or a signal came, or nothing runs."""
        if not self._ended and self._running:
            for event, _ in self._selector.select(self._patience_s(timeout_s)):
                self._on_event(event.data)
        if self._kill_at_s and time.monotonic() >= self._kill_at_s:
            for running in self._running.values():
                signal_group(running.ended.pid, signal.SIGKILL)
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """SIGTERM to all that run; SIGKILL `KILL_AFTER_S` later, within `wait`."""
        if not self._kill_at_s:
            self._kill_at_s = time.monotonic() + KILL_AFTER_S
            for running in self._running.values():
                signal_group(running.ended.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all that run, now."""
        self._kill_at_s = time.monotonic()

    def close(self) -> None:
        """End at once what still runs."""
        for key in list(self._running):
            self._reap(key)
        self._detached.close()
        for ended in self._ended:
            os.close(ended.stdout)
            os.close(ended.stderr)
        signal.set_wakeup_fd(self._before)
        self._selector.close()
        for fd in (self._null, self._woken, self._waker):
            os.close(fd)

    def _patience_s(self, timeout_s: float | None) -> float | None:
        if not self._kill_at_s:
            return timeout_s
        left_s = max(0.05, self._kill_at_s - time.monotonic())
        return left_s if timeout_s is None else min(left_s, timeout_s)

    def _on_event(self, data: tuple[int, str | None] | None) -> None:
        if data is None:
            os.read(self._woken, 4096)
            return
        key, name = data
        if key not in self._running:
            return  # it was reaped by an event before this one
        if name is None:
            self._reap(key)
        elif _read_some(self._running[key], name) == b"":
            self._close_pipe(self._running[key], name)

    def _close_pipe(self, running: _Running, name: str) -> None:
        fd = running.pipes.pop(name)
        self._selector.unregister(fd)
        os.close(fd)

    def _reap(self, key: int) -> None:
        running = self._running.pop(key)
        ended = running.ended
        signal_group(ended.pid, signal.SIGKILL)  # what it has started goes with it
        _, ended.status, ended.usage = os.wait4(ended.pid, 0)
        ended.duration_s = time.monotonic() - running.began_s
        for name in list(running.pipes):
            while _read_some(running, name):
                pass
            self._close_pipe(running, name)
        self._selector.unregister(running.pidfd)
        os.close(running.pidfd)
        self._detached.end(self._running, {each.ended.pid for each in self._running.values()})
        self._ended.append(ended)


def _pipe() -> tuple[int, int]:
    """(the end to read, which never blocks; the end to write, with a number above all that commands see)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    try:
        return reader, fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    finally:
        os.close(writer)


def _read_some(running: _Running, name: str) -> bytes | None:
    """What was just appended: nothing at the end, None when there is nothing yet."""
    try:
        data = os.read(running.pipes[name], _CHUNK_BYTES)
    except BlockingIOError:
        return None
    running.ended.forwarded.setdefault(name, bytearray()).extend(data)
    return data


class _Temporary:
    """Makes nameless files. A new one for each command: who outlives it may still write into its own."""

    def __init__(self) -> None:
        import tempfile

        self._folder = tempfile.gettempdir()
        self._flags = os.O_TMPFILE | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC

    def new(self) -> int:
        if self._flags:
            try:
                return os.open(self._folder, self._flags, 0o600)
            except OSError:  # this file system or kernel has none
                self._flags = 0
        try:
            return new_output()
        except OSError as error:
            raise MtaskError(
                f"can't make a file for what tasks print, in {self._folder}: {error.strerror}; "
                "TMPDIR names another folder"
            ) from error

"""The process beside a slot for commands that fetches their inputs and puts their outputs in their places.

It reads requests, a line of JSON each, from its standard input, and writes an answer to each `open` and `put` to
its standard output. It ends with the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Literal

import msgspec

import mtask
from mtask.model import Failure
from mtask.worker.orphans import MARK, scratch_prefix

if TYPE_CHECKING:
    from mtask.worker.stage import Stage

__all__ = ["Answer", "Porter", "stage_folder"]

_HOME = os.path.dirname(os.path.dirname(mtask.__file__))
_START = """
import sys
sys.path.append(sys.argv.pop())
from mtask.start import import_msgspec
import_msgspec()
from mtask.worker.porter import main
main(sys.argv[1], int(sys.argv[2]))
"""
_PR_SET_PDEATHSIG = 1


class Request(msgspec.Struct):
    """`close` has no answer."""

    do: Literal["open", "put", "close"]
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class Answer(msgspec.Struct):
    """To `open`: name → path of all; or why that failed."""

    paths: dict[str, str] = {}
    failure: Failure | None = None


def stage_folder(worker: str) -> str:
    """A name for a folder that isn't there yet, and that is removed with what else a killed worker leaves."""
    return os.path.join(tempfile.gettempdir(), f"{scratch_prefix(worker)}out-{os.urandom(4).hex()}")


class Porter:
    """The worker's side. The process is started when it is needed, and again when it has died."""

    pid = 0

    def __init__(
        self,
        selector: selectors.BaseSelector,
        worker: str,
        on_answer: Callable[[Answer], None],
        on_exit: Callable[[int], None],
    ) -> None:
        """`on_exit` gets the status, as of `subprocess`."""
        self._selector, self._worker = selector, worker
        self._on_answer, self._on_death = on_answer, on_exit
        self._folder = stage_folder(worker)
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Raises OSError when there is no process to be had."""
        self._ask(Request("open", dict(inputs), dict(outputs)))

    def put(self, outputs: Mapping[str, str]) -> None:
        """The same."""
        self._ask(Request("put", outputs=dict(outputs)))

    def end(self) -> None:
        """Of an attempt."""
        if self._process is not None:
            self._ask(Request("close"))
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, request: Request) -> None:
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # its death is reported by the pidfd
            self._requests.write(msgspec.json.encode(request) + b"\n")
            self._requests.flush()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, self._folder, str(os.getpid()), _HOME],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {MARK: self._worker},
            process_group=0,
        )
        self._requests, self._answers = pipes_of(self._process)
        os.set_blocking(self._answers.fileno(), False)
        self.pid, self._pidfd, self._buffer = self._process.pid, os.pidfd_open(self._process.pid), b""
        self._selector.register(self._answers, selectors.EVENT_READ, self._on_readable)
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def _on_readable(self) -> None:
        if self._process is None:  # closed by an event of the same moment
            return
        try:
            data = os.read(self._answers.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._answers)
            return
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._on_answer(msgspec.json.decode(line, type=Answer))

    def _on_exit(self) -> None:
        if self._process is None:
            return
        if self._answers in self._selector.get_map():
            self._on_readable()  # its last answer
        status = self._process.wait()
        self._forget()
        self._on_death(status)

    def _forget(self) -> None:
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        if self._answers in self._selector.get_map():
            self._selector.unregister(self._answers)
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._process, self.pid = None, 0


def pipes_of(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def main(folder: str, supervisor: int) -> None:
    """Entry point of the process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    from mtask.worker.stage import Stage

    os.dup2(2, 1)  # libraries may print what they like
    stage = Stage(folder)
    try:
        for line in sys.stdin.buffer:
            answer = _answer(stage, msgspec.json.decode(line, type=Request))
            if answer is not None:
                view = memoryview(msgspec.json.encode(answer) + b"\n")
                while view:
                    view = view[os.write(answers, view) :]
    finally:
        stage.close()


def _answer(stage: Stage, request: Request) -> Answer | None:
    from mtask.worker.stage import StageError

    try:
        if request.do == "open":
            return Answer(paths=stage.open(request.inputs, request.outputs))
        if request.do == "put":
            stage.put(request.outputs)
            return Answer()
        stage.close()
    except StageError as error:
        return Answer(failure=error.staging)
    return None

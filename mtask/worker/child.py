"""The process that runs the tasks of a slot: functions are called in it, commands are started by it.

It knows no vendor and no queue: jobs come in on one pipe and results go out on another (see `wire`).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from mtask.errors import MtaskError, UnavailableError
from mtask.model import EXPIRED, ID_COLUMN, Message, Result, Spec, as_id
from mtask.portion import line_of
from mtask.worker.memory import own_bytes
from mtask.worker.printed import Printed
from mtask.worker.wire import (
    ANSWER,
    BAD,
    BAG,
    DONE,
    ENDED,
    HEADER,
    JOB,
    RESULTS,
    RESUME,
    SHARE,
    SUBMIT,
    Cell,
    frame,
)

__all__ = ["BagFrame", "Child", "Kit", "Run", "ShareFrame", "Tasks", "main", "serve"]

FLUSH_NS = 20_000_000
"""Results of quick tasks are sent together, this often; the cell keeps them safe meanwhile."""
LOOK_NS = 5_000_000
"""A look at the own memory takes as long as a quick task: so there is one in so much time only."""

_ROWS = msgspec.json.Decoder(list[list[Any]])
_PR_SET_PDEATHSIG = 1

Run = Callable[[int, list[Any], str | None], tuple[bytes, bool]]
"""Runs the task with this index, row and id; returns its result's line (see `mtask.portion`), and whether it is done."""


class Kit(msgspec.Struct):
    """What the supervisor tells a child when it starts it."""

    jobs_fd: int
    results_fd: int
    cell_fd: int
    supervisor: int
    """Its process id."""
    calls: bool
    """Does it run functions? Else commands."""
    worker: str
    path: tuple[str, ...] = ()
    """Goes first in sys.path."""
    max_tasks: int | None = None
    """After so many it ends."""
    max_memory_bytes: int | None = None
    """Above that it ends, when a task has ended."""
    checkpoints: str = ""
    folder: str = ""
    """Where tasks write what isn't kept; it isn't there yet."""


class BagFrame(msgspec.Struct):
    """What a child needs to know of a bag."""

    uid: str
    spec: Spec


class ShareFrame(msgspec.Struct):
    """What the commands to come find of the machine."""

    variables: dict[str, str] = {}
    cores: tuple[int, ...] = ()
    """On which they run; none: on all."""


class Tasks(Protocol):
    """Tasks of one kind."""

    def of(self, message: Message, spec: Spec) -> Run:
        """What runs the tasks of this message; never raises."""
        ...


class Child:
    """Reads jobs, has their tasks run, and sends the results."""

    def __init__(self, kit: Kit, tasks: Callable[[Child], Tasks]) -> None:
        self.kit = kit
        self.jobs = open(kit.jobs_fd, "rb", buffering=1 << 20)
        self.results_fd = kit.results_fd
        self.cell = Cell(kit.cell_fd)
        self.worker, self.host = kit.worker, os.uname().nodename
        self.bags: dict[str, BagFrame] = {}
        self.epoch = 0
        self.job = self.filled = self.flushed_ns = self.looked_ns = 0
        self.all_done = True
        """Are all results that weren't sent yet of tasks that are done?"""
        self.asked, self.ahead = 0, deque[tuple[int, int, int, bytes]]()
        """How often it asked the supervisor for something, and what came before the answer."""
        self.left = kit.max_tasks or -1
        self.max_memory_bytes = kit.max_memory_bytes
        self.printed = Printed()
        self.share = ShareFrame()
        self.tasks = tasks(self)

    def run(self) -> None:
        """Serve until the supervisor closes the pipe, or there have been enough tasks or memory."""
        while self.left and (read := self.ahead.popleft() if self.ahead else self._read()) is not None:
            kind, job, offset, payload = read
            if kind == BAG:
                bag = msgspec.json.decode(payload, type=BagFrame)
                self.bags[bag.uid] = bag
            elif kind == SHARE:
                self.share = msgspec.json.decode(payload, type=ShareFrame)
            elif kind == RESUME:
                self.epoch = offset
            elif kind == JOB and self.cell.words[Cell.EPOCH] == self.epoch:
                self._run_job(job, offset, payload)

    def ask(self, request: bytes) -> bytes:
        """Have the supervisor submit something for the task that runs, and wait for its answer.

        Raises UnavailableError when the worker ends."""
        self.asked += 1
        self._send(frame(SUBMIT, self.job, self.asked, request))
        while (read := self._read()) is not None:
            if read[0] != ANSWER:
                self.ahead.append(read)
            elif read[2] == self.asked:
                return read[3]
        raise UnavailableError("the worker is ending")

    def _read(self) -> tuple[int, int, int, bytes] | None:
        header = self.jobs.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        length, kind, job, offset = HEADER.unpack(header)
        return kind, job, offset, self.jobs.read(length)

    def _run_job(self, job: int, start: int, body: bytes) -> None:
        words = self.cell.words
        words[Cell.STARTED_NS] = time.monotonic_ns()
        words[Cell.TASK] = job << 32 | start
        try:
            message = Message.decode(body)
            rows = _ROWS.decode(message.rows)
            width = len(message.columns)
            if len(rows) != message.count or any(len(row) != width for row in rows):
                raise MtaskError("the rows don't match the message's count and columns")
        except (MtaskError, ValueError, RecursionError) as error:
            self._send(frame(BAD, job, start, str(error).encode()))
            return
        self.job, self.flushed_ns = job, time.monotonic_ns()
        self.printed.mend()
        spec = self.bags[message.uid].spec
        run = self.tasks.of(message, spec)
        expires_at = None if message.attempt else message.expires_at
        id_at = message.columns.index(ID_COLUMN) if ID_COLUMN in message.columns else None
        offset, first = start, message.first
        for offset in range(start, message.count):
            words[Cell.STARTED_NS] = time.monotonic_ns()
            words[Cell.TASK] = job << 32 | offset
            if words[Cell.EPOCH] != self.epoch or not self.left:
                break
            self.left -= 1
            row = rows[offset]
            name = None if id_at is None else as_id(row[id_at])
            if expires_at is not None and time.time() > expires_at:
                self._keep(offset, line_of(self._expired(message, spec, first + offset, name)), done=False)
            else:
                line, done = run(first + offset, row, name)
                self._keep(offset, line, done=done)
            rows[offset] = []
        else:
            offset = message.count
        self._flush(offset, frame(ENDED, job, offset))

    def _expired(self, message: Message, spec: Spec, index: int, name: str | None) -> Result:
        return Result.expired(
            message.bag,
            index,
            EXPIRED.format(spec.expires_s),
            id=name,
            worker=self.worker,
            host=self.host,
            queued_at=message.sent_at,
            finished_at=round(time.time(), 6),
        )

    def _keep(self, offset: int, line: bytes, *, done: bool) -> None:
        """Put a result where a crash can't reach it, and send what has gathered when it is time."""
        size, cell = len(line) + 1, self.cell
        if self.filled + size > cell.BUFFER_BYTES:
            self._flush(offset)
            if size > cell.BUFFER_BYTES:
                self._send(frame(DONE if done else RESULTS, self.job, offset + 1, line + b"\n"))
                return
        if not self.filled:
            cell.words[Cell.FIRST] = offset
        cell.buffer[self.filled : self.filled + size] = line + b"\n"
        self.filled += size
        self.all_done = self.all_done and done
        cell.words[Cell.FILLED] = self.filled
        if time.monotonic_ns() - self.flushed_ns > FLUSH_NS:
            self._flush(offset + 1)

    def _flush(self, offset: int, behind: bytes = b"") -> None:
        """Send the results of the tasks before `offset`, and a frame `behind` them."""
        cell = self.cell
        if self.max_memory_bytes is not None:
            self._look_at_memory(self.max_memory_bytes)
        if not self.left:
            cell.words[Cell.SPENT] = 1
        if self.filled:
            kind = DONE if self.all_done else RESULTS
            behind = frame(kind, self.job, offset, cell.buffer[: self.filled]) + behind
        if behind:
            self._send(behind)
        if self.filled:
            cell.words[Cell.FILLED] = self.filled = 0
            cell.words[Cell.PORTION] += 1
            self.all_done = True
        self.flushed_ns = time.monotonic_ns()

    def _look_at_memory(self, max_bytes: int) -> None:
        """Between two tasks: begin no other one if they have left too much behind."""
        now_ns = time.monotonic_ns()
        if now_ns - self.looked_ns > LOOK_NS:
            self.looked_ns = now_ns
            if own_bytes() > max_bytes:
                self.left = 0

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.results_fd, view) :]


def main() -> None:
    """Entry point: argv[1] is the Kit as JSON. Standard output and error are the task's record."""
    kit = msgspec.json.decode(sys.argv[1], type=Kit)
    sys.argv[1:] = []
    serve(kit)


def serve(kit: Kit) -> None:
    """Until the supervisor closes the pipe."""
    with contextlib.suppress(OSError, AttributeError):
        # The supervisor's death must end this process even in the middle of a task.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != kit.supervisor:
        return
    for fd in (kit.jobs_fd, kit.results_fd, kit.cell_fd):
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # who started the worker may have ignored it: nothing could be waited for
    faulthandler.enable(file=2)
    # Neither kind waits for what the other one needs; and it comes before modules of the user's can hide any.
    kind: Callable[[Child], Tasks]
    if kit.calls:
        from mtask.worker.calls import Calls as kind

        sys.path[:0] = [*kit.path, *([] if os.getcwd() in sys.path else [os.getcwd()])]
    else:
        from mtask.worker.spawning import Commands as kind
    Child(kit, kind).run()

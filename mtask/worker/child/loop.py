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
from mtask.worker.child.printed import Printed
from mtask.worker.memory import own_bytes
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
    Frames,
    frame,
)

__all__ = ["BagFrame", "Child", "Kit", "Run", "ShareFrame", "Tasks", "main", "serve"]

FLUSH_NS = 20_000_000
"""Results of quick tasks are sent together, this often; the cell keeps them safe meanwhile."""
LOOK_NS = 5_000_000
"""A look at the own memory takes as long as a quick task: so there is one in so much time only."""

READ_BYTES = 1 << 20
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
        self.jobs_fd, self.results_fd = kit.jobs_fd, kit.results_fd
        self.frames = Frames()
        self.cell = Cell(kit.cell_fd)
        self.worker, self.host = kit.worker, os.uname().nodename
        self.bags: dict[str, BagFrame] = {}
        self.epoch = 0
        self.job = self.sent_ns = self.looked_ns = 0
        self.closed = self.filled = 0
        """As in the cell."""
        self.all_done = True
        """Are all lines that aren't in a frame yet of tasks that are done?"""
        self.asked, self.ahead = 0, deque[tuple[int, int, int, bytes]]()
        """How often it asked the supervisor for something, and what it was told and hasn't done."""
        self.left = kit.max_tasks or -1
        self.max_memory_bytes = kit.max_memory_bytes
        self.printed = Printed()
        self.share = ShareFrame()
        self.tasks = tasks(self)

    def run(self) -> None:
        """Serve until the supervisor closes the pipe, or there have been enough tasks or memory."""
        while self.left:
            if not self.ahead:
                self._send_stored()  # nobody is to wait for what is done
                if (received := self._receive()) is None:
                    return
                self.ahead += received
                continue
            kind, job, offset, payload = self.ahead.popleft()
            if kind == BAG:
                bag = msgspec.json.decode(payload, type=BagFrame)
                self.bags[bag.uid] = bag
            elif kind == SHARE:
                self.share = msgspec.json.decode(payload, type=ShareFrame)
            elif kind == RESUME:
                self.epoch = offset
            elif kind == JOB and self.cell.words[Cell.EPOCH] == self.epoch:
                self._run_job(job, offset, payload)
        self._send_stored()

    def ask(self, request: bytes) -> bytes:
        """Have the supervisor submit something for the task that runs, and wait for its answer.

        Raises UnavailableError when the worker ends."""
        self.asked += 1
        self._send(frame(SUBMIT, self.job, self.asked, request))
        answer = None
        while answer is None:
            if (received := self._receive()) is None:
                raise UnavailableError("the worker is ending")
            for each in received:
                if each[0] != ANSWER:
                    self.ahead.append(each)
                elif each[2] == self.asked:
                    answer = each[3]
        return answer

    def _receive(self) -> list[tuple[int, int, int, bytes]] | None:
        """Frames, of which the last may still be on its way; None: there will be no more."""
        data = os.read(self.jobs_fd, READ_BYTES)
        return self.frames.feed(data) if data else None

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
            self._send_stored()
            self._send(frame(BAD, job, start, str(error).encode()))
            return
        self.job = job
        self.printed.mend()
        spec = self.bags[message.uid].spec
        run = self.tasks.of(message, spec)
        expires_at = None if message.attempt else message.expires_at
        id_at = message.columns.index(ID_COLUMN) if ID_COLUMN in message.columns else None
        offset, first = start, message.first
        for offset in range(start, message.count):
            now_ns = time.monotonic_ns()
            if now_ns - self.sent_ns > FLUSH_NS and self.filled:
                self._close(offset)
                self._send_stored()
            words[Cell.STARTED_NS] = now_ns
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
        if self.filled + 2 * HEADER.size > self.cell.BUFFER_BYTES:
            self._close(offset)
            self._send_stored()
        self._close(offset, ended=True)
        if time.monotonic_ns() - self.sent_ns > FLUSH_NS:
            self._send_stored()

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
        """Put a result where a crash can't reach it."""
        cell, size = self.cell, len(line) + 1 + HEADER.size  # that of ENDED
        at = self.filled if self.filled > self.closed else self.closed + HEADER.size
        if at + size > cell.BUFFER_BYTES:
            self._close(offset)
            self._send_stored()
            at = HEADER.size
            if at + size > cell.BUFFER_BYTES:
                self._send(frame(DONE if done else RESULTS, self.job, offset + 1, line + b"\n"))
                return
        if self.filled == self.closed:
            cell.words[Cell.FIRST] = offset
        self.filled = at + len(line) + 1
        cell.buffer[at : self.filled] = line + b"\n"
        self.all_done = self.all_done and done
        cell.words[Cell.STORED] = self.closed << 32 | self.filled

    def _close(self, offset: int, *, ended: bool = False) -> None:
        """Make a frame of the results of the tasks before `offset`; `ended`: there are no others of this job."""
        cell, end = self.cell, self.filled
        if self.max_memory_bytes is not None:
            self._look_at_memory(self.max_memory_bytes)
        if not self.left:
            cell.words[Cell.SPENT] = 1
        if end > self.closed:
            kind, size = DONE if self.all_done else RESULTS, end - self.closed - HEADER.size
            HEADER.pack_into(cell.buffer, self.closed, size, kind, self.job, offset)
        if ended:
            HEADER.pack_into(cell.buffer, end, 0, ENDED, self.job, offset)
            end += HEADER.size
        self.closed = self.filled = end
        self.all_done = True
        cell.words[Cell.STORED] = end << 32 | end  # at once, whenever it may die

    def _send_stored(self) -> None:
        cell = self.cell
        if self.closed:
            self._send(cell.buffer[: self.closed])
            cell.words[Cell.STORED] = self.closed = self.filled = 0
            cell.words[Cell.PORTION] += 1
        self.sent_ns = time.monotonic_ns()

    def _look_at_memory(self, max_bytes: int) -> None:
        """Between two tasks: begin no other one if they have left too much behind."""
        now_ns = time.monotonic_ns()
        if now_ns - self.looked_ns > LOOK_NS:
            self.looked_ns = now_ns
            if own_bytes() > max_bytes:
                self.left = 0

    def _send(self, data: bytes | memoryview[int]) -> None:
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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was ignored, nothing could be waited for
    faulthandler.enable(file=2)
    # Neither kind waits for what the other one needs; and it comes before modules of the user's can hide any.
    kind: Callable[[Child], Tasks]
    if kit.calls:
        from mtask.worker.child.functions import Functions as kind

        sys.path[:0] = [*kit.path, *([] if os.getcwd() in sys.path else [os.getcwd()])]
    else:
        from mtask.worker.child.commands import Commands as kind
    Child(kit, kind).run()

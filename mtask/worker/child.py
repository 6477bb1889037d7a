"""The process in which functions run, one for each busy slot.

It knows no vendor and no queue: jobs come in on one pipe and results go out on another (see `wire`).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mtask import setups, task
from mtask.errors import MtaskError, UnavailableError, UsageError
from mtask.model import EXPIRED, ID_COLUMN, UNKNOWN, Failure, Message, Reason, Result, Spec, as_id
from mtask.portion import Done, line_of
from mtask.values import encode_value
from mtask.worker.failure import describe, noted
from mtask.worker.memory import own_bytes
from mtask.worker.preparing import Watch, prepared
from mtask.worker.printed import Printed
from mtask.worker.wire import ANSWER, BAD, BAG, DONE, ENDED, HEADER, JOB, RESULTS, RESUME, SUBMIT, Cell, frame

if TYPE_CHECKING:
    from mtask.staging import Staging
    from mtask.worker.stage import Stage

FLUSH_NS = 20_000_000
"""Results of quick tasks are sent together, this often; the cell keeps them safe meanwhile."""
LOOK_NS = 5_000_000
"""A look at the own memory takes as long as a quick task: so there is one in so much time only."""
QUICK_NS = 1_000_000
"""The CPU time of a task below this isn't measured, which may take longer than the task: its wall time
stands for it. And its peak of memory is as of the last look."""

_ROWS = msgspec.json.Decoder(list[list[Any]])
_PR_SET_PDEATHSIG = 1
NO_VALUE = msgspec.Raw(b"null")


class Kit(msgspec.Struct):
    """What the supervisor tells a child when it starts it."""

    jobs_fd: int
    results_fd: int
    cell_fd: int
    supervisor: int
    """Its process id."""
    worker: str
    path: tuple[str, ...] = ()
    """Goes first in sys.path."""
    max_tasks: int | None = None
    """After so many it ends."""
    max_memory_bytes: int | None = None
    """Above that it ends, when a task has ended."""
    checkpoints: str = ""
    stage: str = ""
    """Folder for the outputs of tasks; it isn't there yet."""


class BagFrame(msgspec.Struct):
    """What a child needs to know of a bag."""

    uid: str
    spec: Spec


class Usage:
    """What this process has used of the machine, as of the last look."""

    def __init__(self) -> None:
        self.cpu_s, self.peak_bytes, self.looked_ns = 0.0, 0, 0
        self.look()

    def look(self) -> float:
        """Returns the CPU time since the last one."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        before_s, self.cpu_s = self.cpu_s, usage.ru_utime + usage.ru_stime
        self.peak_bytes, self.looked_ns = usage.ru_maxrss * 1024, time.monotonic_ns()
        return self.cpu_s - before_s


class Child:
    """Reads jobs, runs their tasks, and sends the results."""

    def __init__(self, kit: Kit) -> None:
        self.jobs = open(kit.jobs_fd, "rb", buffering=1 << 20)
        self.results_fd = kit.results_fd
        self.cell = Cell(kit.cell_fd)
        self.worker, self.host = kit.worker, socket.gethostname()
        self.bags: dict[str, BagFrame] = {}
        self.callers: dict[tuple[str, tuple[str, ...]], Callable[[list[Any]], Any] | Failure] = {}
        self.epoch = 0
        self.encoder = msgspec.json.Encoder()
        self.job = self.filled = self.flushed_ns = self.looked_ns = 0
        self.all_done = True
        """Are all results that weren't sent yet of tasks that are done?"""
        self.used = Usage()
        words = self.cell.words
        self.context = task.Context(
            uid="",
            index=0,
            checkpoints=kit.checkpoints,
            stopping=lambda: bool(words[Cell.STOPPING]),
            ask=self._ask,
        )
        self.asked, self.ahead = 0, deque[tuple[int, int, int, bytes]]()
        """How often it asked the supervisor for something, and what came before the answer."""
        task.set_context(self.context)
        self.watch = Watch(self.cell, self.used)
        setups.set_watch(self.watch.during)
        self.stage_folder = kit.stage
        self.stage: Stage | None = None
        """Made for the first task that has inputs or outputs."""
        self.outputs_to: dict[str, str] = {}
        """Of the task that runs: name → URL."""
        self.left = kit.max_tasks or -1
        self.max_memory_bytes = kit.max_memory_bytes
        self.home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self.printed = Printed()
        self.forked = False
        os.register_at_fork(after_in_child=self._on_fork)

    def _on_fork(self) -> None:
        self.forked = True

    def run(self) -> None:
        """Serve until the supervisor closes the pipe, or there have been enough tasks or memory."""
        while self.left and (read := self.ahead.popleft() if self.ahead else self._read()) is not None:
            kind, job, offset, payload = read
            if kind == BAG:
                bag = msgspec.json.decode(payload, type=BagFrame)
                self.bags[bag.uid] = bag
            elif kind == RESUME:
                self.epoch = offset
            elif kind == JOB and self.cell.words[Cell.EPOCH] == self.epoch:
                self._run_job(job, offset, payload)

    def _read(self) -> tuple[int, int, int, bytes] | None:
        header = self.jobs.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        length, kind, job, offset = HEADER.unpack(header)
        return kind, job, offset, self.jobs.read(length)

    def _ask(self, request: bytes) -> bytes:
        """Have the supervisor submit something for the task that runs, and wait for its answer."""
        if self.forked or threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "mtask.submit is for the task's own process and thread, not for those that it starts"
            )
        self.asked += 1
        self._send(frame(SUBMIT, self.job, self.asked, request))
        while (read := self._read()) is not None:
            if read[0] != ANSWER:
                self.ahead.append(read)
            elif read[2] == self.asked:
                return read[3]
        raise UnavailableError("the worker is ending")

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
        caller = self._caller(message)
        self.context.uid = message.uid
        expires_at = None if message.attempt else message.expires_at
        id_at = message.columns.index(ID_COLUMN) if ID_COLUMN in message.columns else None
        offset = start
        for offset in range(start, message.count):
            words[Cell.STARTED_NS] = time.monotonic_ns()
            words[Cell.TASK] = job << 32 | offset
            if words[Cell.EPOCH] != self.epoch or not self.left:
                break
            self.left -= 1
            self.context.index, self.context.submitted = message.first + offset, 0
            if expires_at is not None and time.time() > expires_at:
                self._keep(offset, line_of(self._expired(message, offset, rows[offset], id_at)), done=False)
            else:
                self._run_task(message, offset, rows[offset], caller, id_at)
            rows[offset] = []
        else:
            offset = message.count
        self._flush(offset, frame(ENDED, job, offset))

    def _run_task(
        self,
        message: Message,
        offset: int,
        row: list[Any],
        caller: Callable[[list[Any]], Any] | Failure,
        id_at: int | None,
    ) -> None:
        value, error = NO_VALUE, None
        self.outputs_to = {}
        self.watch.begin()
        started_us, started_ns = time.time_ns() // 1000, time.monotonic_ns()
        try:
            if isinstance(caller, Failure):
                error = caller
            else:
                returned = caller(row)
                try:
                    value = encode_value(returned)
                except MtaskError as refused:
                    error = Failure(reason=Reason.VALUE, type=type(refused).__name__, message=str(refused))
                del returned
                if self.outputs_to and error is None:
                    self._put_outputs()
        except BaseException as raised:
            error = noted(raised, "staging", Failure) or describe(raised, spec=self.bags[message.uid].spec)
        took_ns = self.watch.took_ns
        wall_ns = time.monotonic_ns() - started_ns - took_ns
        started_us += took_ns // 1000
        if self.forked:  # a copy of this process, which the task made and didn't end
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(0)
        if self.stage is not None:
            self.stage.close()
        wall_us, used = wall_ns // 1000, self.used
        spent_s = self.watch.cpu_s
        if started_ns + took_ns + wall_ns > used.looked_ns + QUICK_NS:
            spent_s += used.look()
        stdout, stderr = self.printed.tails(self.bags[message.uid].spec.tail_bytes)
        os.fchdir(self.home)
        index = message.first + offset
        ended = Done(
            index,
            "done",
            None if id_at is None else as_id(row[id_at]),
            value,
            stdout,
            stderr,
            message.attempt + 1,
            self.worker,
            self.host,
            message.sent_at,
            started_us / 1e6,
            (started_us + wall_us) / 1e6,
            wall_ns / 1e9,
            wall_us / 1e6 if wall_ns < QUICK_NS else round(spent_s, 6),
            used.peak_bytes,
        )
        if error is None:
            if self.context.has_checkpoint or message.attempt or message.deaths:
                self._forget_checkpoint(message.uid, index)
            self._keep(offset, self.encoder.encode(ended)[1:], done=True)
        else:
            self._keep(offset, line_of(ended.failed(message.bag, error)), done=False)

    def _expired(self, message: Message, offset: int, row: list[Any], id_at: int | None) -> Result:
        return Result.expired(
            message.bag,
            message.first + offset,
            EXPIRED.format(self.bags[message.uid].spec.expires_s),
            id=None if id_at is None else as_id(row[id_at]),
            worker=self.worker,
            host=self.host,
            queued_at=message.sent_at,
            finished_at=round(time.time(), 6),
        )

    def _forget_checkpoint(self, uid: str, index: int) -> None:
        self.context.has_checkpoint = False
        with contextlib.suppress(Exception):  # the task is done all the same
            task.remove(task.place_of(self.context.checkpoints, uid, index))

    def _caller(self, message: Message) -> Callable[[list[Any]], Any] | Failure:
        key = (message.uid, message.columns)
        if key not in self.callers:
            from mtask.binding import Binder, resolve

            try:
                function = resolve(self.bags[message.uid].spec.target[0])
            except MtaskError as error:
                # Not kept: the module may be mended, or its disk be mounted, before the next attempt.
                return Failure(reason=Reason.START, type=UNKNOWN, message=str(error))
            try:
                spec = self.bags[message.uid].spec
                staging = self._staging(spec, message.columns)
                columns, used = (message.columns, ()) if staging is None else (staging.columns, staging.used)
                spare = (spec.key, spec.serial, *used)
                call = Binder(function, columns, textual=False, spare=spare).caller()
                call = call if staging is None else self._staged(call, staging)
                self.callers[key] = prepared(call, function, message.columns, {*spec.inputs, *spec.outputs})
            except MtaskError as error:
                return Failure(reason=Reason.START, type=type(error).__name__, message=str(error))
            except BaseException as error:
                return describe(error, Reason.START)
            finally:
                self.used.look()  # importing is nobody's
        return self.callers[key]

    def _staging(self, spec: Spec, columns: tuple[str, ...]) -> Staging | None:
        if not spec.staged:
            return None
        from mtask.staging import Staging
        from mtask.worker.stage import Stage

        self.stage = self.stage or Stage(self.stage_folder)
        return Staging(spec, columns)

    def _staged(self, call: Callable[[list[Any]], Any], staging: Staging) -> Callable[[list[Any]], Any]:
        """Calls with the paths of what is fetched for a row; what it writes is put in its place by `_put_outputs`."""

        def call_staged(row: list[Any]) -> Any:
            assert self.stage is not None
            inputs, outputs = staging.urls(row)
            paths = self.stage.open(inputs, outputs)
            self.outputs_to = outputs
            return call(staging.filled(row, paths))

        return call_staged

    def _put_outputs(self) -> None:
        assert self.stage is not None
        if not self.forked:
            self.stage.put(self.outputs_to)

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
    faulthandler.enable(file=2)
    sys.path[:0] = [*kit.path, *([] if os.getcwd() in sys.path else [os.getcwd()])]
    Child(kit).run()

"""The process in which functions run, one for each busy slot.

It knows no vendor and no queue: jobs come in on one pipe and results go out on another (see `wire`).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import importlib
import io
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

import mtask
from mtask import task
from mtask.errors import MtaskError
from mtask.model import EXPIRED, ID_COLUMN, UNKNOWN, Failure, Message, Reason, Result, Spec, as_id
from mtask.retry import is_wanted
from mtask.values import encode_value
from mtask.worker.memory import own_bytes
from mtask.worker.output import size_of, take_tail
from mtask.worker.wire import BAD, BAG, ENDED, HEADER, JOB, RESULTS, RESUME, Cell, frame

if TYPE_CHECKING:
    import traceback

FLUSH_NS = 20_000_000
"""Results of quick tasks are sent together, this often; the cell keeps them safe meanwhile."""
LOOK_NS = 5_000_000
"""A look at the own memory takes as long as a quick task: so there is one in so much time only."""

_ROWS = msgspec.json.Decoder(list[list[Any]])
_PR_SET_PDEATHSIG = 1
_NOT_THE_USERS = (os.path.dirname(mtask.__file__) + os.sep, "<frozen importlib", importlib.__file__)


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


class BagFrame(msgspec.Struct):
    """What a child needs to know of a bag."""

    uid: str
    spec: Spec


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
        self.job = self.first = self.filled = self.flushed_ns = self.looked_ns = 0
        self.cpu_s = _cpu_s()
        words = self.cell.words
        self.context = task.Context(
            uid="", index=0, checkpoints=kit.checkpoints, stopping=lambda: bool(words[Cell.STOPPING])
        )
        task.set_context(self.context)
        self.left = kit.max_tasks or -1
        self.max_memory_bytes = kit.max_memory_bytes
        self.home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        # Whatever a task does to the descriptors 1 and 2, these stay.
        self.outputs = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (1, 2))
        self.forked = False
        os.register_at_fork(after_in_child=self._on_fork)
        for number in (1, 2):
            self._open_stream(number)

    def _on_fork(self) -> None:
        self.forked = True

    def run(self) -> None:
        """Serve until the supervisor closes the pipe, or there have been enough tasks or memory."""
        while self.left and (read := self._read()) is not None:
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
        self.job, self.first, self.flushed_ns = job, start, time.monotonic_ns()
        self._mend_outputs()
        caller = self._caller(message)
        self.cpu_s = _cpu_s()  # importing is nobody's
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
            self.context.index = message.first + offset
            if expires_at is not None and time.time() > expires_at:
                result = self._expired(message, offset, rows[offset], id_at)
            else:
                result = self._run_task(message, offset, rows[offset], caller, id_at)
            if self.forked:
                os._exit(0)  # a copy of this process, which the task made and didn't end
            rows[offset] = []
            self._keep(offset, self.encoder.encode(result))
        else:
            offset = message.count
        self._flush(ENDED, offset)

    def _run_task(
        self,
        message: Message,
        offset: int,
        row: list[Any],
        caller: Callable[[list[Any]], Any] | Failure,
        id_at: int | None,
    ) -> Result:
        started_at, start = time.time(), time.perf_counter()
        value, error = None, None
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
        except BaseException as raised:
            error = describe(raised, spec=self.bags[message.uid].spec)
        wall_s = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        tail_bytes = self.bags[message.uid].spec.tail_bytes
        spent_s, self.cpu_s = cpu_s - self.cpu_s, cpu_s
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            self._mend_outputs(broken=True)
        os.fchdir(self.home)
        stdout, stderr = self.outputs
        fields: dict[str, Any] = {
            "id": None if id_at is None else as_id(row[id_at]),
            "stdout": take_tail(stdout, tail_bytes) if size_of(stdout) else "",
            "stderr": take_tail(stderr, tail_bytes) if size_of(stderr) else "",
            "attempt": message.attempt + 1,
            "worker": self.worker,
            "host": self.host,
            "queued_at": message.sent_at,
            "started_at": round(started_at, 6),
            "finished_at": round(started_at + wall_s, 6),
            "wall_s": round(wall_s, 9),
            "cpu_s": round(spent_s, 6),
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        index = message.first + offset
        if error is None:
            if self.context.has_checkpoint or message.attempt or message.deaths:
                self._forget_checkpoint(message.uid, index)
            return Result.done(message.bag, index, value=value, **fields)
        return Result.failed(message.bag, index, error, **fields)

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
                binder = Binder(function, message.columns, textual=False, spare=(spec.key, spec.serial))
                self.callers[key] = binder.caller()
            except MtaskError as error:
                return Failure(reason=Reason.START, type=type(error).__name__, message=str(error))
            except BaseException as error:
                return describe(error, Reason.START)
        return self.callers[key]

    def _keep(self, offset: int, result: bytes) -> None:
        """Put a result where a crash can't reach it, and send what has gathered when it is time."""
        size, cell = len(result) + 1, self.cell
        if self.filled + size > cell.BUFFER_BYTES:
            self._flush(RESULTS, offset)
            if size > cell.BUFFER_BYTES:
                self._send(frame(RESULTS, self.job, offset + 1, b"[" + result + b"]"))
                self.first = offset + 1
                return
        if not self.filled:
            cell.words[Cell.FIRST] = offset
        cell.buffer[self.filled : self.filled + size] = result + b","
        self.filled += size
        cell.words[Cell.FILLED] = self.filled
        if time.monotonic_ns() - self.flushed_ns > FLUSH_NS:
            self._flush(RESULTS, offset + 1)

    def _flush(self, kind: int, offset: int) -> None:
        cell = self.cell
        if self.max_memory_bytes is not None:
            self._look_at_memory(self.max_memory_bytes)
        if not self.left:
            cell.words[Cell.SPENT] = 1
        if self.filled or kind == ENDED:
            items = bytes(cell.buffer[: max(0, self.filled - 1)])
            self._send(frame(kind, self.job, offset, b"[" + items + b"]"))
            cell.words[Cell.FILLED] = self.filled = 0
            cell.words[Cell.PORTION] += 1
        self.flushed_ns = time.monotonic_ns()

    def _look_at_memory(self, max_bytes: int) -> None:
        """Between two tasks: begin no other one if they have left too much behind."""
        now_ns = time.monotonic_ns()
        if now_ns - self.looked_ns > LOOK_NS:
            self.looked_ns = now_ns
            if own_bytes() > max_bytes:
                self.left = 0

    def _mend_outputs(self, *, broken: bool = False) -> None:
        """If a task has closed the standard output or error, or its stream, open it again."""
        for number in (1, 2):
            try:
                os.fstat(number)
                if not broken:
                    continue
            except OSError:
                pass
            os.dup2(self.outputs[number - 1], number)
            self._open_stream(number)

    def _open_stream(self, number: int) -> None:
        # Line by line: a crash then loses no line, and lines of subprocesses come in their order.
        file = open(number, "wb", closefd=False)
        stream = io.TextIOWrapper(file, encoding="utf-8", errors="replace", line_buffering=True)
        setattr(sys, ("stdout", "stderr")[number - 1], stream)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.results_fd, view) :]


def describe(error: BaseException, reason: Reason = Reason.RAISED, *, spec: Spec | None = None) -> Failure:
    """A failure from an exception, with the frames of the user's own code.

    It is final if the exception, or the spec, says so.
    """
    import traceback

    try:
        described = traceback.TracebackException.from_exception(error)
        _leave_user_frames(described)
        text = "".join(described.format())
    except Exception as broken:  # an exception can override all that is asked of it here
        text = f"its traceback can't be shown: {type(broken).__name__}"
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return Failure(
        reason=reason,
        type=_storable(name),
        message=_storable(_message_of(error)[:4096]),
        traceback=_storable(text[-16384:]),
        final=isinstance(error, task.Fail)
        or (spec is not None and not is_wanted(spec, _names(kind, reason))),
        retry_after_s=error.delay_s if isinstance(error, task.Retry) else None,
    )


def _names(kind: type[BaseException], reason: Reason) -> set[str]:
    """By what `retry_on` and `no_retry` may call it: its class and the bases, with and without the module."""
    return {
        reason.value,
        *(n for c in kind.__mro__ for n in (c.__name__, f"{c.__module__}.{c.__qualname__}")),
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _leave_user_frames(described: traceback.TracebackException) -> None:
    described.stack[:] = [frame for frame in described.stack if not frame.filename.startswith(_NOT_THE_USERS)]
    related = [described.__cause__, described.__context__, *(described.exceptions or ())]
    for other in related:
        if other is not None:
            _leave_user_frames(other)


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"<its __str__ raised {type(broken).__name__}>"


def _storable(text: str) -> str:
    """Without halves of surrogate pairs, which come from names of files that aren't UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def main() -> None:
    """Entry point: argv[1] is the Kit as JSON. Standard output and error are the task's record."""
    kit = msgspec.json.decode(sys.argv[1], type=Kit)
    sys.argv[1:] = []
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

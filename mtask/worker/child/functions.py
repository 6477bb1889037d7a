"""Function tasks, in the process that calls them."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from mtask import setups, task
from mtask.errors import MtaskError, UsageError
from mtask.model import UNKNOWN, Failure, Message, Reason, Spec
from mtask.portion import Done, line_of
from mtask.values import encode_value
from mtask.worker.child.preparing import Watch, prepared
from mtask.worker.failure import describe, noted
from mtask.worker.wire import Cell

if TYPE_CHECKING:
    from mtask.staging import Staging
    from mtask.worker.child.loop import Child, Run
    from mtask.worker.child.stage import Stage

__all__ = ["Functions"]

QUICK_NS = 1_000_000
"""The CPU time of a task below this isn't measured, which may take longer than the task: its wall time
stands for it. And its peak of memory is as of the last look."""
NO_VALUE = msgspec.Raw(b"null")

Caller = Callable[[list[Any]], Any]


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


class Functions:
    """Functions a bag's function with each row."""

    def __init__(self, child: Child) -> None:
        words, kit = child.cell.words, child.kit
        self.ask, self.worker, self.host = child.ask, child.worker, child.host
        self.callers: dict[tuple[str, tuple[str, ...]], Caller | Failure] = {}
        self.encoder = msgspec.json.Encoder()
        self.used = Usage()
        self.context = task.Context(
            uid="",
            index=0,
            checkpoints=kit.checkpoints,
            stopping=lambda: bool(words[Cell.STOPPING]),
            ask=self._ask,
        )
        task.set_context(self.context)
        self.watch = Watch(child.cell, self.used)
        setups.set_watch(self.watch.during)
        self.folder = kit.folder
        self.stage: Stage | None = None
        """Made for the first task that has inputs or outputs."""
        self.outputs_to: dict[str, str] = {}
        """Of the task that runs: name → URL."""
        self.home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self.printed = child.printed
        self.forked = False
        os.register_at_fork(after_in_child=self._on_fork)

    def _on_fork(self) -> None:
        self.forked = True

    def of(self, message: Message, spec: Spec) -> Run:
        caller = self._caller(message, spec)
        self.context.uid = message.uid

        return partial(self._run, message, spec, caller)

    def _ask(self, request: bytes) -> bytes:
        if self.forked or threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "mtask.submit is for the task's own process and thread, not for those that it starts"
            )
        return self.ask(request)

    def _run(
        self,
        message: Message,
        spec: Spec,
        caller: Caller | Failure,
        index: int,
        row: list[Any],
        name: str | None,
    ) -> tuple[bytes, bool]:
        value, error = NO_VALUE, None
        self.context.index, self.context.submitted = index, 0
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
            error = noted(raised, "staging", Failure) or describe(raised, spec=spec)
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
        stdout, stderr = self.printed.tails(spec.tail_bytes)
        os.fchdir(self.home)
        ended = Done(
            index,
            "done",
            name,
            value,
            None,
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
        if error is not None:
            return line_of(ended.failed(message.bag, error)), False
        if self.context.has_checkpoint or message.attempt or message.deaths:
            self._forget_checkpoint(message.uid, index)
        return self.encoder.encode(ended)[1:], True

    def _forget_checkpoint(self, uid: str, index: int) -> None:
        self.context.has_checkpoint = False
        with contextlib.suppress(Exception):  # the task is done all the same
            task.remove(task.place_of(self.context.checkpoints, uid, index))

    def _caller(self, message: Message, spec: Spec) -> Caller | Failure:
        key = (message.uid, message.columns)
        if key not in self.callers:
            from mtask.binding import Binder, resolve

            try:
                function = resolve(spec.target[0])
            except MtaskError as error:
                # Not kept: the module may be mended, or its disk be mounted, before the next attempt.
                return Failure(reason=Reason.START, type=UNKNOWN, message=str(error))
            try:
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
        from mtask.worker.child.stage import Stage

        self.stage = self.stage or Stage(os.path.join(self.folder, "out"))
        return Staging(spec, columns)

    def _staged(self, call: Caller, staging: Staging) -> Caller:
        """Functions with the paths of what is fetched for a row; what it writes is put in its place by `_put_outputs`."""

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

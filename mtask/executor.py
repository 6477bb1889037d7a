"""`mtask.Executor`: a `concurrent.futures.Executor` whose futures are tasks.

Calls wait here until a slot is about to be free, so that a future can be cancelled until then. One
thread runs the worker, and gives the futures their results; another sends the calls, but for one that comes
when a slot is free, which is given to the worker at once.
"""

from __future__ import annotations

import atexit
import inspect
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

from mtask.binding import Binder
from mtask.errors import BackendError, InputError, UsageError
from mtask.lanes import Lanes
from mtask.local import Workshop, parameters_of, slots_or_cpus, task_error, worker_options
from mtask.memory import MemoryQueue
from mtask.model import Bag, Block, Message, Result
from mtask.packing import fit
from mtask.portion import Portion
from mtask.queue import send_all
from mtask.requirements import Lane
from mtask.sources import Chunk, encode_rows
from mtask.spec import MOST

__all__ = ["Executor"]

T = TypeVar("T")
LOOK_S = 0.5
"""Results are looked for so often, even if nothing tells that there are any."""
AHEAD_S = 0.2
"""So much work is sent ahead, by the pace of late."""
MOST_AHEAD = 4096


class Executor(futures.Executor):
    """A `concurrent.futures.Executor` whose futures are tasks, done by a worker on this machine.

    Arguments and values must have a JSON form. Failed tasks are tried again `retries` times; then
    their future raises TaskFailedError, whose `result` is the task's row.
    """

    def __init__(self, slots: int | None = None, *, retries: int = 0, **options: Any) -> None:
        """`slots`: how many at a time, the number of CPUs by default. `options` are fields of `Spec`."""
        from mtask.manager import make_spec
        from mtask.worker.supervisor import Worker

        slots = slots_or_cpus(slots)
        spec = make_spec(call="module:function", columns=(), retries=retries, **options)
        if spec.key or spec.serial:
            raise UsageError("an Executor has no columns that `key` or `serial` could name")
        self._options = {"retries": retries, **options}
        self._workshop = Workshop()
        self._functions: dict[Any, _Function] = {}
        self._waiting: deque[_Call] = deque()
        self._sent: dict[tuple[str, int], _Future[Any]] = {}
        self._changed = threading.Condition()
        self._slots, self._pace = slots, _Pace(slots)
        self._shut = self._over = False
        self._broken: BaseException | None = None
        self._settler: threading.Thread | None = None
        """The worker's thread from which the futures' callbacks are called."""
        self._owed: list[_Call] = []
        """Calls that may have been sent, or not."""
        self._pid = os.getpid()
        self._memory = MemoryQueue()
        self._queue = Lanes(self._memory)
        self._worker = Worker(
            self._queue,
            self._workshop.manager.table,
            worker_options(spec, slots, self._workshop),
            on_written=self._on_written,
            on_done=self._on_done,
        )
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._work,), name="mtask-worker", daemon=True),
            threading.Thread(target=self._guarded, args=(self._watch,), name="mtask-futures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.shutdown)  # as with other executors, the program ends when all is done

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Raises UsageError for a function or arguments that can't be sent, TypeError for arguments
        that the function doesn't take, and RuntimeError after shutdown."""
        with self._changed:
            if self._broken is not None:
                raise futures.BrokenExecutor(f"the worker has stopped: {self._broken}") from self._broken
            if self._shut:
                raise RuntimeError("the executor was shut down")
            function = self._functions.get(fn)
            if function is None:
                function = self._functions[fn] = _Function(fn, self._workshop, self._options)
            future: _Future[T] = _Future()
            self._waiting.append(_Call(function, function.row(args, kwargs), future))
            if len(self._sent) >= self._slots:
                if len(self._sent) < self._pace.most_ahead():
                    self._changed.notify_all()
                return future
            calls = self._next_calls()
        tried = False
        try:
            self._send(calls, at_once=True)
            tried = True
        except Exception as error:
            self._break(error)
            tried = True
        finally:
            if not tried:  # Ctrl-C: nobody knows how far it came
                with self._changed:
                    self._owed += [call._replace(check=True) for call in calls]
                    self._changed.notify_all()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, calls that haven't been given to the worker are cancelled."""
        if os.getpid() != self._pid:  # a copy of the program, which has none of its threads
            return
        with self._changed:
            self._shut = True
            given_up = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            self._changed.notify_all()
        for call in given_up:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        # Who calls it from a future's callback can't wait for the thread that it runs in.
        if wait and threading.current_thread() not in (self._settler, *self._threads):
            for thread in self._threads:
                thread.join()

    # -- in the threads -----------------------------------------------------------------------------

    def _guarded(self, target: Callable[[], None]) -> None:
        """A future must never wait for a thread that is dead."""
        try:
            target()
        except Exception as error:
            self._break(error)
        except BaseException as error:  # a callback's SystemExit
            self._break(futures.BrokenExecutor(f"the worker was stopped by {error!r}"))

    def _break(self, error: Exception) -> None:
        with self._changed:
            self._broken, self._shut = error, True
            unsent, running = list(self._waiting), list(self._sent.values())
            self._waiting.clear()
            self._sent.clear()
            self._changed.notify_all()
        running += [call.future for call in unsent if call.future.set_running_or_notify_cancel()]
        for future in running:
            future.set_exception(error)

    def _on_done(self, portion: Portion) -> bool:
        """Give the futures theirs before the rows are written, in the worker's main thread: the table is gone before
        anybody could miss them there. A callback may take long: a future that has one waits for `_on_written`."""
        left = self._give(portion.results(), waits=False)
        self._note(portion.count)
        if not (self._sent or self._waiting):
            time.sleep(0)  # whoever waited for it goes first: nothing is urgent here
        return not left

    def _on_written(self, results: Sequence[Result | Portion]) -> None:
        """Give the futures theirs, in the thread that has written them."""
        self._settler = threading.current_thread()
        single = [each for each in results if isinstance(each, Result)]
        self._give(single)
        for each in results:
            if isinstance(each, Portion) and self._is_awaited(each):
                self._give(each.results())
        self._note(len(single))

    def _is_awaited(self, portion: Portion) -> bool:
        indexes = range(portion.first, portion.first + portion.count)
        with self._changed:
            return any((portion.bag, index) in self._sent for index in indexes)

    def _note(self, ended: int) -> None:
        with self._changed:
            self._pace.note(ended)
            if self._waiting or self._shut:
                self._changed.notify_all()

    def _work(self) -> None:
        self._worker.run()
        if not self._over:
            raise BackendError("the worker was told to stop")

    def _watch(self) -> None:
        """Send the calls, until all futures have their results after a shutdown."""
        try:
            while True:
                with self._changed:
                    if self._shut and not (self._waiting or self._sent):
                        return
                    calls, self._owed = self._owed + self._next_calls(), []
                    told = bool(calls) or self._changed.wait(LOOK_S)
                if calls:
                    self._send(calls)
                elif not told:
                    self._collect()
        finally:
            self._over = True
            self._worker.drain("shut down", grace_s=0)
            self._threads[0].join()
            self._workshop.close()
            atexit.unregister(self.shutdown)

    def _next_calls(self) -> list[_Call]:
        calls, room = list[_Call](), self._pace.most_ahead() - len(self._sent)
        while self._waiting and len(calls) < room:
            call = self._waiting.popleft()
            if call.future.set_running_or_notify_cancel():
                self._sent[call.function.bag.name, call.function.count] = call.future
                calls.append(call._replace(at=call.function.count))
                call.function.count += 1
        return calls

    def _send(self, calls: list[_Call], *, at_once: bool = False) -> None:
        """`at_once`: there is a free slot."""
        messages, large = [], []
        for function, row, _, index, check in calls:
            block = Block(
                bag=function.bag.name,
                number=index,
                first=index,
                count=1,
                rows=b"[" + row + b"]",
                lane=function.lane.name,
            )
            message = fit(Message.of(function.bag, block, check=check), self._queue.limits.message_bytes)
            messages.append(message)
            if not message.has_rows:
                large.append(block)
        if large:  # the others need no copy: nobody repairs a bag that ends with this process
            self._workshop.manager.table.put_blocks(large)
        if at_once and len(messages) == 1 and not (large or messages[0].lane):
            # Another thread needn't be woken for it.
            lease_s, now_s = calls[0].function.bag.spec.lease_s, time.monotonic()
            delivery = self._memory.lend(messages[0], lease_s=lease_s)
            self._worker.hand(delivery, lease_s=lease_s, asked_s=now_s)
        else:
            send_all(self._queue, messages)

    def _collect(self) -> None:
        """Give the futures what the table has of theirs."""
        with self._changed:
            sent = list(self._sent)
        indexes: dict[str, list[int]] = {}
        for name, index in sent:
            indexes.setdefault(name, []).append(index)
        table = self._workshop.manager.table
        for name, those in indexes.items():
            self._give(table.results(name, indexes=those))

    def _give(self, results: Iterable[Result], *, waits: bool = True) -> int:
        """To the futures, only to those without callbacks unless this thread `waits` for theirs; returns how many were
        left."""
        left = 0
        for result in results:
            place = result.bag, result.index
            with self._changed:
                future = self._sent.get(place)
                if future is None:
                    continue
                if future.calls and not waits:
                    left += 1
                    continue
                del self._sent[place]
            _settle(future, result)
        return left


class _Future(futures.Future[T]):
    calls = False
    """Is anybody to be called when it has its result?"""

    def add_done_callback(self, fn: Callable[[futures.Future[T]], object]) -> None:
        self.calls = True
        super().add_done_callback(fn)


class _Function:
    """A function that was submitted, and its bag."""

    def __init__(self, function: Callable[..., Any], workshop: Workshop, options: dict[str, Any]) -> None:
        self._name = getattr(function, "__name__", "function")
        columns = tuple(parameters_of(function))
        from mtask.manager import make_spec

        spec = make_spec(call=workshop.target(function), columns=columns, **options)
        name = f"call-{uuid.uuid4().hex[:12]}"
        self.lane = Lane.of(
            spec.priority, spec.requires, uid=name, max_running=spec.max_running, rate=spec.rate
        )
        lanes = (self.lane,) if self.lane.name else ()
        self.bag = Bag(name=name, spec=spec, columns=columns, lanes=lanes, total=MOST, source="Executor")
        self.count = 0
        self._signature = inspect.signature(function)
        kinds = [parameter.kind for parameter in self._signature.parameters.values()]
        self._positional = -1 if inspect.Parameter.KEYWORD_ONLY in kinds else len(kinds)
        """So many positional arguments leave nothing to be said; -1: never."""
        self._binder = Binder(function, columns, textual=False)
        workshop.manager.table.create_bag(self.bag)
        workshop.manager.table.put_lanes(lanes)

    def row(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Raises TypeError and UsageError."""
        columns, given = self.bag.columns, args
        if kwargs or len(args) != self._positional:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = tuple(bound.arguments[name] for name in columns)
        if not columns:
            return b"[]"
        chunk = Chunk(range(1, 2), [[value] for value in given])
        try:
            (row,) = encode_rows(self._binder.wire(chunk), columns)
        except InputError as error:
            place = f"{self._name}: argument {error.column!r}" if error.column else self._name
            raise InputError(f"{place}: {error.problem}") from None
        return row


class _Call(NamedTuple):
    """A call that waits to be sent."""

    function: _Function
    row: bytes
    future: _Future[Any]
    at: int = -1
    """Its index in the bag, once it has one."""
    check: bool = False
    """May it have been sent before?"""


class _Pace:
    """How many tasks to send ahead: enough that no slot waits, too few to be missed when they are cancelled."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seen: deque[tuple[float, int]] = deque()
        self._ended = 0
        """Of all that are in it."""

    def note(self, ended: int) -> None:
        now_s = time.monotonic()
        if ended:
            self._seen.append((now_s, ended))
            self._ended += ended
        while self._seen and now_s - self._seen[0][0] > AHEAD_S:
            self._ended -= self._seen.popleft()[1]

    def most_ahead(self) -> int:
        return min(MOST_AHEAD, self._slots + 1 + 2 * max(0, self._ended - self._slots))


def _settle(future: futures.Future[Any], result: Result) -> None:
    if (error := task_error(result)) is not None:
        future.set_exception(error)
    else:
        future.set_result(result.value)

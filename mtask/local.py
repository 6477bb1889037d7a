"""Tasks from a Python program, done on this machine: `map` for a list, `Executor` for futures.

Queue and table are a private SQLite file in a temporary folder, which is gone afterwards. Functions
that workers can import go by their name. Others (of a notebook, of the main script, lambdas) are
written to that folder, which only this user can write to, by cloudpickle; nothing that comes from a
queue is ever unpickled.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mtask.errors import BackendError, TaskFailedError, UsageError
from mtask.manager import BagHandle, Manager, connect
from mtask.model import Bag, BagState, Block, Message, Result, Spec, State
from mtask.sources import Chunk, RowsSource, encode_rows

if TYPE_CHECKING:
    from mtask.binding import Binder

__all__ = ["Executor", "map"]

T = TypeVar("T")
POLL_S = (0.001, 0.05)


class _Workshop:
    """A private folder with queue and table in it, and the functions that can't be imported."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtask-"))
        url = f"sqlite:///{self.folder}/mtask.db"
        self.manager: Manager = connect(url, url)

    def target(self, function: Callable[..., Any]) -> str:
        """How a worker names the function. Raises UsageError."""
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
        if module not in (None, "__main__") and name and "<" not in name:
            found: Any = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is function:
                return f"{module}:{name}"
        try:
            import cloudpickle
        except ModuleNotFoundError:
            raise UsageError(
                f"{name or function!r} can't be imported by a worker: put it at the top of a module (a .py file), "
                "or pip install 'mtask[notebook]' (cloudpickle)"
            ) from None
        data = cloudpickle.dumps(function)
        shim = f"mtask_function_{hashlib.blake2b(data, digest_size=8).hexdigest()}"
        (self.folder / f"{shim}.pkl").write_bytes(data)
        (self.folder / f"{shim}.py").write_text(
            "import pathlib, pickle\nfunction = pickle.loads(pathlib.Path(__file__).with_suffix('.pkl').read_bytes())\n"
        )
        return f"{shim}:function"

    def close(self) -> None:
        self.manager.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def map(
    function: Callable[..., T],
    rows: Iterable[Any],
    *,
    slots: int | None = None,
    progress: bool = False,
    retries: int = 0,
    **options: Any,
) -> list[T]:
    """Call the function with each row in child processes; returns what it returned, in order.

    A row is a mapping (keyword arguments), a tuple (positional arguments), or else the one argument.
    `slots`: how many at a time, the number of CPUs by default. `options` are fields of `Spec`.
    Values come back as their JSON says: tuples as lists, dataclasses as dictionaries.

    Raises TaskFailedError for the first task that failed, with its traceback, when all have ended.
    """
    from mtask.worker.supervisor import Options, Worker

    workshop = _Workshop()
    try:
        source = _as_source(function, rows)
        target = workshop.target(function)
        if target.startswith("mtask_function_"):
            sys.path.insert(0, str(workshop.folder))
        try:
            bag = workshop.manager.submit(source, call=target, bag="map", retries=retries, **options)
        finally:
            if sys.path[0] == str(workshop.folder):
                del sys.path[0]
        made = Worker(
            workshop.manager.queue,
            workshop.manager.table,
            Options(slots=slots or len(os.sched_getaffinity(0)), path=(str(workshop.folder),)),
        )
        _work(made.run, bag, progress)
        return [_value(result) for result in bag.results()]
    finally:
        workshop.close()


def _work(run: Callable[[Callable[[], bool]], None], bag: BagHandle, progress: bool) -> None:
    from mtask.progress import Progress, Ticker

    with Progress(bag, shown=progress) as bar:
        ticker = Ticker(bar)
        ticker.start()
        try:
            run(bag.finished)
        finally:
            ticker.stop()


def _as_source(function: Callable[..., Any], rows: Iterable[Any]) -> RowsSource:
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        return RowsSource([])
    rows = chain([first], iterator)
    if isinstance(first, Mapping):
        return RowsSource(rows)
    names = list(_parameters(function))
    if isinstance(first, tuple):
        return RowsSource(rows, names[: len(first)])
    return RowsSource(((row,) for row in rows), names[:1])


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Raises UsageError for a function without named parameters."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = None
    kinds = {p.kind for p in parameters.values()} if parameters is not None else {inspect.Parameter.VAR_POSITIONAL}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise UsageError(f"{function!r} takes *args or **kwargs: wrap it in a function with named parameters")
    assert parameters is not None
    return parameters


def _value(result: Result) -> Any:
    error = _error(result)
    if error is not None:
        raise error
    return result.value


def _error(result: Result) -> TaskFailedError | None:
    if result.state is State.DONE:
        return None
    assert result.error is not None
    text = f"task {result.index} {result.state}: {result.error.type}: {result.error.message}"
    if result.error.traceback:
        text += f"\n{result.error.traceback}"
    error = TaskFailedError(text)
    error.result = result
    return error


class Executor(futures.Executor):
    """A `concurrent.futures.Executor` whose futures are tasks, done by a worker on this machine.

    Arguments and values must have a JSON form. Failed tasks are tried again `retries` times; then
    their future raises TaskFailedError, whose `result` is the task's row.
    """

    def __init__(self, slots: int | None = None, *, retries: int = 0, **options: Any) -> None:
        """`slots`: how many at a time, the number of CPUs by default. `options` are fields of `Spec`."""
        from mtask.worker.supervisor import Options, Worker

        self._options = {"retries": retries, **options}
        self._workshop = _Workshop()
        self._bags: dict[Any, tuple[Bag, Binder, list[int]]] = {}
        self._pending: dict[tuple[str, int], futures.Future[Any]] = {}
        self._changed = threading.Condition()
        self._shut = False
        manager = self._workshop.manager
        settings = Options(slots=slots or len(os.sched_getaffinity(0)), path=(str(self._workshop.folder),))
        self._worker = Worker(manager.queue, manager.table, settings)
        self._threads = [
            threading.Thread(target=self._work, name="mtask-worker", daemon=True),
            threading.Thread(target=self._watch, name="mtask-futures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Raises UsageError for a function or arguments that can't be sent, RuntimeError after shutdown."""
        with self._changed:
            if self._shut:
                raise RuntimeError("the executor was shut down")
            bag, binder, count = self._bag_of(fn)
            bound = inspect.signature(fn).bind(*args, **kwargs)
            bound.apply_defaults()
            chunk = Chunk(range(1, 2), [[bound.arguments[name]] for name in bag.columns], source=bag.name)
            (row,) = encode_rows(binder.wire(chunk), bag.columns)
            index = count[0]
            block = Block(bag=bag.name, number=index, first=index, count=1, rows=b"[" + row + b"]")
            table, queue = self._workshop.manager.table, self._workshop.manager.queue
            with table.transaction(queue):
                table.put_blocks([block])
                table.update_bag(bag.name, total=index + 1, sent=index + 1)
                queue.send([Message.of(bag, block)])
            count[0] += 1
            future: futures.Future[T] = futures.Future()
            future.set_running_or_notify_cancel()
            self._pending[bag.name, index] = future
            self._changed.notify_all()
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, tasks that haven't ended are given up, and their futures cancelled."""
        with self._changed:
            self._shut = True
            if cancel_futures:
                for bag, _, _ in self._bags.values():
                    self._workshop.manager.table.update_bag(bag.name, state=BagState.CANCELLED)
                for future in self._pending.values():
                    future.set_exception(futures.CancelledError())
                self._pending.clear()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _bag_of(self, function: Callable[..., Any]) -> tuple[Bag, Binder, list[int]]:
        from mtask.binding import Binder

        if function not in self._bags:
            columns = tuple(_parameters(function))
            spec = Spec(kind="call", target=(self._workshop.target(function),), **self._options)
            name = f"{getattr(function, '__name__', 'function')}-{uuid.uuid4().hex[:8]}"
            bag = Bag(name=name, spec=spec, columns=columns, source="Executor")
            self._workshop.manager.table.create_bag(bag)
            self._bags[function] = bag, Binder(function, columns, textual=False), [0]
        return self._bags[function]

    def _work(self) -> None:
        try:
            self._worker.run()
        except BackendError as error:
            with self._changed:
                for future in self._pending.values():
                    future.set_exception(error)
                self._pending.clear()
                self._shut = True
                self._changed.notify_all()

    def _watch(self) -> None:
        """Give the futures their results as they come in, until all have theirs after a shutdown."""
        pause_s = POLL_S[0]
        while True:
            with self._changed:
                while not self._pending and not self._shut:
                    self._changed.wait()
                if not self._pending:
                    break
                pending: dict[str, list[int]] = {}
                for name, index in self._pending:
                    pending.setdefault(name, []).append(index)
            found = [r for name, indexes in pending.items() for r in self._results(name, indexes)]
            for result in found:
                with self._changed:
                    future = self._pending.pop((result.bag, result.index), None)
                if future is None:
                    continue
                if (error := _error(result)) is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result.value)
            pause_s = POLL_S[0] if found else min(1.5 * pause_s, POLL_S[1])
            time.sleep(pause_s)
        self._worker.drain("shut down", grace_s=0)
        self._threads[0].join()
        self._workshop.close()

    def _results(self, bag: str, indexes: list[int]) -> list[Result]:
        return list(self._workshop.manager.table.results(bag, indexes=indexes))

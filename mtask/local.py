"""Tasks from a Python program, done on this machine: `map` for a list; `mtask.executor` for futures.

Queue and table are a private SQLite file in a temporary folder, which is gone afterwards. Functions
that workers can import go by their name. Others (of a notebook, of the main script, lambdas) are
written to that folder, which only this user can write to, by cloudpickle; nothing that comes from a
queue is ever unpickled.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mtask.bag import BagHandle
from mtask.errors import TaskFailedError, UsageError
from mtask.manager import Manager, connect
from mtask.model import Result, Spec, State
from mtask.sources import RowsSource
from mtask.status import headline

if TYPE_CHECKING:
    from mtask.worker.options import Options

__all__ = ["Workshop", "map", "parameters_of", "slots_or_cpus", "task_error", "worker_options"]

T = TypeVar("T")


class Workshop:
    """A private folder with queue and table in it, and the functions that can't be imported."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtask-"))
        # The file doesn't outlive this process: there is no power cut after which it could be missed.
        url = f"sqlite:///{self.folder}/mtask.db?durable=no"
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


def map(  # noqa: A001 as the builtin, on many cores
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
    from mtask.worker.supervisor import Worker

    slots = slots_or_cpus(slots)
    workshop = Workshop()
    try:
        source = _as_source(function, rows)
        target = workshop.target(function)
        if target.startswith("mtask_function_"):
            sys.path.insert(0, str(workshop.folder))
        try:
            bag = workshop.manager.submit(
                source, call=target, bag="map", retries=retries, row_needs=False, **options
            )
        finally:
            if sys.path[0] == str(workshop.folder):
                del sys.path[0]
        made = Worker(
            workshop.manager.queue,
            workshop.manager.table,
            worker_options(bag.info.spec, slots, workshop),
        )
        _work(made.run, bag, progress)
        return [_value(result) for result in bag.results()]
    finally:
        workshop.close()


def slots_or_cpus(slots: int | None) -> int:
    """Raises UsageError for a number below 1."""
    if slots is not None and slots < 1:
        raise UsageError(f"slots must be 1 or more, not {slots}")
    from mtask.worker.capabilities import cpus_of_machine

    return slots or cpus_of_machine()


def worker_options(spec: Spec, slots: int, workshop: Workshop) -> Options:
    """Of a worker on this machine for such tasks; raises UsageError when it can never run them."""
    from mtask.worker.capabilities import found
    from mtask.worker.options import Options

    tags = tuple(tag for tag in spec.tags if not tag.startswith("!"))
    options = Options(slots=slots, path=(str(workshop.folder),), tags=tags, submits=False)
    if lacking := found(options).lacks(spec.requires):
        raise UsageError(f"the tasks need {lacking}, which this machine, with {slots} slots, doesn't have")
    return options


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
    names = list(parameters_of(function))
    if isinstance(first, tuple):
        return RowsSource(rows, names[: len(first)])
    return RowsSource(((row,) for row in rows), names[:1])


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Raises UsageError for a function without named parameters."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = None
    kinds = (
        {p.kind for p in parameters.values()}
        if parameters is not None
        else {inspect.Parameter.VAR_POSITIONAL}
    )
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise UsageError(f"{function!r} takes *args or **kwargs: wrap it in a function with named parameters")
    assert parameters is not None
    return parameters


def _value(result: Result) -> Any:
    error = task_error(result)
    if error is not None:
        raise error
    return result.value


def task_error(result: Result) -> TaskFailedError | None:
    if result.state is State.DONE:
        return None
    assert result.error is not None
    text = f"task {result.index} {result.state}: {headline(result.error.type, result.error.message)}"
    if result.error.traceback:
        text += f"\n{result.error.traceback}"
    error = TaskFailedError(text)
    error.result = result
    return error

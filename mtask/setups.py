"""`mtask.setup`: functions whose value a process keeps, as a model that takes long to load.

@mtask.setup
def model(topic):
    return joblib.load(f"{topic}.joblib")

def predict(title, topic):
    return model(topic).predict([title])[0]
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, ParamSpec, TypeVar, overload

from mtask.errors import UsageError

__all__ = ["LONGEST_S", "Setup", "set_watch", "setup"]

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_S = 3600.0
"""A setup function may take so long, if it doesn't say otherwise."""


class Setup(Generic[P, T]):
    """A function that is called once in each process for the same arguments; made by `mtask.setup`."""

    def __init__(self, function: Callable[P, T], keep: int, timeout_s: float) -> None:
        import inspect  # slow, and of no use to most

        self.function, self.keep, self.timeout_s = function, keep, timeout_s
        self._values: OrderedDict[tuple[Any, ...], T] = OrderedDict()
        self._lock = threading.RLock()
        self.signature = inspect.signature(function)
        functools.update_wrapper(self, function)
        self.name = f"{function.__module__}:{function.__qualname__}"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The value that is kept for these arguments, or else what the function returns."""
        key = self._key(args, kwargs)
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            while len(self._values) >= self.keep:  # before: there may be no memory for one more
                self._values.popitem(last=False)
            with _watch(self):
                try:
                    value = self.function(*args, **kwargs)
                except BaseException as error:
                    _mark(error, self.name)
                    raise
            self._values[key] = value
            return value

    def forget(self) -> None:
        """Keep nothing of what there is: the next call calls the function."""
        with self._lock:
            self._values.clear()

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = tuple(
            tuple(sorted(value.items())) if isinstance(value, dict) else value
            for value in bound.arguments.values()
        )
        try:
            hash(key)
        except TypeError as error:
            raise UsageError(
                f"the setup function {self.name} can't be called with such a value: {error}; "
                "give it something that tells the values apart, as a name"
            ) from None
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the values, for processes of `mtask.map`."""
        return Setup, (self.function, self.keep, self.timeout_s)


@overload
def setup(function: Callable[P, T], /) -> Setup[P, T]: ...
@overload
def setup(*, keep: int = 1, timeout_s: float = LONGEST_S) -> Callable[[Callable[P, T]], Setup[P, T]]: ...
def setup(
    function: Callable[..., Any] | None = None, /, *, keep: int = 1, timeout_s: float = LONGEST_S
) -> Any:
    """Mark a function (`@mtask.setup`) whose value each process keeps: a model, a connection, a large table.

    It is called in each process before the first task of a function of the same module; in a task, and anywhere
    else, a call of it gives the value. If it has parameters, these are columns of the tasks: then it is called once
    for each value that comes, and the `keep` values used last are kept. If one of its parameters is no column, and has
    no default, it is called when the task calls it.

    The time that it takes isn't the task's: neither of its `--timeout` nor in its row. It may take `timeout_s` itself.
    If it raises, the attempt fails, with the reason `setup`; the next attempt calls it again.

    Raises UsageError for what can't be marked.
    """
    if keep < 1:
        raise UsageError(f"keep must be 1 or more, not {keep}")
    if not timeout_s > 0:
        raise UsageError(f"timeout_s must be more than 0, not {timeout_s:g}")
    if function is None:
        return functools.partial(_made, keep=keep, timeout_s=timeout_s)
    return _made(function, keep=keep, timeout_s=timeout_s)


def _made(function: Any, *, keep: int, timeout_s: float) -> Setup[..., Any]:
    import inspect  # slow, and of no use to most

    if not inspect.isfunction(function):
        raise UsageError(f"mtask.setup is for functions, not for {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(
            f"the setup function {function.__qualname__} must be an ordinary one, which returns a value"
        )
    return Setup(function, keep, timeout_s)


def _unwatched(_setup: Setup[..., Any]) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


_watch: Callable[[Setup[..., Any]], AbstractContextManager[None]] = _unwatched


def set_watch(watch: Callable[[Setup[..., Any]], AbstractContextManager[None]] | None) -> None:
    """Told by the process that runs tasks: what is to be entered while a setup function runs."""
    global _watch
    _watch = watch or _unwatched


def _mark(error: BaseException, name: str) -> None:
    """Tell the worker where it comes from; an exception may refuse."""
    with contextlib.suppress(Exception):
        vars(error).setdefault("mtask_setup", name)

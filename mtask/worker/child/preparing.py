"""Setup functions (`mtask.setup`) in the process that runs tasks: called before them, and not in their time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from mtask.setups import Setup
from mtask.worker.wire import Cell

__all__ = ["Watch", "prepared"]

Call = Callable[[list[Any]], Any]


class Looks(Protocol):
    """Knows how much CPU time the process has taken."""

    def look(self) -> float:
        """Since the last look, in seconds."""
        ...


class Watch:
    """Keeps the time of setup functions out of the time of the task that runs."""

    def __init__(self, cell: Cell, used: Looks) -> None:
        self._cell, self._used = cell, used
        self._pid, self._depth = os.getpid(), 0
        self.took_ns = 0
        """Time of setup functions since the task began."""
        self.cpu_s = 0.0
        """CPU time of the task before them."""

    def begin(self) -> None:
        """With the next task."""
        self.took_ns, self.cpu_s = 0, 0.0

    @contextlib.contextmanager
    def during(self, setup: Setup[..., Any]) -> Iterator[None]:
        """One of them runs."""
        # In another thread it runs beside the task; in another process the cell isn't ours.
        if (
            self._depth
            or threading.current_thread() is not threading.main_thread()
            or os.getpid() != self._pid
        ):
            yield
            return
        words, began_ns = self._cell.words, time.monotonic_ns()
        task_began_ns = words[Cell.STARTED_NS]
        self.cpu_s += self._used.look()
        # In this order: who reads both never takes the setup's time for the task's.
        words[Cell.BEFORE_NS] = began_ns - task_began_ns
        words[Cell.SETUP_NS] = int(min(setup.timeout_s, 1e9) * 1e9)
        words[Cell.STARTED_NS] = began_ns
        self._depth += 1
        try:
            yield
        finally:
            if os.getpid() == self._pid:
                self._depth -= 1
                self._used.look()
                took_ns = time.monotonic_ns() - began_ns
                self.took_ns += took_ns
                words[Cell.STARTED_NS] = task_began_ns + took_ns
                words[Cell.SETUP_NS] = 0


def prepared(
    call: Call, function: Callable[..., Any], columns: Sequence[str], not_yet: Collection[str]
) -> Call:
    """What first calls the setup functions that the function's module knows, if all their parameters are columns
    or have a default.

    `not_yet`: columns whose values in the row are not what the function gets.
    """
    from mtask.binding import scope_of

    setups = {id(each): each for each in scope_of(function).values() if isinstance(each, Setup)}
    first = [_caller(each, function, columns) for each in setups.values() if _fits(each, columns, not_yet)]
    if not first:
        return call

    def call_prepared(row: list[Any]) -> Any:
        for prepare in first:
            prepare(row)
        return call(row)

    return call_prepared


def _fits(setup: Setup[..., Any], columns: Collection[str], not_yet: Collection[str]) -> bool:
    parameters = setup.signature.parameters.values()
    return all(
        each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in not_yet
        and (each.name in columns or each.default is not each.empty)
        for each in parameters
    )


def _caller(setup: Setup[..., Any], function: Callable[..., Any], columns: Sequence[str]) -> Call:
    """Converts a row's values as for the task's function, so that they are the ones with which that calls it."""
    import inspect

    from mtask.binding import Binder, hints_of

    signature = setup.signature
    hints = hints_of(function, inspect.signature(function)) | hints_of(setup.function, signature)
    parameters = [
        each.replace(annotation=hints.get(each.name, each.annotation))
        for each in signature.parameters.values()
    ]

    def stand_in(*args: Any, **kwargs: Any) -> None:
        setup(*args, **kwargs)

    stand_in.__qualname__ = setup.function.__qualname__
    stand_in.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return Binder(stand_in, columns, spare=columns).caller()

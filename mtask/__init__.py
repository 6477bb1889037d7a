"""mtask: runs a CSV of independent tasks on a laptop, a pool or a cloud fleet, and loses none.

    with mtask.connect() as mt:
        bag = mt.submit("tasks.csv", call="mymodule:predict", bag="june")
        bag.wait()
        frame = bag.to_pandas()

Workers elsewhere (`mtask worker`) do the work. `mtask.map(function, rows)` and `mtask.Executor` do it
here and now. Nothing of the package is imported before it is used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 on the path of another interpreter than the one that pip installed it for
    raise ImportError(f"mtask needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")

__version__ = "0.1.0"

_HOMES = {
    "Bag": "model",
    "BagHandle": "bag",
    "Counts": "model",
    "Fail": "task",
    "Retry": "task",
    "checkpoint_dir": "task",
    "stopping": "task",
    "submit": "task",
    "setup": "setups",
    "Executor": "executor",
    "Manager": "manager",
    "Result": "model",
    "Spec": "model",
    "State": "model",
    "connect": "manager",
    "map": "local",
    **dict.fromkeys(
        (
            "BackendError",
            "BagExistsError",
            "BagNotFoundError",
            "InputError",
            "MessageError",
            "MtaskError",
            "NewerMessageError",
            "SchemaError",
            "SendError",
            "StorageFullError",
            "TaskFailedError",
            "UnavailableError",
            "UnusableError",
            "UsageError",
        ),
        "errors",
    ),
}

__all__ = [  # noqa: RUF022 the functions first
    "connect",
    "map",
    "submit",
    "setup",
    "stopping",
    "checkpoint_dir",
    "Executor",
    "Manager",
    "BagHandle",
    "Bag",
    "Counts",
    "Result",
    "Spec",
    "State",
    "Retry",
    "Fail",
    "BackendError",
    "BagExistsError",
    "BagNotFoundError",
    "InputError",
    "MessageError",
    "MtaskError",
    "NewerMessageError",
    "SchemaError",
    "SendError",
    "StorageFullError",
    "TaskFailedError",
    "UnavailableError",
    "UnusableError",
    "UsageError",
]

if TYPE_CHECKING:
    from mtask.bag import BagHandle
    from mtask.errors import (
        BackendError,
        BagExistsError,
        BagNotFoundError,
        InputError,
        MessageError,
        MtaskError,
        NewerMessageError,
        SchemaError,
        SendError,
        StorageFullError,
        TaskFailedError,
        UnavailableError,
        UnusableError,
        UsageError,
    )
    from mtask.executor import Executor
    from mtask.local import map  # noqa: A004 as the builtin, on many cores
    from mtask.manager import Manager, connect
    from mtask.model import Bag, Counts, Result, Spec, State
    from mtask.setups import setup
    from mtask.task import Fail, Retry, checkpoint_dir, stopping, submit


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtask' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"mtask.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

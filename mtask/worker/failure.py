"""Why a task failed, as it is recorded."""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING, TypeVar

import mtask
from mtask import task
from mtask.model import Failure, Reason, Spec
from mtask.retry import is_wanted

if TYPE_CHECKING:
    import traceback

__all__ = ["describe", "noted", "why_it_died"]

T = TypeVar("T")

_NOT_THE_USERS = (os.path.dirname(mtask.__file__) + os.sep, "<frozen importlib", importlib.__file__)


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
    setup = noted(error, "mtask_setup", str)
    if setup is not None:
        reason = Reason.SETUP
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return Failure(
        reason=reason,
        type=_storable(name),
        message=_storable(f"{f'the setup function {setup}: ' if setup else ''}{_message_of(error)}"[:4096]),
        traceback=_storable(text[-16384:]),
        final=isinstance(error, task.Fail)
        or (spec is not None and not is_wanted(spec, _names(kind, reason))),
        retry_after_s=error.delay_s if isinstance(error, task.Retry) else None,
    )


def noted(error: BaseException, name: str, kind: type[T]) -> T | None:
    """What mtask has noted on an exception, whatever that says of its attributes itself."""
    try:
        value = vars(error).get(name)
    except Exception:
        return None
    return value if isinstance(value, kind) else None


def _names(kind: type[BaseException], reason: Reason) -> set[str]:
    """By what `retry_on` and `no_retry` may call it: its class and the bases, with and without the module."""
    return {
        reason.value,
        *(n for c in kind.__mro__ for n in (c.__name__, f"{c.__module__}.{c.__qualname__}")),
    }


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


def why_it_died(status: int) -> Failure:
    """From an exit status; -N stands for signal N."""
    if status >= 0:
        return Failure(reason=Reason.EXIT, type="exit", message=f"exit status {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return Failure(reason=Reason.SIGNAL, type=name, message=f"killed by {name}{hint}")

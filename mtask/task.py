"""What a task may ask and say while it runs: `mtask.stopping`, `checkpoint_dir`, `submit`, `Retry`, `Fail`.

Outside a task, `stopping` is False, and `checkpoint_dir` and `submit` raise UsageError. A command finds the same
in its environment: MTASK_CHECKPOINT_DIR, a place that it makes itself; and SIGTERM tells it to stop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from mtask import urls
from mtask.errors import MtaskError, UsageError

if TYPE_CHECKING:
    from mtask.sources import Source

__all__ = ["Context", "Fail", "Retry", "checkpoint_dir", "set_context", "stopping", "submit"]


class Retry(MtaskError):
    """Raised by a task: this attempt failed, try again after `delay_s` seconds.

    It costs an attempt, like any failure; None leaves the pause to the bag's backoff.
    """

    def __init__(self, delay_s: float | None = None, message: str = "") -> None:
        super().__init__(message or "the task asked to be tried again")
        self.delay_s = delay_s


class Fail(MtaskError):
    """Raised by a task: it failed, and another attempt would be of no use."""


class Context(msgspec.Struct, kw_only=True):
    """Of the task that runs in this process; kept up to date by the process that runs it."""

    uid: str
    """Of its bag."""
    index: int
    checkpoints: str
    """Folder, or fsspec URL, below which each task has a place of its own."""
    stopping: Callable[[], bool]
    has_checkpoint: bool = False
    """Did it ask for its place?"""
    ask: Callable[[bytes], bytes] | None = None
    """Has the worker submit tasks; see `mtask.worker.submits`."""
    submitted: int = 0
    """How often it did."""


_current: Context | None = None


def set_context(context: Context | None) -> None:
    """Told by the process that runs tasks."""
    global _current
    _current = context


def stopping() -> bool:
    """Is the worker about to stop? A long task should save its state then, and go on: what isn't finished
    within the grace is ended, and started again elsewhere. What it returns is its value, also now."""
    return _current is not None and _current.stopping()


def checkpoint_dir() -> str:
    """A folder (or an fsspec URL, if the worker was given one) that the next attempt of this task
    finds again, wherever it runs, if it is on storage that all workers see. It is removed when the
    task is done. Raises UsageError outside of a task, and when nothing can be saved there."""
    if _current is None:
        raise UsageError("checkpoint_dir is for tasks: there is none outside of one")
    _current.has_checkpoint = True
    place = place_of(_current.checkpoints, _current.uid, _current.index)
    make(place)
    return place


def submit(
    tasks: str | os.PathLike[str] | Iterable[Any] | Source,
    *,
    bag: str,
    call: str | Callable[..., Any] | None = None,
    run: str | None = None,
    shell: str | None = None,
    columns: Sequence[str] | None = None,
    row_needs: bool = True,
    **options: Any,
) -> None:
    """Add tasks to an open bag, over the queue and the table of the worker that runs this task.

    The bag is made if there is none, and stays open until somebody seals it. The arguments are those of
    `Manager.submit`. They are stored and sent when this returns, whatever becomes of the task then.

    However often the task runs, its tasks are added once: its first submit, its second, and so on, are known by
    these numbers. What an earlier attempt has added stays, even if another one would submit something else; so what is
    submitted should depend on the task's parameters alone.

    Raises UsageError where it can't be (outside a task, on a queue to which workers can't send), and as
    `Manager.submit` does.
    """
    if _current is None or _current.ask is None:
        raise UsageError(
            "mtask.submit is for tasks, while they run; elsewhere: with mtask.connect() as mt: mt.submit(…, open=True)"
        )
    from mtask.worker.submits import asked

    _current.submitted += 1
    asked(
        _current.ask,
        f"{_current.uid}/{_current.index}/{_current.submitted}",
        bag,
        tasks,
        columns,
        row_needs=row_needs,
        **{"call": call, "run": run, "shell": shell, **options},
    )


def asks() -> Callable[[bytes], bytes]:
    """The way to the worker of the task that runs. Raises UsageError outside of one."""
    if _current is None or _current.ask is None:
        raise UsageError("this is for tasks, while they run")
    return _current.ask


def rooted(checkpoints: str) -> str:
    """The same place, whatever becomes of the working directory."""
    return checkpoints if "://" in checkpoints else os.path.abspath(checkpoints)


def place_of(checkpoints: str, uid: str, index: int) -> str:
    """The task's own place below `checkpoints`."""
    slash = "" if checkpoints.endswith("/") else "/"
    return f"{checkpoints}{slash}{uid}/{index}"


def check(checkpoints: str) -> None:
    """Raises UsageError where nothing can be saved, before every task fails of it."""
    make(checkpoints)
    probe = f"probe-{os.urandom(8).hex()}"
    with _told(checkpoints):
        if "://" not in checkpoints:
            with open(os.path.join(checkpoints, probe), "x") as file:
                os.unlink(file.name)
        else:
            filesystem, path = urls.filesystem(checkpoints)
            filesystem.pipe_file(f"{path}/{probe}", b"probe")
            filesystem.rm_file(f"{path}/{probe}")


def make(place: str) -> None:
    """Raises UsageError."""
    with _told(place):
        if "://" not in place:
            os.makedirs(place, exist_ok=True)
        else:
            filesystem, path = urls.filesystem(place)
            filesystem.makedirs(path, exist_ok=True)


def remove(place: str) -> None:
    """Of a task that is done; nothing happens when it never had one."""
    if "://" not in place:
        if os.access(place, os.F_OK):  # costs less than to look what it is
            import shutil

            shutil.rmtree(place, ignore_errors=True)
        return
    filesystem, path = urls.filesystem(place)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a file system may raise what it likes
        raise UsageError(
            f"no checkpoint can be saved in {urls.shown(place)}: {urls.said_by(error)}"
        ) from error

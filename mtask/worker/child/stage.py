"""Brings an attempt's inputs to this machine, and puts its outputs where they belong.

It works in the process that runs the attempt, or starts it, never in the supervisor: a store that hangs can be ended
with the attempt.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mtask.errors import MtaskError, UsageError
from mtask.model import UNKNOWN, Failure, Reason
from mtask.staging import file_name
from mtask.urls import filesystem, is_url, said_by, scheme_of, shown
from mtask.worker.child.cache import Cache, Use

__all__ = ["Stage", "StageError"]

COPY_BYTES = 1 << 20


class StageError(MtaskError):
    """An input can't be fetched, or an output not be put in its place."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.staging = failure


class Stage:
    """For one attempt after the other."""

    def __init__(self, folder: str) -> None:
        """`folder`: below it attempts write their outputs; made when it is needed, and removed after each."""
        self._folder = folder
        self._cache: Cache | None = None
        self._uses: list[Use] = []
        self._used = False

    def open(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
        """Name → path of all. Inputs are there, and stay until `close`. Raises StageError."""
        self.close()
        self._used = True
        paths = {}
        try:
            for name, url in inputs.items():
                try:
                    paths[name] = self._fetched(url)
                except Exception as error:  # a file system may raise what it likes
                    raise _failed("input", name, url, error) from error
            for name, url in outputs.items():
                paths[name] = self._place(name, url)
                try:
                    os.makedirs(os.path.dirname(paths[name]))
                except OSError as error:
                    raise _failed("output", name, url, error) from error
        except BaseException:
            self.close()
            raise
        return paths

    def put(self, outputs: Mapping[str, str]) -> None:
        """Of an attempt that has succeeded. None is put if one wasn't written. Raises StageError."""
        self._used = True
        for name, url in outputs.items():
            path = self._place(name, url)
            if not os.path.lexists(path):
                raise StageError(_failure(f"output {name!r}: the task wrote nothing to it, for {shown(url)}"))
            try:
                is_file = stat.S_ISREG(os.stat(path).st_mode)
            except OSError as error:  # as of a link that leads nowhere
                raise _failed("output", name, url, error) from error
            if not is_file:
                raise StageError(_failure(f"output {name!r}: the task made no file of it, for {shown(url)}"))
        with _undisturbed():
            for name, url in outputs.items():
                try:
                    put_whole(self._place(name, url), url)
                except Exception as error:
                    raise _failed("output", name, url, error) from error

    def close(self) -> None:
        """The attempt has ended: its inputs may go."""
        if self._used:
            self._used = False
            while self._uses:
                self._uses.pop().close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _fetched(self, url: str) -> str:
        if not is_url(url):
            os.stat(url)
            return url
        if self._cache is None:
            self._cache = Cache.of_environment()
        use = self._cache.use(url)
        self._uses.append(use)
        return use.path

    def _place(self, name: str, url: str) -> str:
        return os.path.join(self._folder, name, file_name(url))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM says that the worker is about to stop; the work is done, and only has to be put in its place."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def put_whole(path: str, url: str) -> None:
    """Write a file to a place that shows it only when all of it has come. Raises what the store raises."""
    if scheme_of(url) in ("", "file", "local"):
        _put_beside(path, filesystem(url)[1] if is_url(url) else url)
        return
    store, target = filesystem(url)
    store.put_file(path, target)  # one request, or parts that become an object with the last request
    store.invalidate_cache()


def _put_beside(path: str, target: str) -> None:
    """Into a file without a name, which gets one when it is complete, and then that of `target`."""
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    hidden = os.path.join(folder, f".{file_name(target)}.{secrets.token_hex(4)}.part")
    named = False
    try:
        try:
            into = os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o666)
        except (
            OSError
        ):  # a file system that has none: what a killed worker leaves there has a name with a dot before it
            into, named = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), True
        with open(path, "rb") as source, open(into, "wb") as copy:
            shutil.copyfileobj(source, copy, COPY_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
            if not named:
                # With a descriptor of a folder, which it doesn't need, Python asks for the link to be followed.
                os.link(f"/proc/self/fd/{copy.fileno()}", hidden, src_dir_fd=directory, follow_symlinks=True)
                named = True
        os.replace(hidden, target)
        named = False
        os.fsync(directory)
    finally:
        os.close(directory)
        if named:
            os.unlink(hidden)


def _failed(what: str, name: str, url: str, error: Exception) -> StageError:
    if isinstance(error, UsageError):  # something isn't installed here, but may be elsewhere
        return StageError(Failure(reason=Reason.START, type=UNKNOWN, message=f"{what} {name!r}: {error}"))
    return StageError(_failure(f"{what} {name!r}: {shown(url)}: {said_by(error)}"))


def _failure(text: str) -> Failure:
    return Failure(reason=Reason.STAGING, type=str(Reason.STAGING), message=text[:4096])

"""Where what tasks print goes: whole, one task's after the other's, and with a record behind it."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

__all__ = ["Merged", "PerTask", "append_file", "append_whole", "pour", "write_all"]

_CHUNK_BYTES = 1 << 20


def write_all(fd: int, data: bytes) -> None:
    """All of it, however slowly the other side reads; raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def pour(source: int, destination: int, *, behind: bytes = b"") -> None:
    """A file from its beginning, and then `behind`, which begins a line of its own; raises OSError."""
    size, at, last = os.lseek(source, 0, os.SEEK_END), 0, b"\n"
    while at < size:
        data = os.pread(source, min(_CHUNK_BYTES, size - at), at)
        if not data:
            break  # it was cut meanwhile
        at, last = at + len(data), data[-1:]
        if at >= size:
            behind, data = data + (b"\n" if behind and last != b"\n" else b"") + behind, b""
        write_all(destination, data)
    write_all(destination, behind)


def append_whole(path: str, data: bytes) -> None:
    """To a file, whose folder is made; all or nothing. Raises OSError."""
    fd = _open_to_append(path)
    try:
        before = os.lseek(fd, 0, os.SEEK_END)
        try:
            write_all(fd, data)
        except OSError:
            os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)


def append_file(source: str, destination: str) -> None:
    """A file's content to another file, all or nothing; a file that isn't there has none. Raises OSError."""
    try:
        reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        if not os.path.isfile(source):
            raise OSError(errno.EINVAL, "it is not a file", source)
        writer = _open_to_append(destination)
        try:
            before = os.lseek(writer, 0, os.SEEK_END)
            try:
                pour(reader, writer)
            except OSError:
                os.ftruncate(writer, before)
                raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _open_to_append(path: str) -> int:
    if folder := os.path.dirname(path):
        os.makedirs(folder, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


class Merged:
    """All tasks' outputs in two files, or in the standard output and standard error of this process."""

    def __init__(self, stdout: str | None, stderr: str | None, *, keep: bool) -> None:
        """`keep`: append, because a run before this one has written the outputs of its tasks; what it was killed in the
        middle of ends its line. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
        self._stdout = 1 if stdout is None else os.open(stdout, flags, 0o644)
        if stderr is not None and stderr == stdout:
            self._stderr = self._stdout
        else:
            self._stderr = 2 if stderr is None else os.open(stderr, flags, 0o644)
        for path, fd in ((stdout, self._stdout), (stderr, self._stderr)):
            if path is not None and keep:
                _end_line(fd)

    def write(self, _name: str, stdout: int, stderr: int, record: str) -> None:
        """Raises OSError."""
        pour(stderr, self._stderr)
        pour(stdout, self._stdout, behind=os.fsencode(record))


def _end_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        write_all(fd, b"\n")


class PerTask:
    """Two files for each attempt, beside the DAG: NAME.out.000 and NAME.err.000, then .001, …"""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def write(self, name: str, stdout: int, stderr: int, record: str) -> None:
        """Raises OSError."""
        number = 0
        while (Path(self._folder) / f"{name}.out.{number:03}").exists():
            number += 1
        for kind, source, behind in (("err", stderr, ""), ("out", stdout, record)):
            path = os.path.join(self._folder, f"{name}.{kind}.{number:03}")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                pour(source, fd, behind=os.fsencode(behind))
            finally:
                os.close(fd)

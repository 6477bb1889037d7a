"""What a task prints: kept in a file while it runs, of which the tail goes into its record."""

from __future__ import annotations

import fcntl
import os

from mtask.spec import TAIL_BYTES

__all__ = ["MOST_BYTES", "new_output", "size_of", "take_tail", "trim"]

MOST_BYTES = 64 * 1024 * 1024
"""An output that grew beyond this is cut to its tail, so that no task fills the disk by printing."""


def new_output() -> int:
    """A descriptor of a nameless file that is appended to, also when it was cut in between."""
    import tempfile  # not needed by children, which take what they find

    fd, path = tempfile.mkstemp(prefix="mtask-output-")
    os.unlink(path)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def size_of(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def take_tail(fd: int, tail_bytes: int = TAIL_BYTES) -> str:
    """The end of what was printed, as text; empties the file."""
    size = size_of(fd)
    if not size:
        return ""
    data = os.pread(fd, tail_bytes, max(0, size - tail_bytes))
    os.ftruncate(fd, 0)
    if size > tail_bytes:
        # The cut may have gone through a character, of which up to three bytes are left.
        begin = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
        data = data[begin:]
    return data.decode("utf-8", "replace")


def trim(fd: int) -> None:
    """Cut an output that has grown too large to its tail."""
    if size_of(fd) > MOST_BYTES:
        tail = os.pread(fd, TAIL_BYTES, size_of(fd) - TAIL_BYTES)
        os.ftruncate(fd, 0)
        os.write(fd, tail)

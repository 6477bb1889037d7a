"""Wakes who waits for a message as soon as anybody has sent one, from whatever process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select

__all__ = ["Watch"]

_IN_ATTRIB = 0x4


class Watch:
    """Of a file whose times are changed after each commit of something that waiting threads should see, by
    inotify(7).

    For one thread. Where inotify can't be had (not Linux, or too many watches), `works` is False.
    """

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._poll = select.poll()
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(path), _IN_ATTRIB) >= 0:
                self._fd = fd
                self._poll.register(fd, select.POLLIN)
            elif fd >= 0:
                os.close(fd)

    @property
    def works(self) -> bool:
        return self._fd >= 0

    def wait(self, timeout_s: float) -> None:
        """Return when something was sent since the last call, or after so long."""
        if self._poll.poll(timeout_s * 1000):
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 65536)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

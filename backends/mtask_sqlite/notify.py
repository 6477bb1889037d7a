"""Wakes who waits for a message as soon as anybody has written to the file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import time

__all__ = ["Watch"]

_IN_MODIFY = 0x2
_LEAST_S = 0.0003
"""Between two looks, so that a busy writer doesn't keep all that wait for something else busy, too."""
_SETTLE_S = 0.2


class Watch:
    """Of the database's write-ahead log, by inotify(7); where there is none, `wait` only sleeps.

    For one thread. Where inotify can't be had (not Linux, or too many watches), `works` is False.
    """

    def __init__(self, path: str) -> None:
        self._fd, self._woken_s = -1, 0.0
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(f"{path}-wal"), _IN_MODIFY) >= 0:
                self._fd = fd
            elif fd >= 0:
                os.close(fd)

    @property
    def works(self) -> bool:
        return self._fd >= 0

    def wait(self, timeout_s: float) -> None:
        """Return soon after something was written, or after so long."""
        # The log is written to before its commit can be seen, by as long as the disk takes: look again.
        since_s = time.monotonic() - self._woken_s
        if since_s < _SETTLE_S:
            timeout_s = min(timeout_s, max(_LEAST_S, since_s / 2))
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            time.sleep(_LEAST_S)
            self._woken_s = time.monotonic()
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 65536)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

"""What other threads have for the worker's main thread, which waits in its selector."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable

__all__ = ["Inbox"]


class Inbox:
    """Events, done one after the other by the thread that reads; `fd` is readable when there is one."""

    def __init__(self) -> None:
        self._events: deque[Callable[[], None]] = deque()
        self.fd, self._bell = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._bell, False)
        self._rung = False
        """Is the reader about to read?"""

    def __bool__(self) -> bool:
        return bool(self._events)

    def post(self, event: Callable[[], None]) -> None:
        """From any thread, or a signal's handler."""
        self._events.append(event)
        if self._rung:  # and the reader will see this one, too
            return
        self._rung = True
        with contextlib.suppress(OSError):  # the reader has stopped
            os.write(self._bell, b"!")

    def awake(self) -> None:
        """The reader is, and about to `read`: `fd` is not readable any more, until there is another event."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        self._rung = False  # not before: a bell that was rung meanwhile would be lost with this one

    def read(self) -> None:
        while self._events:
            self._events.popleft()()

    def close(self) -> None:
        bell, self._bell = self._bell, -1
        os.close(bell)
        os.close(self.fd)

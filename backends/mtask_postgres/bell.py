"""Wakes who waits for a message as soon as anybody has sent one, from whatever process or host (LISTEN, NOTIFY)."""

from __future__ import annotations

import os
import select
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg

from mtask.errors import MtaskError

__all__ = ["Bell"]

_PAUSES_S = (0.1, 5.0)
"""Between two tries to connect: shortest and longest."""
_CLOSE_S = 2.0
"""A thread that tries to connect just now can't be told to stop; it ends by itself, or with the process."""


class Bell:
    """Listens on a channel, on a connection and in a thread of its own, from the first wait on.

    What is sent while it doesn't listen isn't heard. So who waits looks for himself now and then; and the bell rings for
    all when it has begun to listen, or does so again.
    """

    def __init__(self, channel: str, connect: Callable[[], psycopg.Connection[tuple[Any, ...]]]) -> None:
        self._channel, self._connect = channel, connect
        self._changed = threading.Condition()
        self._rings: Counter[str] = Counter()
        self._all = 0
        self._thread: threading.Thread | None = None
        self._stop_in, self._stop_out = -1, -1
        self._closed = threading.Event()
        self.listens = False

    def rings(self, name: str) -> int:
        """A number that grows with each ring for this name."""
        with self._changed:
            return self._rings[name] + self._all

    def wait(self, name: str, since: int, timeout_s: float, broken_off: Callable[[], bool]) -> None:
        """Until it has rung for this name since `rings` gave this number, or so long, or a `poke` after which it is broken off."""
        self._start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._rings[name] + self._all != since or broken_off(), max(0.0, timeout_s)
            )

    def poke(self) -> None:
        """Have all who wait look whether they are broken off."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            thread, self._thread = self._thread, None
            self._closed.set()
        if thread is not None:
            os.write(self._stop_in, b"x")
            thread.join(_CLOSE_S)
            if not thread.is_alive():
                os.close(self._stop_in)
                os.close(self._stop_out)

    # -- the thread ---------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._stop_out, self._stop_in = os.pipe()
                self._thread = threading.Thread(target=self._work, name="postgres-listen", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        pause_s = _PAUSES_S[0]
        while not self._closed.is_set():
            with suppress(MtaskError, psycopg.Error, OSError), closing(self._connect()) as connection:
                connection.execute(f'LISTEN "{self._channel}"'.encode())
                self.listens, pause_s = True, _PAUSES_S[0]
                self._ring(None)
                self._hear(connection)
            self.listens = False
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])

    def _hear(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Until the end. Raises psycopg.Error when the connection is lost."""
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._stop_out, select.POLLIN)
        while not self._closed.is_set():
            while (notice := connection.pgconn.notifies()) is not None:
                self._ring(notice.extra.decode())
            poll.poll()
            connection.pgconn.consume_input()

    def _ring(self, name: str | None) -> None:
        """None: for all."""
        with self._changed:
            if name is None:
                self._all += 1
            else:
                self._rings[name] += 1
            self._changed.notify_all()

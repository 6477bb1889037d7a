"""A queue in an SQLite file."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mtask.errors import BackendError, SendError
from mtask.model import Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits, encoded
from mtask_sqlite.database import Database
from mtask_sqlite.notify import Watch

__all__ = ["SqliteQueue"]

LIMITS = QueueLimits(message_bytes=16 * 1024 * 1024, send_batch=1000, receive_batch=1000)

_LOOK_S = 1.0
"""Who waits looks into the file so often, even if nothing tells that it was written to."""
_POLL_S = (0.005, 0.05)
"""The same where nothing can tell: shortest and longest pause. On a virtual machine a look costs up to
0.2 ms, mostly for sleeping and waking, so an idle worker takes 0.4 % of a core."""
_POLL_GROWTH = 0.02
"""The pause as a part of the time without a message, between those."""

_TAKE = """
    SELECT id, body, deliveries + 1 FROM message JOIN message_body USING (id)
    WHERE lane = ? AND visible_at <= ? ORDER BY visible_at, id LIMIT ?
"""
_DEPTH = """
    SELECT count(*) FILTER (WHERE visible_at <= :now),
           count(*) FILTER (WHERE visible_at > :now AND token IS NOT NULL),
           count(*) FILTER (WHERE visible_at > :now AND token IS NULL)
    FROM message WHERE lane = :lane
"""


class _Token(NamedTuple):
    id: int
    lease: int
    """A random number, the same for all messages taken at once, another for each time."""


class SqliteQueue:
    """One lane of the queue in a database.

    A lease lasts until its time has come *and* somebody else has received the message: a late
    `extend`, `delete` or `release` still counts when nobody has, which saves running a task again on
    a machine too busy to extend in time, and harms no one.
    """

    limits = LIMITS

    def __init__(
        self,
        database: Database,
        lane: str = "main",
        *,
        clock: Callable[[], float] | None = None,
        boot_id: str | None = None,
    ) -> None:
        """Takes over one use of `database`. The clock gives seconds, the same for all processes that
        use the file while `boot_id` is the same."""
        self.database = database
        self._name = lane
        self._clock = clock or lease_clock
        self._closed = False
        self._local = threading.local()
        self._wakes = 0
        self._idle_s = 0.0
        """How long the last calls of `receive` waited in vain."""
        self._boot_id = boot_id or current_boot_id()
        self._end_leases_of_other_boots(self._boot_id)

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        bodies, unsent = encoded(messages, LIMITS.message_bytes)
        if bodies:
            with self._open().write() as connection:
                self._insert(connection, bodies, self._clock() + delay_s)
                self.database.tell()
        if unsent:
            raise SendError(unsent)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        started, wakes = time.monotonic(), self._wakes
        database = self._open()
        if wait_s:
            self._watch()  # before the first look, so that nothing that is sent goes unseen
        version = self._version(database)  # before the first look, so that no commit goes unseen
        while True:
            next_at = self._next_at(database)
            if next_at is not None and next_at <= self._clock():
                deliveries = self._take(database, max_messages, lease_s)
                if deliveries:
                    self._idle_s = 0.0
                    return deliveries
                continue  # others were quicker
            while (seen := self._version(database)) == version:
                waited = time.monotonic() - started
                if (
                    waited >= wait_s or self._wakes != wakes or database.writing
                ):  # in a transaction nobody else can send
                    self._idle_s += waited
                    return []
                if next_at is not None and next_at <= self._clock():
                    break
                left = wait_s - waited
                self._wait(left if next_at is None else min(left, next_at - self._clock()), waited)
                database = self._open()
            version = seen

    def wake(self) -> None:
        self._wakes += 1
        self.database.ring()

    def _wait(self, longest_s: float, waited_s: float) -> None:
        """For another process or thread to send something."""
        watch = self._watch()
        if watch.works:
            watch.wait(max(0.0, min(longest_s, _LOOK_S)))
        else:
            pause_s = min(max(_POLL_S[0], (waited_s + self._idle_s) * _POLL_GROWTH), _POLL_S[1])
            time.sleep(max(0.0, min(longest_s, pause_s)))

    def _watch(self) -> Watch:
        """This thread's."""
        watch: Watch | None = getattr(self._local, "watch", None)
        if watch is None:
            watch = self._local.watch = Watch(self.database.bell)
        return watch

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        result = Extension([], [])
        lease = _new_lease()
        with self._open().write(durable=False) as connection:
            now = self._clock()
            for delivery in deliveries:
                token: _Token = delivery.token
                cursor = connection.execute(
                    "UPDATE message SET visible_at = ?, token = ? WHERE id = ? AND token = ?",
                    (now + lease_s, lease, token.id, token.lease),
                )
                if cursor.rowcount:
                    extended = Delivery(
                        body=delivery.body, token=_Token(token.id, lease), deliveries=delivery.deliveries
                    )
                    result.extended.append((delivery, extended))
                else:
                    result.lost.append(delivery)
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        with self._open().write() as connection:
            for delivery in deliveries:
                token: _Token = delivery.token
                if connection.execute("DELETE FROM message WHERE id = ? AND token = ?", token).rowcount:
                    connection.execute("DELETE FROM message_body WHERE id = ?", (token.id,))

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        with self._open().write(durable=False) as connection:
            visible_at = self._clock() + delay_s
            connection.executemany(
                "UPDATE message SET visible_at = ?, token = NULL, deliveries = deliveries - 1 WHERE id = ? AND token = ?",
                [(visible_at, *delivery.token) for delivery in deliveries],
            )
            self.database.tell()

    def depth(self) -> Depth:
        with self._open().read() as connection:
            return Depth(*connection.execute(_DEPTH, {"now": self._clock(), "lane": self._name}).fetchone())

    def lane(self, name: str) -> SqliteQueue:
        # With the same connections, so that it takes part in this one's transactions.
        lane = SqliteQueue(self._open(), f"{self._name}/{name}", clock=self._clock, boot_id=self._boot_id)
        self.database.share()
        return lane

    def remove(self) -> bool:
        return self.depth() == (0, 0, 0)  # a lane is a value in a column: without messages it isn't there

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.database.close()

    def _open(self) -> Database:
        if self._closed:
            raise BackendError(f"the queue in {self.database.path} is closed")
        return self.database

    def _insert(self, connection: sqlite3.Connection, bodies: list[bytes], visible_at: float) -> None:
        last = connection.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()[0]
        numbers = range(last + 1, last + 1 + len(bodies))
        connection.executemany(
            "INSERT INTO message (id, lane, visible_at) VALUES (?, ?, ?)",
            [(number, self._name, visible_at) for number in numbers],
        )
        connection.executemany(
            "INSERT INTO message_body (id, body) VALUES (?, ?)", zip(numbers, bodies, strict=True)
        )

    def _take(self, database: Database, max_messages: int, lease_s: float) -> list[Delivery]:
        # Leases end with the machine's boot anyway: a power cut may take them back.
        with database.write(durable=False) as connection:
            now = self._clock()
            limit = min(max_messages, LIMITS.receive_batch)
            rows = connection.execute(_TAKE, (self._name, now, limit)).fetchall()
            lease = _new_lease()
            connection.executemany(
                "UPDATE message SET visible_at = ?, token = ?, deliveries = deliveries + 1 WHERE id = ?",
                [(now + lease_s, lease, number) for number, _, _ in rows],
            )
        return [
            Delivery(body=body, token=_Token(number, lease), deliveries=deliveries)
            for number, body, deliveries in rows
        ]

    def _next_at(self, database: Database) -> float | None:
        """When the next message can be received; None: there is none."""
        with database.read() as connection:
            row = connection.execute(
                "SELECT min(visible_at) FROM message WHERE lane = ?", (self._name,)
            ).fetchone()
        return row[0]  # type: ignore[no-any-return]

    def _version(self, database: Database) -> int:
        """Another number after each commit, of whatever thread or process; costs some microseconds."""
        with database.read() as connection:
            return connection.execute("PRAGMA data_version").fetchone()[0]  # type: ignore[no-any-return]

    def _end_leases_of_other_boots(self, boot_id: str) -> None:
        """Whoever held a lease or set a delay before the machine was started died with it, and the
        lease clock has begun anew."""
        query = "SELECT value FROM meta WHERE name = 'boot_id'"
        with self.database.read() as connection:
            if connection.execute(query).fetchone() == (boot_id,):
                return
        with self.database.write() as connection:
            if connection.execute(query).fetchone() == (boot_id,):
                return
            connection.execute("UPDATE message SET visible_at = 0, token = NULL")
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot_id', ?)", (boot_id,))


def _new_lease() -> int:
    return secrets.randbits(63)


if hasattr(time, "CLOCK_BOOTTIME"):

    def lease_clock() -> float:
        """Seconds since the machine was started: one clock for all processes, which nobody sets."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def current_boot_id() -> str:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()

else:
    lease_clock = time.time

    def current_boot_id() -> str:
        return "wall clock"

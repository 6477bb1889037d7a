"""One database, opened once a process and shared by the queues and the table in it.

Connections are made when they are needed, by who needs one, so that an error says what is wrong at once, and a
server that is back is used at once. (psycopg_pool connects in threads of its own: a wrong password looks like
a time-out there, and after an outage it may sleep on.) Few are kept: each is a process of the server.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, ClassVar

import psycopg
from psycopg.pq import TransactionStatus

from mtask.errors import BackendError, UnavailableError
from mtask_postgres import schema
from mtask_postgres.address import Address
from mtask_postgres.bell import Bell
from mtask_postgres.errors import connect_error, translated

__all__ = ["Connection", "Database", "connect"]

Connection = psycopg.Connection[tuple[Any, ...]]

MOST_IDLE = 3
IDLE_S = 60.0
"""A connection that wasn't used for so long is closed."""
LOCK_S = 10.0
"""What somebody keeps locked for longer is given up, and tried again by whoever wants to: a worker must be able to extend
its leases, and to end. A limit of the server's own holds instead."""


def connect(address: Address, *, first: bool = True) -> Connection:
    """Each statement takes effect by itself. `first`: see `connect_error`, which is raised."""
    try:
        connection = psycopg.connect(
            address.conninfo, autocommit=True, prepare_threshold=5 if address.prepare else None
        )
        if address.prepare:
            try:
                connection.execute(_limit(local=False))
            except BaseException:
                connection.close()
                raise
        return connection
    except psycopg.Error as error:
        raise connect_error(error, address, first=first) from error


class Database:
    """A schema of a database. Made by `Database.open`; each `open` needs its `close`."""

    _lock = threading.Lock()
    _shared: ClassVar[dict[tuple[int, Address], Database]] = {}
    """By process: a child must not use what was opened before the fork."""

    def __init__(self, address: Address) -> None:
        """Raises UnusableError, SchemaError, UnavailableError."""
        self.address = address
        self._pid = os.getpid()
        self._users = 1
        self._closed = False
        self._idle: list[tuple[float, Connection]] = []
        """With the time of its last use, the oldest first."""
        self._idle_lock = threading.Lock()
        self._local = threading.local()
        """`connection`: of the transaction that this thread is in."""
        self.bell = Bell(address.schema, lambda: connect(address, first=False))
        connection = connect(address)
        try:
            with translated(address):
                schema.require(connection, address)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    @classmethod
    def open(cls, address: Address) -> Database:
        """The same object again while it is open in this process. Raises what the constructor raises."""
        key = (os.getpid(), address)
        with cls._lock:
            database = cls._shared.get(key)
            if database is None:
                database = cls._shared[key] = cls(address)
            else:
                database._users += 1
            return database

    def share(self) -> Database:
        """The same for one more use, with a `close` of its own."""
        with Database._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes all connections that nobody uses just now, the others later."""
        if self._pid != os.getpid():
            return  # they are those of the process that opened them
        with Database._lock:
            self._users -= 1
            if self._users > 0 or self._closed:
                return
            self._closed = True
            if Database._shared.get((self._pid, self.address)) is self:
                del Database._shared[self._pid, self.address]
        self.bell.close()
        self._close_idle()

    def sql(self, text: str) -> bytes:
        """A statement in which `{s}` stands for the schema."""
        return _statement(text, self.address.schema)

    @property
    def writing(self) -> bool:
        """Is this thread within a transaction?"""
        return getattr(self._local, "connection", None) is not None

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """This thread's connection: that of its transaction, or else one on which each statement takes effect by itself."""
        if self.address.prepare or self.writing:
            with self._connection() as connection:
                yield connection
        else:  # a pooler would leave a setting that isn't local to whoever gets the connection next
            with self.transaction() as connection:
                yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All of it happens, or, upon an exception, nothing. Within another one of the same thread it is a part of that."""
        with self._connection() as connection:
            if self.writing:
                yield connection
                return
            connection.execute(b"BEGIN" if self.address.prepare else b"BEGIN; " + _limit(local=True))
            self._local.connection = connection
            try:
                yield connection
                if connection.info.transaction_status is not TransactionStatus.INTRANS:
                    # To commit it now would undo it without a word.
                    raise UnavailableError(
                        f"{self.address.shown}: the transaction was given up because of an earlier error"
                    )
                connection.execute("COMMIT")
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._local.connection = None

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """That of this thread's transaction, or another."""
        with translated(self.address):
            held: Connection | None = getattr(self._local, "connection", None)
            connection = held or self._take()
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction:
                # It was a primary: the next connection may lead to the one that is it now.
                connection.close()
                self._close_idle()
                raise
            finally:
                if held is None:
                    self._give_back(connection)

    def _close_idle(self) -> None:
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _take(self) -> Connection:
        if self._pid != os.getpid():
            raise BackendError(
                f"{self.address.shown} was opened before this process was forked; open it again"
            )
        while True:
            with self._idle_lock:
                if self._closed:
                    raise BackendError(f"{self.address.shown} is closed")
                found = self._idle.pop()[1] if self._idle else None
            if found is None:
                return connect(self.address, first=False)
            if _is_alive(found):
                return found
            found.close()

    def _give_back(self, connection: Connection) -> None:
        ready = connection.info.transaction_status is TransactionStatus.IDLE
        surplus: list[Connection] = []
        with self._idle_lock:
            if ready and not self._closed:
                self._idle.append((time.monotonic(), connection))
            else:
                surplus.append(connection)
            while self._idle and (
                len(self._idle) > MOST_IDLE or self._idle[0][0] < time.monotonic() - IDLE_S
            ):
                surplus.append(self._idle.pop(0)[1])
        for each in surplus:
            each.close()


def _is_alive(connection: Connection) -> bool:
    """Has the server said nothing since the last answer? What it says unasked is that it ends the connection."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _limit(*, local: bool) -> bytes:
    """The statement that sets how long a lock is waited for, for the connection or this transaction."""
    setting = f"set_config('lock_timeout', '{round(LOCK_S * 1000)}ms', {local})"
    return f"SELECT {setting} WHERE current_setting('lock_timeout') = '0'".encode()


@cache
def _statement(text: str, schema_name: str) -> bytes:
    return text.replace("{s}", f'"{schema_name}"').encode()

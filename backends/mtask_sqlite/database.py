"""One SQLite file, opened once a process and shared by the queues and the table in it.

Each thread has a connection of its own to read with. All share one to write with, since what one connection
writes the caches of the others have to forget. SQLite's locks keep all of them apart; locks of ours before
them (of the file `….lock` between processes) only see to it that nobody waits long for a turn.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, TypeVar

from mtask.errors import BackendError, StorageFullError, UnavailableError, UnusableError
from mtask_sqlite import schema

__all__ = ["Database"]

T = TypeVar("T")

BUSY_S = 60.0
"""How long a write waits for the writers of other processes, before it raises UnavailableError."""

_SETTINGS = (
    "PRAGMA cache_size = -16000",  # KiB, a connection
    "PRAGMA wal_autocheckpoint = 4000",  # pages of 4 KiB
    "PRAGMA journal_size_limit = 67108864",  # bytes
)
_HINTS = {
    sqlite3.SQLITE_BUSY: (
        UnavailableError,
        "other processes kept it locked; try again, or run fewer workers on it",
    ),
    sqlite3.SQLITE_LOCKED: (UnavailableError, "it is locked; try again"),
    sqlite3.SQLITE_FULL: (StorageFullError, "the disk is full; free some space, and work goes on"),
    sqlite3.SQLITE_IOERR: (UnavailableError, "the disk failed or a quota is used up; check `df` and `dmesg`"),
    sqlite3.SQLITE_NOMEM: (UnavailableError, "out of memory"),
    sqlite3.SQLITE_READONLY: (
        UnusableError,
        "it can't be written; check the permissions of the file and its directory",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        UnusableError,
        "it can't be opened; check the path and the permissions of its directory",
    ),
    sqlite3.SQLITE_PERM: (
        UnusableError,
        "access was denied; check the permissions of the file and its directory",
    ),
    sqlite3.SQLITE_NOTADB: (UnusableError, "it is not an SQLite database; name another file for mtask"),
    sqlite3.SQLITE_CORRUPT: (UnusableError, "the file is damaged; see https://sqlite.org/recovery.html"),
}


class _Session:
    """A connection, and what becomes of it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = threading.RLock()  # held during each use, so that close() never pulls it away
        self.writing = self.tells = False
        self._level = ""

    def synchronize(self, level: str) -> None:
        if level != self._level:
            self.connection.execute(f"PRAGMA synchronous = {level}")
            self._level = level

    def __del__(self) -> None:  # its thread has ended, or the database was closed
        with suppress(sqlite3.Error):
            self.connection.close()


class Database:
    """A file. Made by `Database.open`; each `open` needs its `close`."""

    _lock = threading.Lock()
    _shared: ClassVar[dict[tuple[int, str], Database]] = {}
    """By process (a child must not use what was opened before the fork) and real path."""

    def __init__(self, path: str, *, busy_s: float = BUSY_S, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self._busy_s = busy_s
        self._pid = os.getpid()
        self._users = 1
        self._closed = False
        self._turn_here = threading.Lock()
        self._turns = -1
        self._writing_session: _Session | None = None
        self._local = threading.local()
        """`session`: what each thread uses just now."""
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._sessions_lock = threading.Lock()
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._close_sessions()
            raise
        self._identity = _identity(path)

    def __del__(self) -> None:
        self._close_turns()

    @classmethod
    def open(cls, path: str, *, durable: bool = True) -> Database:
        """Open or create the file; the same object again while it is open in this process.

        Without `durable`, a power cut may undo, or damage, all that was written.
        Raises BackendError or UnavailableError, which say what to do about it.
        """
        path = os.path.realpath(path)
        key = (os.getpid(), path)
        with cls._lock:
            database = cls._shared.get(key)
            # A file that was deleted and made anew under the same path is another one.
            if database is None or database._identity != _identity(path):
                database = cls._shared[key] = cls(path, durable=durable)
            else:
                database._users += 1
                database._durable = database._durable or durable
            return database

    def share(self) -> Database:
        """The same for one more use, with a `close` of its own."""
        with Database._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes every thread's connection."""
        with Database._lock:
            self._users -= 1
            if self._users > 0 or self._closed:
                return
            self._closed = True
            if Database._shared.get((self._pid, self.path)) is self:
                del Database._shared[self._pid, self.path]
        self._close_sessions()

    @property
    def bell(self) -> str:
        """The file whose times change when messages were sent."""
        return f"{self.path}.lock"

    @property
    def writing(self) -> bool:
        """Is this thread within a write transaction?"""
        return self._session().writing

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give this thread's connection, for one statement that reads."""
        with self._translated():
            session = self._session()
            with session.lock:
                yield session.connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it happens, or, upon an exception, nothing.

        Within another one of the same thread it is a part of that. With `durable` false a power cut
        (not a crash or a kill of any process) may undo it.
        """
        with self._translated():
            session = self._session()
            with session.lock:
                if session.writing:
                    with self._nested(session.connection):
                        yield session.connection
                    return
            with self._turn(), self._writer(session) as session:
                try:
                    level = "FULL" if durable else "NORMAL"
                    session.synchronize(level if self._durable else "OFF")
                    session.connection.execute("BEGIN IMMEDIATE")
                    session.writing, session.tells = True, False
                    yield session.connection
                    self._require_transaction(session.connection)
                    session.connection.execute("COMMIT")
                    if session.tells:
                        self.ring()
                finally:
                    session.writing = False
                    with suppress(sqlite3.Error):
                        if session.connection.in_transaction:
                            session.connection.execute("ROLLBACK")

    @contextmanager
    def _writer(self, reader: _Session) -> Iterator[_Session]:
        """The session to write with, for this thread whose turn it is, in place of its own."""
        if self._writing_session is None:
            self._writing_session = self._new_session()
        session = self._writing_session
        with session.lock:
            self._local.session = session
            try:
                yield session
            finally:
                self._local.session = reader

    def tell(self) -> None:
        """Have all who wait for messages look, as soon as this thread's transaction is committed."""
        self._session().tells = True

    def ring(self) -> None:
        """Have them look now."""
        with suppress(OSError):
            os.utime(self._turns)

    @contextmanager
    def _nested(self, connection: sqlite3.Connection) -> Iterator[None]:
        self._require_transaction(connection)
        connection.execute("SAVEPOINT nested")
        try:
            yield
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO nested")
                connection.execute("RELEASE nested")
            raise
        self._require_transaction(connection)
        connection.execute("RELEASE nested")

    def _require_transaction(self, connection: sqlite3.Connection) -> None:
        # A full disk makes SQLite roll the whole transaction back. What followed in it would be
        # committed statement by statement.
        if not connection.in_transaction:
            raise UnavailableError(
                f"{self.path}: the transaction was rolled back because of an earlier error"
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the turn of this process to write.

        SQLite's lock would do, but it is waited for by sleeping up to 100 ms between tries, in which
        the file stands idle and the luckiest goes first again: of eight busy processes one got nothing
        at all. The kernel's lock on a file of its own wakes the next one at once, and dies with its
        holder. It isn't inherited by children that are forked, as flock's would be.
        """
        if not self._turn_here.acquire(timeout=self._busy_s):
            raise UnavailableError(f"{self.path}: another thread kept it locked for {self._busy_s:.0f} s")
        try:
            with suppress(OSError, ValueError):  # no such file, or a file system without such locks
                fcntl.lockf(self._turns, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError, ValueError):
                fcntl.lockf(self._turns, fcntl.LOCK_UN)
            self._turn_here.release()

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._local, "session", None)
        if self._closed:
            raise BackendError(f"{self.path} is closed")
        if self._pid != os.getpid():
            raise BackendError(f"{self.path} was opened before this process was forked; open it again")
        if session is None:
            session = self._local.session = self._new_session()
        return session

    def _new_session(self) -> _Session:
        session = _Session(self._connect())
        with self._sessions_lock:
            self._sessions.add(session)
        return session

    def _connect(self) -> sqlite3.Connection:
        # isolation_level None: the module begins no transactions of its own.
        connection = sqlite3.connect(
            self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False
        )
        try:
            for setting in _SETTINGS:
                connection.execute(setting)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        """Make the file one of ours, while other processes do the same."""
        directory = os.path.dirname(self.path)
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise UnusableError(f"{self.path}: its directory can't be made: {error.strerror}") from None
        connection = self._session().connection
        self._is_ready(connection)
        with suppress(OSError):
            self._turns = os.open(self.bell, os.O_RDWR | os.O_CREAT, 0o666)
        _persist(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone(), self._busy_s)
        if not self._is_ready(connection):
            with self.write() as connection:
                if not schema.check(connection, self.path):  # now nobody else can be at it
                    schema.create(connection)

    def _is_ready(self, connection: sqlite3.Connection) -> bool:
        def check() -> bool:
            connection.execute("BEGIN")
            try:
                return schema.check(connection, self.path)
            finally:
                connection.execute("ROLLBACK")

        return _persist(check, self._busy_s)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            kind, hint = _HINTS.get(_code(error), (BackendError, ""))
            raise kind(f"{self.path}: {hint} ({error})" if hint else f"{self.path}: {error}") from error

    def _close_sessions(self) -> None:
        with self._sessions_lock:
            sessions = list(self._sessions)
        for session in sessions:
            with session.lock:
                session.connection.close()
        self._close_turns()

    def _close_turns(self) -> None:
        turns, self._turns = self._turns, -1
        if turns >= 0:
            os.close(turns)


def _persist(action: Callable[[], T], busy_s: float) -> T:
    """Do it; while the file is locked, again and again."""
    deadline = time.monotonic() + busy_s
    pause = 0.0002
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 1.5, 0.01)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for errors of Python's module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino

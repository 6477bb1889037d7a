"""A table in an SQLite file."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import msgspec

from mtask.errors import BackendError, BagExistsError, BagNotFoundError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Result, State
from mtask.portion import Portion, line_of, prefix_of
from mtask.queue import Queue
from mtask.requirements import Lane
from mtask.stored_bag import listed
from mtask.table import Skipped
from mtask_sqlite import rows as rows_
from mtask_sqlite.database import Database
from mtask_sqlite.queue import SqliteQueue
from mtask_sqlite.rows import MAX_INDEX, batches, checked, encode
from mtask_sqlite.schema import INDEX_BITS

__all__ = ["SqliteTable"]

_DAY_S = 86400.0
_BAG = "SELECT body, state, generation, total, sent, digest FROM bag"
_KEEP = "INSERT INTO attempt (key, attempt, body) VALUES (?, ?, ?)"
_NAMED = "key IN (SELECT value FROM json_each(?)) ORDER BY key"

_decode_result = msgspec.json.Decoder(Result).decode
_decode_lane = msgspec.json.Decoder(Lane).decode
_decode_status = msgspec.json.Decoder(WorkerStatus).decode


class SqliteTable:
    """The table in a database."""

    def __init__(self, database: Database) -> None:
        """Takes over one use of `database`."""
        self.database = database
        self._closed = False
        self._bases: dict[str, int] = {}

    # -- bags ---------------------------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        row = (
            bag.name,
            bag.created_at,
            bag.state,
            bag.generation,
            bag.digest,
            bag.total,
            bag.sent,
            encode(bag),
        )
        with self._open().write() as connection:
            cursor = connection.execute(
                "INSERT INTO bag (name, created_at, state, generation, digest, total, sent, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                row,
            )
            if not cursor.rowcount:
                raise BagExistsError(f"there is a bag {bag.name!r} already")

    def bag(self, name: str) -> Bag:
        with self._open().read() as connection:
            row = connection.execute(f"{_BAG} WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise _not_found(name)
        return rows_.bag_of(row)

    def bags(self, *, skipped: Skipped | None = None) -> list[Bag]:
        with self._open().read() as connection:
            rows = connection.execute(f"{_BAG} ORDER BY created_at, id").fetchall()
        return list(listed(rows, rows_.bag_of, skipped))

    def update_bag(
        self,
        name: str,
        *,
        state: BagState | None = None,
        total: int | None = None,
        sent: int | None = None,
        digest: str | None = None,
        generation: int | None = None,
    ) -> None:
        with self._open().write() as connection:
            cursor = connection.execute(
                "UPDATE bag SET digest = coalesce(?, digest), state = CASE"
                " WHEN state = 'cancelled' AND ? = 'sealed' THEN state ELSE coalesce(?, state) END,"
                " total = max(total, coalesce(?, 0)), sent = max(sent, coalesce(?, 0)),"
                " generation = max(generation, coalesce(?, 0)) WHERE name = ?",
                (digest, state, state, total, sent, generation, name),
            )
            if not cursor.rowcount:
                raise _not_found(name)

    # -- blocks -------------------------------------------------------------------------------------

    def put_blocks(self, blocks: Sequence[Block]) -> None:
        bases = {name: self._base(name) for name in {block.bag for block in blocks}}
        rows = [(bases[b.bag] + checked(b.number), b.first, b.count, b.rows, b.lane, b.then) for b in blocks]
        with self._open().write() as connection:
            connection.executemany("INSERT OR IGNORE INTO block VALUES (?, ?, ?, ?, ?, ?)", rows)

    def block(self, bag: str, number: int) -> Block:
        base = self._find(bag)
        if base is None or not 0 <= number <= MAX_INDEX:
            raise KeyError((bag, number))
        with self._open().read() as connection:
            row = connection.execute(
                "SELECT first, count, rows, lane, next FROM block WHERE key = ?", (base + number,)
            ).fetchone()
        if row is None:
            raise KeyError((bag, number))
        first, count, rows, lane, then = row
        return Block(bag=bag, number=number, first=first, count=count, rows=rows, lane=lane, then=then)

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        base = self._find(bag)
        if base is None:
            return
        query = """
            SELECT rows, key, first, count, lane, next FROM block WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?
        """
        for rows, key, at, count, lane, then in self._pages(query, base + first, base + MAX_INDEX):
            yield Block(bag=bag, number=key - base, first=at, count=count, rows=rows, lane=lane, then=then)

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        if not results:
            return
        with self._open().write() as connection:
            for name, group in groupby(results, _bag_of_single):
                if name is not None:
                    of_bag, base = [each for each in group if isinstance(each, Result)], self._base(name)
                    rows_.put(connection, base, rows_.rows_of(of_bag, base))
                    continue
                for each in group:
                    assert isinstance(each, Portion)
                    rows_.put_portion(connection, self._base(each.bag), each)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        base = self._find(bag)
        if base is None:
            return set()
        found: set[int] = set()
        for keys in batches(indexes, base):
            with self._open().read() as connection:
                found.update(key - base for key, _ in rows_.present(connection, keys))
        return found

    def results(
        self,
        bag: str,
        *,
        states: Collection[State] | None = None,
        after: int | None = None,
        indexes: Collection[int] | None = None,
    ) -> Iterator[Result]:
        base = self._find(bag)
        if base is None:
            return
        source = rows_.source_of(states)
        if indexes is None:
            query = f"SELECT body, key FROM {source} AND key BETWEEN ? AND ? ORDER BY key LIMIT ?"
            first = 0 if after is None else max(after + 1, 0)
            rows = self._pages(query, base + first, base + MAX_INDEX)
        else:
            rows = self._named(f"SELECT body FROM {source} AND {_NAMED}", batches(indexes, base, after=after))
        prefix = prefix_of(bag)
        for row in rows:
            yield _decode_result(prefix + row[0])

    def counts(self, bag: str) -> Counts:
        with self._open().read() as connection:
            row = connection.execute(
                "SELECT total, done, failed, expired FROM bag WHERE name = ?", (bag,)
            ).fetchone()
        if row is None:
            raise _not_found(bag)
        return Counts(total=row[0], done=row[1], failed=row[2], expired=row[3])

    def retract(self, bag: str, indexes: Collection[int]) -> set[int]:
        base = self._find(bag)
        taken: set[int] = set()
        if base is None:
            return taken
        prefix = prefix_of(bag)
        with self._open().write() as connection:
            for keys in batches(indexes, base):
                query = f"SELECT key, state, body FROM result WHERE state > 0 AND {_NAMED}"
                rows = connection.execute(query, (encode(keys),)).fetchall()
                attempts = [(key, _decode_result(prefix + body).attempt, body) for key, _, body in rows]
                connection.executemany(_KEEP, attempts)
                connection.executemany("DELETE FROM result WHERE key = ?", [(key,) for key, _, _ in rows])
                delta = [0, 0, 0]
                for _, state, _ in rows:
                    delta[state] -= 1
                rows_.count(connection, base, delta)
                taken.update(key - base for key, _, _ in rows)
        return taken

    def keep_attempts(self, results: Sequence[Result]) -> None:
        bases = {name: self._base(name) for name in {result.bag for result in results}}
        rows = [(bases[r.bag] + checked(r.index), r.attempt, line_of(r)) for r in results]
        with self._open().write() as connection:
            connection.executemany(_KEEP, rows)

    def attempts(self, bag: str, *, after: int | None = None) -> Iterator[Result]:
        base = self._find(bag)
        if base is None:
            return
        prefix = prefix_of(bag)
        place = (base + (-1 if after is None else after), sys.maxsize, sys.maxsize)
        query = """
            SELECT body, key, attempt, id FROM attempt
            WHERE (key, attempt, id) > (?, ?, ?) AND key <= ? ORDER BY key, attempt, id LIMIT ?
        """
        limit = rows_.NEXT_FIRST
        while True:
            with self._open().read() as connection:
                rows = connection.execute(query, (*place, base + MAX_INDEX, limit)).fetchall()
            for row in rows:
                yield _decode_result(prefix + row[0])
            if len(rows) < limit:
                return
            place, limit = rows[-1][1:], rows_.next_limit(rows)

    # -- lanes, and what workers agree on -----------------------------------------------------------

    def put_lanes(self, lanes: Sequence[Lane]) -> None:
        now = time.time()
        with self._open().write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO lane VALUES (?, ?, ?)",
                [(lane.name, now, encode(lane)) for lane in lanes],
            )

    def lanes(self) -> list[tuple[Lane, float]]:
        now = time.time()
        with self._open().read() as connection:
            rows = connection.execute("SELECT body, used_at FROM lane").fetchall()
        return [(_decode_lane(body), now - used_at) for body, used_at in rows]

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        with self._open().write() as connection:
            query = "DELETE FROM lane WHERE name = ? AND used_at <= ?"
            return connection.execute(query, (name, time.time() - unused_s)).rowcount == 1

    def shared(self, key: str) -> tuple[bytes, int]:
        with self._open().read() as connection:
            row = connection.execute("SELECT value, version FROM shared WHERE key = ?", (key,)).fetchone()
        return row or (b"", 0)

    def swap(self, key: str, value: bytes, version: int) -> bool:
        with self._open().write() as connection:
            if not version:
                query = "INSERT OR IGNORE INTO shared VALUES (?, 1, ?)"
                return connection.execute(query, (key, value)).rowcount == 1
            query = "UPDATE shared SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
            return connection.execute(query, (value, key, version)).rowcount == 1

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        now = time.time()
        stamped = msgspec.structs.replace(status, beat_at=now)
        with self._open().write(durable=False) as connection:  # the next one comes in seconds
            connection.execute(
                "INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?)",
                (status.worker, status.started_at, now, encode(stamped)),
            )
            connection.execute("DELETE FROM worker WHERE beat_at < ?", (now - _DAY_S,))

    def workers(self) -> list[WorkerStatus]:
        query = "SELECT body FROM worker WHERE beat_at >= ? ORDER BY started_at, worker"
        with self._open().read() as connection:
            rows = connection.execute(query, (time.time() - _DAY_S,)).fetchall()
        return [_decode_status(row[0]) for row in rows]

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        rows = [(m.body, m.reason, m.worker, m.at) for m in messages]
        with self._open().write() as connection:
            connection.executemany("INSERT INTO dead (body, reason, worker, at) VALUES (?, ?, ?, ?)", rows)

    def dead(self) -> Iterator[DeadMessage]:
        query = "SELECT body, id, reason, worker, at FROM dead WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        for body, _, reason, worker, at in self._pages(query, 0, sys.maxsize):
            yield DeadMessage(body=body, reason=reason, worker=worker, at=at)

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:
        queue = getattr(queue, "main", queue)
        if isinstance(queue, SqliteQueue) and queue.database is self.database:
            return _within(self._open())
        return nullcontext()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.database.close()

    # -- inside -------------------------------------------------------------------------------------

    def _open(self) -> Database:
        if self._closed:
            raise BackendError(f"the table in {self.database.path} is closed")
        return self.database

    def _find(self, bag: str) -> int | None:
        """The key of the bag's task 0; None: there is no such bag."""
        base = self._bases.get(bag)
        if base is None:
            with self._open().read() as connection:
                row = connection.execute("SELECT id FROM bag WHERE name = ?", (bag,)).fetchone()
            if row is None:
                return None
            base = row[0] << INDEX_BITS
            if not self.database.writing:  # else it may be rolled back
                self._bases[bag] = base
        return base

    def _base(self, bag: str) -> int:
        """As `_find`; raises BagNotFoundError."""
        base = self._find(bag)
        if base is None:
            raise _not_found(bag)
        return base

    def _pages(self, query: str, first: int, last: int) -> Iterator[tuple[Any, ...]]:
        """The rows with keys from `first` to `last`, each read in a short transaction of its own.

        The query's first two columns are a body and the key; its last parameter is a limit.
        """
        limit = rows_.NEXT_FIRST
        while True:
            with self._open().read() as connection:
                rows = connection.execute(query, (first, last, limit)).fetchall()
            yield from rows
            if len(rows) < limit:
                return
            first, limit = rows[-1][1] + 1, rows_.next_limit(rows)

    def _named(self, query: str, batches: Iterator[list[int]]) -> Iterator[tuple[Any, ...]]:
        for keys in batches:
            with self._open().read() as connection:
                rows = connection.execute(query, (encode(keys),)).fetchall()
            yield from rows


@contextmanager
def _within(database: Database) -> Iterator[None]:
    with database.write():
        yield


def _bag_of_single(each: Result | Portion) -> str | None:
    return None if isinstance(each, Portion) else each.bag


def _not_found(bag: str) -> BagNotFoundError:
    return BagNotFoundError(f"there is no bag {bag!r}")

"""A table in a PostgreSQL database."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from mtask_postgres import rows as rows_
from mtask_postgres import statements as sql
from mtask_postgres.database import Database
from mtask_postgres.queue import PostgresQueue
from mtask_postgres.rows import MAX_INDEX, batches, checked, encode
from mtask_postgres.schema import INDEX_BITS

__all__ = ["PostgresTable"]

_DAY_S = 86400.0
_CLEAN_S = 3600.0
"""Between two times that this process takes out heartbeats of more than a day ago."""
_SHARDS = 32

_decode_result = msgspec.json.Decoder(Result).decode
_decode_lane = msgspec.json.Decoder(Lane).decode
_decode_status = msgspec.json.Decoder(WorkerStatus).decode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode


class PostgresTable:
    """The table in a schema."""

    def __init__(self, database: Database) -> None:
        """Takes over one use of `database`."""
        self.database = database
        self._closed = False
        self._bases: dict[str, int] = {}
        self._shard = random.randrange(_SHARDS)
        """Of the counts: another one for each process, most often."""
        self._cleans_s = 0.0

    # -- bags ---------------------------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        row = (
            *(bag.name, bag.created_at, str(bag.state), bag.generation),
            *(bag.digest, bag.total, bag.sent, encode(bag)),
        )
        if not self._execute(sql.CREATE_BAG, row):
            raise BagExistsError(f"there is a bag {bag.name!r} already")

    def bag(self, name: str) -> Bag:
        row = self._row(sql.BAG, (name,))
        if row is None:
            raise _not_found(name)
        return rows_.bag_of(row)

    def bags(self, *, skipped: Skipped | None = None) -> list[Bag]:
        return list(listed(self._rows(sql.BAGS), rows_.bag_of, skipped))

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
        new = None if state is None else str(state)
        if not self._execute(sql.UPDATE_BAG, (digest, new, new, total, sent, generation, name)):
            raise _not_found(name)

    # -- blocks -------------------------------------------------------------------------------------

    def put_blocks(self, blocks: Sequence[Block]) -> None:
        bases = {name: self._base(name) for name in {block.bag for block in blocks}}
        rows = [(bases[b.bag] + checked(b.number), b.first, b.count, b.then, b.lane, b.rows) for b in blocks]
        with self._open().transaction() as connection:
            for portion in rows_.portions(sorted(rows)):
                columns = [list(column) for column in zip(*portion, strict=True)]
                connection.execute(self.database.sql(sql.PUT_BLOCKS), columns)

    def block(self, bag: str, number: int) -> Block:
        base = self._find(bag)
        row = None
        if base is not None and 0 <= number <= MAX_INDEX:
            row = self._row(sql.BLOCK, (base + number,))
        if row is None:
            raise KeyError((bag, number))
        rows, first, count, lane, then = row
        return Block(bag=bag, number=number, first=first, count=count, rows=rows, lane=lane, then=then)

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        base = self._find(bag)
        if base is None:
            return
        for rows, key, at, count, lane, then in self._pages(sql.BLOCKS, base + first, base + MAX_INDEX):
            yield Block(bag=bag, number=key - base, first=at, count=count, rows=rows, lane=lane, then=then)

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        rows: dict[int, rows_.Row] = {}
        for each in results:
            rows_.add(rows, each, self._base(each.bag))
        if rows:
            with self._open().transaction() as connection:
                rows_.put(connection, self.database, rows, self._shard)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        base = self._find(bag)
        if base is None:
            return set()
        return {key - base for keys in batches(indexes, base) for (key,) in self._rows(sql.RECORDED, (keys,))}

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
        query = f"SELECT body, key FROM {{s}}.result WHERE {rows_.condition_of(states)} AND "
        rows: Iterator[tuple[Any, ...]]
        if indexes is None:
            first = 0 if after is None else max(after + 1, 0)
            query += "key BETWEEN %s AND %s ORDER BY key LIMIT %s"
            rows = self._pages(query, base + first, base + MAX_INDEX)
        else:
            query += "key = ANY(%b::bigint[]) ORDER BY key"
            rows = (row for keys in batches(indexes, base, after=after) for row in self._rows(query, (keys,)))
        prefix = prefix_of(bag)
        for body, _ in rows:
            yield _decode_result(prefix + body)

    def counts(self, bag: str) -> Counts:
        row = self._row(sql.COUNTS, (bag,))
        if row is None:
            raise _not_found(bag)
        total, done, failed, expired = row
        return Counts(total=total, done=done, failed=failed, expired=expired)

    def retract(self, bag: str, indexes: Collection[int]) -> set[int]:
        base = self._find(bag)
        taken: set[int] = set()
        if base is None:
            return taken
        prefix = prefix_of(bag)
        changes: Counter[tuple[int, int]] = Counter()
        with self._open().transaction() as connection:
            for keys in batches(indexes, base):
                rows = self._rows(sql.RETRACT, (keys,))
                self._keep([(key, _decode_result(prefix + body).attempt, body) for key, _, body in rows])
                for key, state, _ in rows:
                    changes[base >> INDEX_BITS, state] -= 1
                    taken.add(key - base)
            rows_.count(connection, self.database, changes, self._shard)
        return taken

    def keep_attempts(self, results: Sequence[Result]) -> None:
        bases = {name: self._base(name) for name in {result.bag for result in results}}
        rows = [(bases[r.bag] + checked(r.index), r.attempt, line_of(r)) for r in results]
        with self._open().transaction():
            self._keep(rows)

    def _keep(self, rows: list[tuple[int, int, bytes]]) -> None:
        for portion in rows_.portions(rows):
            self._execute(sql.KEEP, [list(column) for column in zip(*portion, strict=True)])

    def attempts(self, bag: str, *, after: int | None = None) -> Iterator[Result]:
        base = self._find(bag)
        if base is None:
            return
        prefix = prefix_of(bag)
        place: tuple[int, ...] = (base + (-1 if after is None else after), sys.maxsize, sys.maxsize)
        limit = rows_.NEXT_FIRST
        while True:
            rows = self._rows(sql.ATTEMPTS, (*place, base + MAX_INDEX, limit))
            for row in rows:
                yield _decode_result(prefix + row[0])
            if len(rows) < limit:
                return
            place, limit = rows[-1][1:], rows_.next_limit(rows)

    # -- lanes, and what workers agree on -----------------------------------------------------------

    def put_lanes(self, lanes: Sequence[Lane]) -> None:
        rows = sorted({lane.name: encode(lane) for lane in lanes}.items())  # all in the same order
        if rows:
            names, bodies = zip(*rows, strict=True)
            self._execute(sql.PUT_LANES, (list(names), list(bodies)))

    def lanes(self) -> list[tuple[Lane, float]]:
        return [(_decode_lane(body), age_s) for body, age_s in self._rows(sql.LANES)]

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        return self._execute(sql.REMOVE_LANE, (name, unused_s)) == 1

    def shared(self, key: str) -> tuple[bytes, int]:
        row = self._row(sql.SHARED, (key,))
        return (row[0], row[1]) if row else (b"", 0)

    def swap(self, key: str, value: bytes, version: int) -> bool:
        if not version:
            return self._execute(sql.SWAP_NEW, (key, value)) == 1
        return self._execute(sql.SWAP, (value, key, version)) == 1

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        self._execute(sql.BEAT, (status.worker, status.started_at, encode(status)))
        if time.monotonic() > self._cleans_s:
            self._cleans_s = time.monotonic() + _CLEAN_S
            self._execute(sql.FORGET_WORKERS, (_DAY_S,))

    def workers(self) -> list[WorkerStatus]:
        return [
            msgspec.structs.replace(_decode_status(body), beat_at=beat_at)
            for body, beat_at in self._rows(sql.WORKERS, (_DAY_S,))
        ]

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        if messages:
            about = [encode(msgspec.structs.replace(message, body=b"")) for message in messages]
            self._execute(sql.SET_ASIDE, (about, [message.body for message in messages]))

    def dead(self) -> Iterator[DeadMessage]:
        for body, _, about in self._pages(sql.DEAD, 0, sys.maxsize):
            yield msgspec.structs.replace(_decode_dead(about), body=body)

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:
        queue = getattr(queue, "main", queue)
        if isinstance(queue, PostgresQueue) and queue.database is self.database:
            return _within(self._open())
        return nullcontext()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.database.close()

    # -- inside -------------------------------------------------------------------------------------

    def _open(self) -> Database:
        if self._closed:
            raise BackendError(f"the table at {self.database.address.shown} is closed")
        return self.database

    def _execute(self, query: str, arguments: Sequence[Any]) -> int:
        """How many rows it changed."""
        with self._open().use() as connection:
            return connection.execute(self.database.sql(query), arguments).rowcount

    def _rows(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._open().use() as connection:
            return connection.execute(self.database.sql(query), arguments, binary=True).fetchall()

    def _row(self, query: str, arguments: Sequence[Any]) -> tuple[Any, ...] | None:
        return next(iter(self._rows(query, arguments)), None)

    def _find(self, bag: str) -> int | None:
        """The key of the bag's task 0; None: there is no such bag."""
        base = self._bases.get(bag)
        if base is None:
            row = self._row(sql.BAG_ID, (bag,))
            if row is None:
                return None
            base = int(row[0]) << INDEX_BITS
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
        """The rows with keys from `first` to `last`, each page read in a statement of its own: a transaction that lasted
        as long as its reader takes would keep the server from cleaning up the queue.

        The query's first two columns are a body and the key; its last parameter is a limit.
        """
        limit = rows_.NEXT_FIRST
        while True:
            rows = self._rows(query, (first, last, limit))
            yield from rows
            if len(rows) < limit:
                return
            first, limit = rows[-1][1] + 1, rows_.next_limit(rows)


@contextmanager
def _within(database: Database) -> Iterator[None]:
    with database.transaction():
        yield


def _not_found(bag: str) -> BagNotFoundError:
    return BagNotFoundError(f"there is no bag {bag!r}")

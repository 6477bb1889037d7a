"""Between the model and the rows of the file: keys, bodies, and the rule of replacement."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import msgspec

from mtask.errors import BackendError
from mtask.model import Bag, BagState, Result, State
from mtask.portion import Portion, prefix_of
from mtask.stored_bag import name_in, unreadable
from mtask_sqlite.schema import INDEX_BITS

__all__ = [
    "BATCH",
    "MAX_INDEX",
    "NEXT_FIRST",
    "STATES",
    "bag_of",
    "batches",
    "checked",
    "count",
    "encode",
    "next_limit",
    "present",
    "put",
    "put_portion",
    "rows_of",
    "source_of",
]

STATES = (State.DONE, State.FAILED, State.EXPIRED)
"""A state's number is its place here."""

MAX_INDEX = (1 << INDEX_BITS) - 1
BATCH = 500
"""Rows asked for by one statement that names them."""
NEXT_FIRST = 100
"""Rows of the first page, when nothing is known of their size."""

_DONE = 0
_NUMBERS = {state: number for number, state in enumerate(STATES)}
_PAGE_ROWS = 2000
_PAGE_BYTES = 4 * 1024 * 1024

_PUT = """
    INSERT INTO result (key, state, body) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET state = excluded.state, body = excluded.body
"""
_ANY = "SELECT 1 FROM result WHERE key BETWEEN ? AND ? LIMIT 1"
_AT_A_TIME = 50
_COUNT = "UPDATE bag SET done = done + ?, failed = failed + ?, expired = expired + ? WHERE id = ?"

encode = msgspec.json.Encoder().encode
_decode_bag = msgspec.json.Decoder(Bag).decode

Row = tuple[int, int, bytes]
"""Key, state's number, body."""


def checked(index: int) -> int:
    """The index; BackendError for one that would run into another bag's keys."""
    if not 0 <= index <= MAX_INDEX:
        raise BackendError(f"the index {index} is not between 0 and {MAX_INDEX}")
    return index


def rows_of(results: Sequence[Result], base: int) -> list[Row]:
    """One row a task, in order of key, from results of one bag whose keys begin at `base`."""
    cut = len(prefix_of(results[0].bag))
    rows = {r.index: (base + r.index, _NUMBERS[r.state], encode(r)[cut:]) for r in results}
    if len(rows) < len(results):  # the same task twice: what holds in the table holds here
        rows.clear()
        for r in results:
            if r.index not in rows or rows[r.index][1] != _DONE:
                rows[r.index] = (base + r.index, _NUMBERS[r.state], encode(r)[cut:])
    checked(min(rows))
    checked(max(rows))
    return sorted(rows.values())


def put(connection: sqlite3.Connection, base: int, rows: list[Row]) -> None:
    """Store rows that are in order, but replace none that is done; keep the bag's counts true."""
    delta = [0, 0, 0]
    before = dict(present(connection, [row[0] for row in rows]))
    if before:
        rows = [row for row in rows if before.get(row[0]) != _DONE]
        for row in rows:
            if row[0] in before:
                delta[before[row[0]]] -= 1
    for row in rows:
        delta[row[1]] += 1
    connection.executemany(_PUT, rows)
    count(connection, base, delta)


def put_portion(connection: sqlite3.Connection, base: int, portion: Portion) -> None:
    """The same for tasks that are all done."""
    first = base + checked(portion.first)
    stop = base + checked(portion.first + portion.count - 1) + 1
    lines = portion.split()
    if connection.execute(_ANY, (first, stop - 1)).fetchone():
        return put(connection, base, [(key, _DONE, line) for key, line in enumerate(lines, first)])
    values = list(chain.from_iterable(enumerate(lines, first)))
    left = len(lines) % _AT_A_TIME
    if left:
        connection.execute(_put_done(left), values[: 2 * left])
    whole = _put_done(_AT_A_TIME)
    for at in range(2 * left, len(values), 2 * _AT_A_TIME):
        connection.execute(whole, values[at : at + 2 * _AT_A_TIME])
    count(connection, base, [len(lines), 0, 0])


@cache
def _put_done(rows: int) -> str:
    """One statement for many rows takes half of the time of one for each."""
    return f"INSERT INTO result (key, state, body) VALUES {', '.join([f'(?, {_DONE}, ?)'] * rows)}"


def count(connection: sqlite3.Connection, base: int, delta: list[int]) -> None:
    """Add to the numbers of results of each state of the bag whose keys begin at `base`."""
    if any(delta):
        connection.execute(_COUNT, (*delta, base >> INDEX_BITS))


def present(connection: sqlite3.Connection, keys: Sequence[int]) -> list[tuple[int, int]]:
    """The key and the state's number of those of the sorted `keys` that have a row."""
    if keys[-1] - keys[0] == len(keys) - 1:  # a run, as almost always: one look instead of many
        query, arguments = "SELECT key, state FROM result WHERE key BETWEEN ? AND ?", (keys[0], keys[-1])
        return connection.execute(query, arguments).fetchall()
    query = "SELECT key, state FROM result WHERE key IN (SELECT value FROM json_each(?))"
    return connection.execute(query, (encode(keys),)).fetchall()


def batches(indexes: Collection[int], base: int, *, after: int | None = None) -> Iterator[list[int]]:
    """The keys of these tasks, in order, in portions; without those that can't be in the table."""
    low = 0 if after is None else max(after + 1, 0)
    keys = sorted({base + index for index in indexes if low <= index <= MAX_INDEX})
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def source_of(states: Collection[State] | None) -> str:
    """What stands in a query behind FROM, up to and with WHERE and a condition, to get these states."""
    numbers = {_NUMBERS[state] for state in (STATES if states is None else states)}
    if len(numbers) == len(STATES):
        return "result WHERE true"
    if not numbers:
        return "result WHERE false"
    chosen = f"state IN ({', '.join(map(str, sorted(numbers)))})"
    if _DONE in numbers:
        return f"result WHERE {chosen}"
    return f"result INDEXED BY result_not_done WHERE state > 0 AND {chosen}"


def next_limit(rows: Sequence[tuple[Any, ...]]) -> int:
    """How many rows the next page should have, after `rows`, whose first column is their body."""
    average = sum(len(row[0]) for row in rows) // len(rows) + 1
    return max(1, min(_PAGE_ROWS, _PAGE_BYTES // average))


def bag_of(row: tuple[bytes, str, int, int, int, str]) -> Bag:
    """The bag as it is now, from its body as created and what has changed since. Raises SchemaError."""
    body, state, generation, total, sent, digest = row
    try:
        bag, now = _decode_bag(body), BagState(state)
    except (msgspec.DecodeError, ValueError) as error:
        raise unreadable(name_in(body), error) from None
    return msgspec.structs.replace(
        bag, state=now, generation=generation, total=total, sent=sent, digest=digest
    )

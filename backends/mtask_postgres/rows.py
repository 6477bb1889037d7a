"""Between the model and the rows of the database: keys, bodies, and the rule of replacement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from mtask.errors import BackendError
from mtask.model import Bag, BagState, Result, State
from mtask.portion import Portion, line_of
from mtask.stored_bag import name_in, unreadable
from mtask_postgres.database import Connection, Database
from mtask_postgres.schema import INDEX_BITS

__all__ = [
    "MAX_INDEX",
    "NEXT_FIRST",
    "Row",
    "add",
    "bag_of",
    "batches",
    "checked",
    "condition_of",
    "count",
    "encode",
    "next_limit",
    "portions",
    "put",
]

MAX_INDEX = (1 << INDEX_BITS) - 1
NEXT_FIRST = 100
"""Rows of the first page, when nothing is known of their size."""

_STATES = (State.DONE, State.FAILED, State.EXPIRED)
"""A state's number is its place here."""
_DONE = 0
_NUMBERS = {state: number for number, state in enumerate(_STATES)}
_NAMED = 1000
"""Rows asked for by one statement that names them."""
_PUT_ROWS, _PUT_BYTES = 5000, 32 * 1024 * 1024
"""Of one statement that writes."""
_PAGE_ROWS, _PAGE_BYTES = 2000, 4 * 1024 * 1024

# One statement sees to promise 1, whoever else writes the same rows; they are locked in the order of their keys, by
# everybody. It says for each state, before and after, how many there are.
#
# Arrays, not COPY: COPY can neither replace nor leave out, so it would need a temporary table, whose making or
# emptying costs each transaction more than its rows, fills the catalogue, and doesn't pass every pooler.
_PUT = """
    WITH written AS (
        INSERT INTO {s}.result AS old (key, state, body)
        SELECT key, state, body FROM unnest(%b::bigint[], %b::smallint[], %b::bytea[]) AS new(key, state, body)
        ORDER BY key
        ON CONFLICT (key) DO UPDATE SET state = excluded.state, before = old.state, body = excluded.body
        WHERE old.state > 0
        RETURNING key, state, before
    )
    SELECT key >> %s, state, before, count(*) FROM written GROUP BY 1, 2, 3
"""
_COUNT = """
    INSERT INTO {s}.tally AS old (bag, shard, done, failed, expired)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (bag, shard) DO UPDATE SET
        done = old.done + excluded.done, failed = old.failed + excluded.failed, expired = old.expired + excluded.expired
"""

encode = msgspec.json.Encoder().encode
_decode_bag = msgspec.json.Decoder(Bag).decode

Row = tuple[int, bytes]
"""State's number, body."""


def checked(index: int) -> int:
    """The index; BackendError for one that would run into another bag's keys."""
    if not 0 <= index <= MAX_INDEX:
        raise BackendError(f"the index {index} is not between 0 and {MAX_INDEX}")
    return index


def add(rows: dict[int, Row], each: Result | Portion, base: int) -> None:
    """Add to the rows to be written, by key, of a bag whose keys begin at `base`; what holds in the table holds here."""
    if isinstance(each, Portion):
        first, _ = checked(each.first), checked(each.first + each.count - 1)
        new = {key: (_DONE, line) for key, line in enumerate(each.split(), base + first)}
        if rows.keys().isdisjoint(new):
            rows.update(new)
            return
    else:
        new = {base + checked(each.index): (_NUMBERS[each.state], line_of(each))}
    for key, row in new.items():
        if key not in rows or rows[key][0] != _DONE:
            rows[key] = row


def put(connection: Connection, database: Database, rows: dict[int, Row], shard: int) -> None:
    """Store rows, but replace none that is done; keep the counts true. To be called within a transaction."""
    changes: Counter[tuple[int, int]] = Counter()
    """By bag and state."""
    for portion in portions(sorted((key, *row) for key, row in rows.items())):
        keys, states, bodies = (list(column) for column in zip(*portion, strict=True))
        statement = database.sql(_PUT)
        for bag, state, before, number in connection.execute(
            statement, (keys, states, bodies, INDEX_BITS), prepare=True
        ):
            changes[bag, state] += number
            if before is not None:
                changes[bag, before] -= number
    count(connection, database, changes, shard)


def count(connection: Connection, database: Database, changes: Counter[tuple[int, int]], shard: int) -> None:
    """Add to the numbers of results, by bag and state. After all rows, and in order, so that nobody who waits
    for one of these has what another one waits for."""
    for bag in sorted({bag for bag, _ in changes}):
        delta = [changes[bag, state] for state in range(len(_STATES))]
        if any(delta):
            connection.execute(database.sql(_COUNT), (bag, shard, *delta), prepare=True)


def portions(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """For one statement each; the last column is a body."""
    portion: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        if portion and (len(portion) == _PUT_ROWS or size + len(row[-1]) > _PUT_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += len(row[-1])
    if portion:
        yield portion


def batches(indexes: Collection[int], base: int, *, after: int | None = None) -> Iterator[list[int]]:
    """The keys of these tasks, in order, in portions; without those that can't be in the table."""
    low = 0 if after is None else max(after + 1, 0)
    keys = iter(sorted({base + index for index in indexes if low <= index <= MAX_INDEX}))
    while batch := list(islice(keys, _NAMED)):
        yield batch


def condition_of(states: Collection[State] | None) -> str:
    """What stands in a query behind WHERE to get these states; the planner sees where the partial index will do."""
    numbers = {_NUMBERS[state] for state in (_STATES if states is None else states)}
    if len(numbers) == len(_STATES):
        return "true"
    if not numbers:
        return "false"
    return f"state IN ({', '.join(map(str, sorted(numbers)))})"


def next_limit(rows: Sequence[tuple[Any, ...]]) -> int:
    """How many rows the next page should have, after `rows`, whose first column is their body."""
    average = sum(len(row[0]) for row in rows) // len(rows) + 1
    return max(1, min(_PAGE_ROWS, _PAGE_BYTES // average))


def bag_of(row: tuple[Any, ...]) -> Bag:
    """The bag as it is now, from its body as created and what has changed since. Raises SchemaError."""
    body, state, generation, total, sent, digest = row
    try:
        bag, now = _decode_bag(body), BagState(state)
    except (msgspec.DecodeError, ValueError) as error:
        raise unreadable(name_in(body), error) from None
    return msgspec.structs.replace(
        bag, state=now, generation=generation, total=total, sent=sent, digest=digest
    )

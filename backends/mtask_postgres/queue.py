"""A queue in a PostgreSQL database: one row a message, leased by a time and a token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from mtask.errors import BackendError, SendError
from mtask.model import Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits, encoded
from mtask_postgres.database import Database

__all__ = ["CLOCK", "PostgresQueue"]

LIMITS = QueueLimits(message_bytes=16 * 1024 * 1024, send_batch=1000, receive_batch=1000, hears_lanes=True)

CLOCK = "extract(epoch FROM clock_timestamp())::float8"
"""The server's, in seconds since the epoch; not that of the transaction's begin, which may be long ago."""

BATCH_BYTES = 32 * 1024 * 1024
"""Of the messages of one statement."""
_LOOK_S = 1.0
"""Who waits looks so often, even if nothing tells that something was sent: a notice may be lost, or a pooler in between
passes none on."""
_LOCKED_S = (0.01, 0.2)
"""Shortest and longest pause before a look at messages that are ready, but locked by a transaction of somebody else."""

# An array, and no join: so the planner always takes the index of the ids, however wrong it is about their number.
_TAKE = """
    UPDATE {s}.message SET visible_at = {now} + %s, lease = %s, deliveries = deliveries + 1
    WHERE id = ANY(ARRAY(
        SELECT id FROM {s}.message WHERE lane = %s AND visible_at <= (SELECT {now})
        ORDER BY visible_at, id LIMIT %s FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, deliveries, body
"""
_NEXT = "SELECT min(visible_at) - {now} FROM {s}.message WHERE lane = %s"
_SEND = """
    WITH sent AS (
        INSERT INTO {s}.message (lane, visible_at, body)
        SELECT %s, {now} + %s, body FROM unnest(%b::bytea[]) WITH ORDINALITY AS new(body, place) ORDER BY place
        RETURNING 1
    )
    SELECT pg_notify(%s, %s) FROM sent LIMIT 1
"""
_EXTEND = """
    UPDATE {s}.message AS m SET visible_at = {now} + %s, lease = %s
    FROM unnest(%b::bigint[], %b::bigint[]) AS held(id, lease)
    WHERE m.id = held.id AND m.lease = held.lease
    RETURNING held.id, held.lease
"""
_DELETE = """
    DELETE FROM {s}.message AS m USING unnest(%b::bigint[], %b::bigint[]) AS held(id, lease)
    WHERE m.id = held.id AND m.lease = held.lease
"""
_RELEASE = """
    WITH released AS (
        UPDATE {s}.message AS m SET visible_at = {now} + %s, lease = NULL, deliveries = deliveries - 1
        FROM unnest(%b::bigint[], %b::bigint[]) AS held(id, lease)
        WHERE m.id = held.id AND m.lease = held.lease
        RETURNING 1
    )
    SELECT pg_notify(%s, %s) FROM released LIMIT 1
"""
_DEPTH = """
    SELECT count(*) FILTER (WHERE visible_at <= at.now),
           count(*) FILTER (WHERE visible_at > at.now AND lease IS NOT NULL),
           count(*) FILTER (WHERE visible_at > at.now AND lease IS NULL)
    FROM {s}.message, (SELECT {now} AS now OFFSET 0) AS at WHERE lane = %s
"""
_ANY = "SELECT EXISTS (SELECT FROM {s}.message WHERE lane = %s)"


class _Token(NamedTuple):
    id: int
    lease: int
    """A random number, the same for all messages taken at once, another for each time."""


class PostgresQueue:
    """One lane of the queue in a schema.

    A lease lasts until its time has come *and* somebody else has received the message: a late
    `extend`, `delete` or `release` still counts when nobody has, which saves running a task again when
    a worker was too busy to extend in time, and harms no one.
    """

    limits = LIMITS

    def __init__(self, database: Database, lane: str = "", *, clock: str = CLOCK) -> None:
        """Takes over one use of `database`. The clock is an expression of SQL, for tests."""
        self.database = database
        self._name, self._clock = lane, clock
        self._closed = False
        self._wakes = 0
        self._looked: dict[str, int] = {}
        """Shared by a queue and its lanes: in which of them a look found nothing, and how often they had rung by then."""

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        bodies, unsent = encoded(messages, LIMITS.message_bytes)
        database, channel = self._open(), self.database.address.schema
        portions = list(_portions(bodies))
        if len(portions) == 1:
            with database.use() as connection:
                connection.execute(
                    self._sql(_SEND), (self._name, delay_s, portions[0], channel, self._name), prepare=True
                )
        elif portions:
            with database.transaction() as connection:
                for portion in portions:
                    connection.execute(self._sql(_SEND), (self._name, delay_s, portion, channel, self._name))
        if unsent:
            raise SendError(unsent)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        database, wakes = self._open(), self._wakes
        until_s, pause_s = time.monotonic() + wait_s, _LOCKED_S[0]
        while True:
            rings = database.bell.rings(
                self._name
            )  # before the look, so that nothing that is sent goes unseen
            if deliveries := self._take(max_messages, lease_s):
                return deliveries
            if wait_s <= 0:
                self._looked[self._name] = rings
            left_s = until_s - time.monotonic()
            # Within a transaction, to wait would keep others waiting.
            if left_s <= 0 or self._wakes != wakes or database.writing:
                return []
            next_s = self._next_s()
            if next_s is not None and next_s <= 0:
                next_s, pause_s = pause_s, min(2 * pause_s, _LOCKED_S[1])
            look_s = min(left_s, _LOOK_S, _LOOK_S if next_s is None else next_s)
            database.bell.wait(
                self._name, rings, look_s, lambda: self._wakes != wakes or self._another_rang()
            )
            self._open()
            if self._another_rang():
                self._looked.clear()
                return []

    def _another_rang(self) -> bool:
        """Has something come into another lane since it was looked at?"""
        rings = self.database.bell.rings
        return any(rings(name) != then for name, then in list(self._looked.items()) if name != self._name)

    def wake(self) -> None:
        self._wakes += 1
        self.database.bell.poke()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        result = Extension([], [])
        if not deliveries:
            return result
        lease = _new_lease()
        with self._open().use() as connection:
            rows = connection.execute(self._sql(_EXTEND), (lease_s, lease, *_columns(deliveries))).fetchall()
        held = set(map(_Token._make, rows))
        for delivery in deliveries:
            if delivery.token in held:
                token = _Token(delivery.token.id, lease)
                result.extended.append((delivery, msgspec.structs.replace(delivery, token=token)))
            else:
                result.lost.append(delivery)
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            with self._open().use() as connection:
                connection.execute(self._sql(_DELETE), _columns(deliveries))

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        if deliveries:
            channel = self.database.address.schema
            with self._open().use() as connection:
                connection.execute(self._sql(_RELEASE), (delay_s, *_columns(deliveries), channel, self._name))

    def depth(self) -> Depth:
        with self._open().use() as connection:
            row = connection.execute(self._sql(_DEPTH), (self._name,)).fetchone()
        assert row is not None
        return Depth(*row)

    def lane(self, name: str) -> PostgresQueue:
        # With the same connections, so that it takes part in this one's transactions.
        lane = PostgresQueue(self._open().share(), f"{self._name}/{name}", clock=self._clock)
        lane._looked = self._looked
        return lane

    def remove(self) -> bool:
        # A lane is a value in a column: without messages it isn't there.
        with self._open().use() as connection:
            row = connection.execute(self._sql(_ANY), (self._name,)).fetchone()
        return row == (False,)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.database.bell.poke()
            self.database.close()

    def _open(self) -> Database:
        if self._closed:
            raise BackendError(f"the queue at {self.database.address.shown} is closed")
        return self.database

    def _sql(self, text: str) -> bytes:
        return self.database.sql(text.replace("{now}", self._clock))

    def _take(self, max_messages: int, lease_s: float) -> list[Delivery]:
        lease = _new_lease()
        with self._open().use() as connection:
            limit = min(max_messages, LIMITS.receive_batch)
            rows = connection.execute(
                self._sql(_TAKE), (lease_s, lease, self._name, limit), prepare=True, binary=True
            ).fetchall()
        return [
            Delivery(body=body, token=_Token(number, lease), deliveries=deliveries)
            for number, deliveries, body in sorted(rows)
        ]

    def _next_s(self) -> float | None:
        """How long until the next message can be received, 0 and less: now; None: there is none."""
        with self._open().use() as connection:
            row = connection.execute(self._sql(_NEXT), (self._name,)).fetchone()
        return row[0] if row else None


def _portions(bodies: list[bytes]) -> Iterator[list[bytes]]:
    """For one statement each."""
    portion: list[bytes] = []
    size = 0
    for body in bodies:
        if portion and (len(portion) == LIMITS.send_batch or size + len(body) > BATCH_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(body)
        size += len(body)
    if portion:
        yield portion


def _columns(deliveries: Sequence[Delivery]) -> tuple[list[int], list[int]]:
    """The ids and the leases."""
    return [delivery.token.id for delivery in deliveries], [delivery.token.lease for delivery in deliveries]


def _new_lease() -> int:
    return secrets.randbits(63)

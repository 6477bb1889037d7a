"""The PostgreSQL backend on a real server: both contracts, and both machines. What only a server can do wrong:
test_postgres_server.py."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import settings

from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import SETTINGS, QueueMachine
from mtask.testing.table_contract import TableContract
from mtask.testing.table_machine import TableMachine
from mtask_postgres import Database, PostgresQueue, PostgresTable
from mtask_postgres.address import address_of
from tests.servers.postgres import Postgres

BRIEFLY = settings(SETTINGS, max_examples=20)
"""800 steps: each is a request."""


class Place:
    """A schema of its own, and a clock beside its tables that is moved by hand."""

    def __init__(self, postgres: Postgres) -> None:
        self.address = address_of(postgres.new())
        table = f'"{self.address.schema}".test_clock'
        self.clock = f"(SELECT now_s FROM {table})"
        self._connection = psycopg.connect(postgres.url, autocommit=True)
        self._connection.execute(f"CREATE TABLE {table} AS SELECT 1000::float8 AS now_s".encode())

    def advance(self, seconds: float) -> None:
        self._connection.execute(
            f'UPDATE "{self.address.schema}".test_clock SET now_s = now_s + %s'.encode(), (seconds,)
        )

    def database(self) -> Database:
        """As if in another process."""
        return Database(self.address)

    def queue(self) -> PostgresQueue:
        return PostgresQueue(self.database(), clock=self.clock)

    def close(self) -> None:
        self._connection.execute(f'DROP SCHEMA "{self.address.schema}" CASCADE'.encode())
        self._connection.close()


class PostgresFixtures:
    short_s = 30.0
    margin_s = 0.0
    quiet_s = 0.02
    wakeup_s = 1.0

    @pytest.fixture(autouse=True)
    def _place(self, postgres: Postgres) -> Iterator[None]:
        self.place = Place(postgres)
        yield
        self.place.close()

    def advance(self, seconds: float) -> None:
        self.place.advance(seconds)

    @pytest.fixture
    def queue(self) -> Iterator[PostgresQueue]:
        queue = PostgresQueue(Database.open(self.place.address), clock=self.place.clock)
        yield queue
        queue.close()

    @pytest.fixture
    def other_queue(self) -> Iterator[PostgresQueue]:
        other = self.place.queue()
        yield other
        other.close()

    @pytest.fixture
    def queue_beside(self, queue: PostgresQueue) -> PostgresQueue:
        return queue

    @pytest.fixture
    def table(self) -> Iterator[PostgresTable]:
        table = PostgresTable(Database.open(self.place.address))
        yield table
        table.close()

    @pytest.fixture
    def other_table(self) -> Iterator[PostgresTable]:
        other = PostgresTable(self.place.database())
        yield other
        other.close()


class TestQueue(PostgresFixtures, QueueContract):
    tells_expired = False


class TestTable(PostgresFixtures, TableContract):
    pass


class QueueHarness(Place):
    late_settles, tells_expired = True, False

    def open(self) -> PostgresQueue:
        return self.queue()


class TableHarness(Place):
    def open(self) -> PostgresTable:
        return PostgresTable(self.database())


def test_the_queue_is_like_its_model(postgres: Postgres) -> None:
    QueueMachine.run(lambda: QueueHarness(postgres), BRIEFLY)


def test_the_table_is_like_its_model(postgres: Postgres) -> None:
    TableMachine.run(lambda: TableHarness(postgres), BRIEFLY)

"""The SQLite backend: both contracts, both machines, and its URLs. What only a file can do wrong: test_sqlite_file.py;
what only its lanes can: test_sqlite_lanes.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.errors import UsageError
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import QueueMachine
from mtask.testing.table_contract import TableContract
from mtask.testing.table_machine import TableMachine
from mtask_sqlite import Database, SqliteQueue, SqliteTable, open_queue, open_table


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SqliteFixtures:
    short_s = 30.0
    margin_s = 0.0
    quiet_s = 0.02
    wakeup_s = 1.0

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "tasks.db")
        self.clock = Clock()

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    @pytest.fixture
    def queue(self) -> Iterator[SqliteQueue]:
        queue = SqliteQueue(Database.open(self.path), clock=self.clock)
        yield queue
        queue.close()

    @pytest.fixture
    def other_queue(self, queue: SqliteQueue) -> Iterator[SqliteQueue]:
        other = SqliteQueue(Database(self.path), clock=self.clock)  # as if in another process
        yield other
        other.close()

    @pytest.fixture
    def queue_beside(self, queue: SqliteQueue) -> SqliteQueue:
        return queue

    @pytest.fixture
    def table(self) -> Iterator[SqliteTable]:
        table = SqliteTable(Database.open(self.path))
        yield table
        table.close()

    @pytest.fixture
    def other_table(self, table: SqliteTable) -> Iterator[SqliteTable]:
        other = SqliteTable(Database(self.path))
        yield other
        other.close()


class TestQueue(SqliteFixtures, QueueContract):
    tells_expired = False


class TestTable(SqliteFixtures, TableContract):
    pass


class Harness:
    """A new file; each client's Database is its own, as if in another process."""

    late_settles, tells_expired = True, False

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = f"{self.directory.name}/tasks.db"
        self.clock = Clock()

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    def close(self) -> None:
        self.directory.cleanup()


class QueueHarness(Harness):
    def open(self) -> SqliteQueue:
        return SqliteQueue(Database(self.path), clock=self.clock)


class TableHarness(Harness):
    def open(self) -> SqliteTable:
        return SqliteTable(Database(self.path))


def test_the_queue_is_like_its_model() -> None:
    QueueMachine.run(QueueHarness)


def test_the_table_is_like_its_model() -> None:
    TableMachine.run(TableHarness)


# -- URLs -----------------------------------------------------------------------------------------------


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, file in [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:///sub/deeper/b.db", "sub/deeper/b.db"),
        (f"sqlite:///{tmp_path}/c%20%23d.db?lane=x%2Fy", "c #d.db"),
    ]:
        open_queue(url).close()
        open_table(url).close()
        assert (tmp_path / file).is_file()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite://", "not the URL"),
        ("sqlite:tasks.db", "not the URL"),
        ("sqlite://tasks.db", "sqlite:///tasks.db"),
        ("sqlite:///:memory:", "need a file"),
        ("sqlite:///directory/", "names no file"),
        ("sqlite:///a.db?lanes=x", "unknown option 'lanes'"),
        ("sqlite:///a.db?lane=", "no name"),
        ("sqlite:///a.db?durable=0", "yes or no, not '0'"),
        ("sqlite:///a#b.db", "%23"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    for function in (open_queue, open_table):
        with pytest.raises(UsageError, match=text):
            function(url)

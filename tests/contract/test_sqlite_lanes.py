"""What is special about the lanes of a queue in a file: they share its connections, its transactions, its index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mtask.errors import BackendError
from mtask.queue import Queue
from mtask.testing.samples import a_message, index_of, messages
from mtask_sqlite import Database, SqliteQueue, SqliteTable, open_queue


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tasks.db")


@pytest.fixture
def url(path: str) -> str:
    return f"sqlite:///{path}"


def receive(queue: Queue, count: int = 1000) -> list[int]:
    return [index_of(d) for d in queue.receive(max_messages=count, lease_s=60, wait_s=0)]


def test_a_url_may_name_a_queue_of_its_own(url: str, queue: SqliteQueue) -> None:
    with closing(open_queue(f"{url}?lane=big")) as big:
        queue.send([a_message(1)])
        big.send([a_message(2)], delay_s=60)
        big.send([a_message(3)])
        assert (queue.depth(), big.depth()) == ((1, 0, 0), (1, 0, 1))
        with closing(big.lane("a")) as of_big, closing(queue.lane("a")) as lane:
            of_big.send([a_message(4)])
            assert (receive(lane), receive(of_big)) == ([], [4])
        assert (receive(big), receive(queue)) == ([3], [1])


def test_leases_in_lanes_end_with_the_boot_and_only_then(path: str) -> None:
    def boot(name: str, now: float) -> SqliteQueue:
        return SqliteQueue(Database.open(path), clock=lambda: now, boot_id=name)

    with closing(boot("first", 5000.0)) as queue, closing(queue.lane("a")) as lane:
        lane.send(messages(2))
        (held,) = lane.receive(max_messages=1, lease_s=1e6, wait_s=0)
        lane.send([a_message(2)], delay_s=1e6)
    with closing(boot("first", 5001.0)) as queue, closing(queue.lane("a")) as lane:
        assert lane.depth() == (1, 1, 1)
    with closing(boot("second", 3.0)) as queue, closing(queue.lane("a")) as lane:
        assert lane.depth() == (3, 0, 0)
        assert lane.extend([held], lease_s=60).lost == [held]
        taken = lane.receive(max_messages=5, lease_s=60, wait_s=0)
        assert {index_of(delivery): delivery.deliveries for delivery in taken} == {0: 2, 1: 1, 2: 1}
        with closing(queue.lane("b")):  # opening another one ends nothing
            assert lane.depth() == (0, 3, 0)


@contextmanager
def steps_of(database: Database) -> Iterator[list[int]]:
    """How many times ten instructions SQLite takes for what this thread does."""
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    with database.read() as connection:
        connection.set_progress_handler(count, 10)
    yield steps
    with database.read() as connection:
        connection.set_progress_handler(None, 0)


def test_a_lane_costs_nothing_for_what_is_in_the_others(queue: SqliteQueue) -> None:
    with closing(queue.lane("a")) as lane, closing(queue.lane("c")) as behind:
        queue.send(messages(10_000))
        behind.send(messages(10_000))
        lane.send([a_message(7)])
        with steps_of(lane.database) as steps:
            assert lane.depth() == (1, 0, 0)
            (held,) = lane.receive(max_messages=5, lease_s=60, wait_s=0)
            assert receive(lane) == []
            lane.send([a_message(8)])
            lane.delete([held])
            assert not lane.remove()
        assert 0 < steps[0] < 100


def test_a_removed_lane_leaves_nothing_in_the_file(queue: SqliteQueue) -> None:
    with closing(queue.lane("a")) as lane:
        lane.send(messages(3))
        lane.delete(lane.receive(max_messages=3, lease_s=60, wait_s=0))
        assert lane.remove()
        with queue.database.read() as connection:
            counts = [
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("message", "message_body", "lane")
            ]
        assert counts == [0, 0, 0]


def test_a_lane_takes_part_in_transactions(path: str) -> None:
    # Not `Database.open`: even where nothing else in the process shares the connections.
    database = Database(path, busy_s=0.1)
    with (
        closing(SqliteTable(database)) as table,
        closing(SqliteQueue(database.share())) as queue,
        closing(queue.lane("a")) as lane,
    ):
        assert lane.database is database  # else the next lines would wait for each other
        with table.transaction(queue):
            lane.send([a_message(1)])
        assert receive(lane) == [1]
        with pytest.raises(RuntimeError), table.transaction(queue):
            lane.send([a_message(2)])
            raise RuntimeError
        assert receive(lane) == []


def test_the_last_of_queue_and_lanes_closes_the_file(url: str, path: str) -> None:
    def open_files() -> list[str]:
        return [f for f in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if f.startswith(path)]

    queue = open_queue(url)
    lane, same = queue.lane("a"), queue.lane("a")
    lane.close()
    lane.close()  # again, which counts for nothing
    queue.close()
    same.send([a_message(1)])
    assert receive(same) == [1]
    assert open_files()
    with pytest.raises(BackendError, match="closed"):
        queue.lane("b")
    same.close()
    assert open_files() == []

"""What a worker knows of the work ahead of all slots: read rarely, when asked for, and forgotten when it is old."""

from __future__ import annotations

from typing import Any

import pytest

from mtask.errors import BagNotFoundError, UnavailableError
from mtask.heartbeat import WorkerStatus
from mtask.model import Counts
from mtask.testing.samples import a_bag
from mtask.worker.ahead import COUNT_S, OLD_S, PER_WORKER_S, WORKERS_S, Ahead

NOW = 1e9
BAG = a_bag()


def a_worker(number: int, slots: int = 8, **fields: Any) -> WorkerStatus:
    fields = {"beat_at": NOW} | fields
    return WorkerStatus(worker=f"w{number}", host="host", pid=1, slots=slots, **fields)


class FakeTable:
    def __init__(self) -> None:
        self.left: int | None = 1000
        self.statuses = [a_worker(0), a_worker(1, slots=2)]
        self.counted = self.listed = 0
        self.away = False

    def counts(self, name: str) -> Counts:
        assert name == BAG.name
        self.counted += 1
        if self.away:
            raise UnavailableError("it is away")
        if self.left is None:
            raise BagNotFoundError(name)
        return Counts(total=self.left + 50, done=50)

    def workers(self) -> list[WorkerStatus]:
        self.listed += 1
        return self.statuses


class Known:
    def __init__(self) -> None:
        self.now_s, self.table = 100.0, FakeTable()
        table: Any = self.table
        self.ahead = Ahead(table, clock=lambda: self.now_s, wall=lambda: NOW)

    def after(self, seconds: float) -> float:
        """What is known when so much time has gone by, and the pulse has come round."""
        self.now_s += seconds
        self.ahead.refresh()
        return self.ahead.tasks_a_slot(BAG)


@pytest.fixture
def known() -> Known:
    return Known()


def test_nothing_is_known_at_first_and_nothing_read_unasked(known: Known) -> None:
    known.ahead.refresh()
    assert (known.table.counted, known.table.listed) == (0, 0)
    assert known.ahead.tasks_a_slot(BAG) == 0
    assert known.after(0) == 100.0


def test_only_those_count_that_will_take_some_of_it(known: Known) -> None:
    known.table.statuses += [
        a_worker(2, state="draining"),
        a_worker(3, state="stopped"),
        a_worker(4, beat_at=NOW - 60),
    ]
    known.ahead.tasks_a_slot(BAG)
    assert known.after(0) == 100.0


def test_what_is_left_is_counted_now_and_then(known: Known) -> None:
    known.ahead.tasks_a_slot(BAG)
    assert known.after(0) == 100.0
    known.table.left = 500
    assert known.after(COUNT_S / 2) == 100.0
    assert known.after(COUNT_S / 2) == 50.0
    assert known.table.counted == 2


def test_a_large_fleet_looks_at_itself_rarely(known: Known) -> None:
    known.table.statuses = [a_worker(number) for number in range(1000)]
    known.ahead.tasks_a_slot(BAG)
    for _ in range(int(1000 * PER_WORKER_S / COUNT_S)):
        known.after(COUNT_S)
    assert known.table.listed == 1
    known.table.statuses = known.table.statuses[:100]
    assert known.after(COUNT_S) == 1000 / 800
    assert known.after(WORKERS_S) == 1000 / 800
    assert known.table.listed == 3


def test_what_is_old_says_nothing(known: Known) -> None:
    known.ahead.tasks_a_slot(BAG)
    assert known.after(0) == 100.0
    known.table.away = True
    for _ in range(int(OLD_S / COUNT_S) - 1):
        with pytest.raises(UnavailableError):
            known.after(COUNT_S)
        assert known.ahead.tasks_a_slot(BAG) == 100.0
    with pytest.raises(UnavailableError):
        known.after(COUNT_S)
    assert known.ahead.tasks_a_slot(BAG) == 0
    known.table.away = False
    assert known.after(COUNT_S) == 100.0


def test_a_bag_that_nobody_asks_for_any_more_is_not_read(known: Known) -> None:
    known.ahead.tasks_a_slot(BAG)
    known.after(0)
    known.now_s += OLD_S + 1
    known.ahead.refresh()
    assert known.table.counted == 1


def test_of_a_bag_that_is_gone_nothing_is_left(known: Known) -> None:
    known.table.left = None
    known.ahead.tasks_a_slot(BAG)
    assert known.after(0) == 0


def test_without_workers_nothing_is_known(known: Known) -> None:
    known.table.statuses = []
    known.ahead.tasks_a_slot(BAG)
    assert known.after(0) == 0

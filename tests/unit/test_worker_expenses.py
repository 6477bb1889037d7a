"""What a worker uses is shared among its bags, and comes into their accounts, each thing once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.costs import used_by
from mtask.errors import UnavailableError
from mtask.meter import Meter
from mtask.testing.samples import a_status
from mtask.worker.expenses import ACCOUNT_S, OVER_S, Expenses
from tests.unit import metered
from tests.unit.metered import Metered


class Source:
    """Something with a meter."""

    def __init__(self) -> None:
        self.meter = Meter()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Metered]:
    made = metered.open_table(f"metered:///{tmp_path}/t.db")
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def expenses(source: Source, clock: Clock) -> Expenses:
    return Expenses([source], clock=clock)


def test_shares_go_by_the_tasks_that_ended(source: Source, expenses: Expenses) -> None:
    source.meter.add("a", 8)
    expenses.ended("u", 3)
    expenses.ended("v", 1)
    expenses.look(["w"])
    assert expenses.by_bag() == {"u": {"a": 6.0}, "v": {"a": 2.0}}


def test_where_none_ended_by_the_bags_that_are_held(source: Source, expenses: Expenses) -> None:
    source.meter.add("a", 8)
    expenses.look({"u", "v"})
    assert expenses.by_bag() == {"u": {"a": 4.0}, "v": {"a": 4.0}}


def test_idle_work_is_nobodys_but_what_was_still_to_be_written(source: Source, expenses: Expenses) -> None:
    source.meter.add("a", 100)
    expenses.look([])
    assert expenses.by_bag() == {}
    expenses.ended("u", 1)
    source.meter.add("a", 1)
    expenses.look([])
    source.meter.add("a", 2)
    expenses.look([])
    source.meter.add("a", 4)
    expenses.look([])
    assert expenses.by_bag() == {"u": {"a": 3.0}}


def test_it_counts_from_its_start(source: Source, expenses: Expenses) -> None:
    source.meter.add("a", 100)  # of the submit in the same process
    expenses.start()
    source.meter.add("a", 1)
    expenses.look(["u"])
    assert expenses.by_bag() == {"u": {"a": 1.0}}


def test_a_bag_that_is_over_is_settled(
    source: Source, expenses: Expenses, clock: Clock, table: Metered
) -> None:
    source.meter.add("a", 1)
    expenses.look(["u"])
    clock.now_s += OVER_S - 1
    expenses.settle(table)
    assert expenses.by_bag() == {"u": {"a": 1.0}}
    clock.now_s += 1
    expenses.settle(table)
    assert expenses.by_bag() == {}
    assert used_by(table, "u", []) == {"a": 1.0}


def test_a_bag_in_use_is_settled_every_hour(
    source: Source, expenses: Expenses, clock: Clock, table: Metered
) -> None:
    for _ in range(int(2.5 * ACCOUNT_S / 30)):
        clock.now_s += 30
        source.meter.add("a", 1)
        expenses.look(["u"])
        expenses.settle(table)
    assert 1 <= table.calls.count("swap") <= 2
    expenses.settle(table, everything=True)
    assert expenses.by_bag() == {}
    assert used_by(table, "u", []) == {"a": 2.5 * ACCOUNT_S / 30}


def test_a_table_that_is_away_costs_nothing(source: Source, expenses: Expenses, table: Metered) -> None:
    def away(name: str) -> None:
        raise UnavailableError("away")

    source.meter.add("a", 1)
    expenses.look(["u"])
    table.before = away
    with pytest.raises(UnavailableError):
        expenses.settle(table, everything=True)
    source.meter.add("a", 2)
    expenses.look(["u"])
    assert expenses.by_bag() == {"u": {"a": 3.0}}
    table.before = lambda name: None
    while expenses.by_bag():
        expenses.settle(table, everything=True)
    assert used_by(table, "u", []) == {"a": 3.0}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(1, 100)),
        st.tuples(st.just("ended"), st.sampled_from("uv"), st.integers(1, 9)),
        st.tuples(st.just("look"), st.sets(st.sampled_from("uv"))),
        st.tuples(st.just("pass"), st.sampled_from([1.0, OVER_S, ACCOUNT_S])),
        st.tuples(st.just("settle"), st.booleans()),
        st.tuples(st.just("fault")),
    ),
    max_size=40,
)


@given(STEPS)
def test_nothing_is_counted_twice_or_lost_whatever_comes(steps: list[Any]) -> None:
    """All that is shared out is in accounts or in the heartbeat, each once; answers of the table may be lost."""
    source, clock, shared = Source(), Clock(), Documents()
    expenses = Expenses([source], clock=clock)
    used, busy = 0.0, False
    for step, *rest in steps:
        if step == "use":
            source.meter.add("a", rest[0])
            used += rest[0]
        elif step == "ended":
            expenses.ended(*rest)
            busy = True
        elif step == "look":
            before = total(expenses, shared)
            expenses.look(rest[0])
            if busy or rest[0]:
                assert math.isclose(total(expenses, shared), before + used, abs_tol=0.01)
            used, busy = 0.0, False
        elif step == "pass":
            clock.now_s += rest[0]
        elif step == "fault":
            shared.loses = True
        else:
            before = total(expenses, shared)
            try:
                expenses.settle(shared, everything=rest[0])  # type: ignore[arg-type]
            except UnavailableError:
                expenses.settle(shared, everything=True)  # type: ignore[arg-type]
            assert math.isclose(total(expenses, shared), before, abs_tol=0.01)
    before, shared.loses = total(expenses, shared), False
    expenses.settle(shared, everything=True)  # type: ignore[arg-type]
    expenses.settle(shared, everything=True)  # type: ignore[arg-type]
    assert math.isclose(total(expenses, shared), before, abs_tol=0.01)
    assert expenses.by_bag() == {}


class Documents:
    """Shared documents as a table has them; the answer to a write may be lost."""

    def __init__(self) -> None:
        self._documents: dict[str, tuple[bytes, int]] = {}
        self.loses = False

    def shared(self, key: str) -> tuple[bytes, int]:
        return self._documents.get(key, (b"", 0))

    def swap(self, key: str, value: bytes, version: int) -> bool:
        self._documents[key] = value, version + 1
        if self.loses:
            self.loses = False
            raise UnavailableError("the answer was lost")
        return True


def total(expenses: Expenses, shared: Documents) -> float:
    table: Any = shared
    beats = [a_status(used=expenses.by_bag())]
    return sum(used_by(table, uid, beats).get("a", 0.0) for uid in "uv")

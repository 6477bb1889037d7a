"""What a bag has used: meters, accounts, shares of a worker; and what it will cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtask
from mtask.costs import (
    RECEIPTS,
    Bill,
    Cost,
    charge,
    cost_of,
    cost_text,
    count_text,
    dollars_text,
    prices_of,
    used_by,
)
from mtask.errors import UnavailableError, UsageError
from mtask.estimate import RESULT_BYTES, Estimate, estimate
from mtask.manager import Manager, make_spec
from mtask.meter import Meter, Prices, reading, since
from mtask.settings import Urls
from mtask.sources import RowsSource
from mtask.submitting import prepare
from mtask.testing.samples import a_status
from tests.unit import metered
from tests.unit.metered import Metered

SQS = Prices(dollars={"sqs requests": 4e-7, "sqs fifo requests": 5e-7}, region="us-east-1", at="2026-11")
UNITS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0, 1e9), max_size=3)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    metered.use(monkeypatch)
    with mtask.connect(f"metered:///{tmp_path}/q.db", f"metered:///{tmp_path}/t.db") as manager:
        yield manager


@pytest.fixture
def table(manager: Manager) -> Metered:
    assert isinstance(manager.table, Metered)
    return manager.table


class Source:
    """Something with a meter."""

    def __init__(self) -> None:
        self.meter = Meter()


# -- meters and text --------------------------------------------------------------------------------


def test_a_meter_that_two_share_is_read_once() -> None:
    one, other = Source(), Source()
    one.meter.add("requests", 2)
    other.meter.add("requests", 1)
    other.meter.add("bytes", 5)
    same = Source()
    same.meter = one.meter
    assert reading([one, same, object(), other]) == {"requests": 3, "bytes": 5}
    assert reading([object()]) == {}


@given(UNITS, UNITS)
def test_since_gives_what_came_to_it(before: dict[str, float], more: dict[str, float]) -> None:
    now = {unit: before.get(unit, 0.0) + more.get(unit, 0.0) for unit in before | more}
    found = since(before, now)
    assert all(found.get(unit, 0.0) == now[unit] - before.get(unit, 0.0) for unit in now)
    assert all(count > 0 for count in found.values())


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0, "$0.00"),
        (0.00001, "less than $0.0001"),
        (0.0001, "$0.0001"),
        (0.00412, "$0.0041"),
        (0.0412, "$0.041"),
        (0.41, "$0.41"),
        (0.999, "$1.00"),
        (1234.5, "$1,234.50"),
    ],
)
def test_dollars(dollars: float, text: str) -> None:
    assert dollars_text(dollars) == text


@pytest.mark.parametrize(("count", "text"), [(1234, "1,234"), (12.5, "12"), (3.0, "3"), (0.5, "0.5")])
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


def test_a_cost_in_a_line() -> None:
    cost = cost_of({"sqs requests": 1234.0, "sqs sends": 99.0}, 1000, [SQS])
    assert cost is not None
    assert cost.dollars == pytest.approx(1234 * 4e-7)
    assert (
        cost_text(cost)
        == "1,234 sqs requests: $0.00049 ($0.49 a million tasks; prices of us-east-1, 2026-11)"
    )
    none_ended = cost_of({"sqs requests": 1e6}, 0, [SQS])
    assert none_ended is not None
    assert cost_text(none_ended) == "1,000,000 sqs requests: $0.40 (prices of us-east-1, 2026-11)"


def test_what_has_no_price_is_told_without_dollars() -> None:
    cost = cost_of({"shouts": 7.0}, 5, [])
    assert cost is not None
    assert (cost.dollars, cost_text(cost)) == (0, "7 shouts")


def test_who_used_nothing_has_no_cost() -> None:
    assert cost_of({}, 5, [SQS]) is None


def test_prices_are_those_of_the_urls(manager: Manager) -> None:
    urls = Urls("metered:///q", "metered:///t")
    assert prices_of(urls) == [metered.PRICES] == manager.prices
    assert prices_of(Urls("sqlite:///a", "metered:///t")) == [metered.PRICES]
    assert prices_of(Urls("sqlite:///a", "sqlite:///a")) == []


# -- accounts ---------------------------------------------------------------------------------------


def test_charges_add_up(table: Metered) -> None:
    assert charge(table, "u1", {"a": 1.0}, "r1")
    assert charge(table, "u1", {"a": 2.0, "b": 0.5}, "r2")
    assert charge(table, "u2", {"a": 7.0}, "r1")
    assert used_by(table, "u1", []) == {"a": 3.0, "b": 0.5}


def test_a_charge_whose_answer_was_lost_is_not_made_twice(table: Metered) -> None:
    real, lost = table.real.swap, [True]

    def swap(key: str, value: bytes, version: int) -> bool:
        done = real(key, value, version)
        if lost.pop() if lost else False:
            raise UnavailableError("the answer was lost")
        return bool(done)

    table.real.swap = swap
    with pytest.raises(UnavailableError):
        charge(table, "u", {"a": 1.0}, "r")
    assert charge(table, "u", {"a": 1.0}, "r")
    assert used_by(table, "u", []) == {"a": 1.0}


def test_a_client_that_tried_again_by_itself_charges_once(table: Metered) -> None:
    """Its second try is refused because of the first."""
    real = table.real.swap
    table.real.swap = lambda *args: bool(real(*args)) and bool(real(*args))
    assert charge(table, "u", {"a": 1.0}, "r")
    assert used_by(table, "u", []) == {"a": 1.0}


def test_many_charge_at_once(table: Metered) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        for each in range(10):
            while not charge(table, "u", {"a": 1.0}, f"{number}/{each}"):
                pass
            done.append(1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 60
    assert used_by(table, "u", []) == {"a": 60.0}


def test_an_account_stays_small(table: Metered) -> None:
    for number in range(3 * RECEIPTS):
        charge(table, "u", {"a": 1.0}, f"receipt-of-a-worker-with-a-long-name/{number}")
    assert len(table.shared("cost/u")[0]) < 8192
    assert used_by(table, "u", []) == {"a": 3.0 * RECEIPTS}


def test_heartbeats_count_too(table: Metered) -> None:
    charge(table, "u", {"a": 1.0}, "r")
    workers = [
        a_status("w1", used={"u": {"a": 2.0}, "v": {"a": 50.0}}),
        a_status("w2", used={"u": {"b": 1.0}}),
    ]
    assert used_by(table, "u", workers) == {"a": 3.0, "b": 1.0}


def test_a_bill_has_what_was_used_within(manager: Manager, table: Metered) -> None:
    table.meter.add("writes", 100)
    with Bill(manager.queue, table) as bill:
        table.meter.add("writes", 5)
        bill.uid = "u"
    table.meter.add("writes", 100)
    assert used_by(table, "u", []) == {"writes": 5.0}


def test_threads_that_share_a_manager_are_billed_for_their_own(manager: Manager, table: Metered) -> None:
    """Each is under way while the others send theirs."""
    together = threading.Barrier(3)

    def use(number: int) -> None:
        with Bill(manager.queue, table) as bill:
            bill.uid = f"u{number}"
            together.wait(20)
            for _ in range(number):
                table.meter.add("writes", 1)
            Meter().add("writes", 50)  # of something else
            together.wait(20)

    threads = [threading.Thread(target=use, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [used_by(table, f"u{number}", []) for number in (1, 2, 3)] == [{"writes": n} for n in (1, 2, 3)]
    table.meter.add("writes", 1)
    assert used_by(table, "u1", []) == {"writes": 1.0}


def test_a_bill_of_what_was_interrupted_is_kept_and_one_of_a_table_away_is_not_waited_for(
    manager: Manager, table: Metered
) -> None:
    with pytest.raises(KeyboardInterrupt), Bill(manager.queue, table) as bill:
        bill.uid = "u"
        table.meter.add("writes", 5)
        raise KeyboardInterrupt
    assert used_by(table, "u", []) == {"writes": 5.0}
    calls = len(table.calls)
    with pytest.raises(UnavailableError), Bill(manager.queue, table) as bill:
        bill.uid = "u"
        table.meter.add("writes", 5)
        raise UnavailableError("away")
    assert len(table.calls) == calls


def test_submit_retry_and_repair_are_on_the_account(manager: Manager, table: Metered) -> None:
    bag = manager.submit([{"x": n} for n in range(5)], run="echo {x}", bag="b")
    counted = {"requests": 1.0, "writes": float(len(table.calls) - 1)}  # the charge itself is not
    assert used_by(table, bag.info.uid, []) == counted
    bag.repair()
    assert used_by(table, bag.info.uid, [])["requests"] == 2.0
    table.record([mtask.Result.failed("b", 0, _failure())])
    bag.retry()
    assert used_by(table, bag.info.uid, [])["requests"] == 3.0
    cost = bag.cost()
    assert isinstance(cost, Cost)
    assert cost.dollars == pytest.approx(3 * 0.01 + cost.used["writes"] * 0.001)


def test_the_cost_counts_dead_workers_too(manager: Manager, table: Metered) -> None:
    bag = manager.submit([{"x": 1}], run="echo {x}", bag="b")
    before = bag.cost()
    table.beat(a_status("gone", used={bag.info.uid: {"writes": 10.0}}, interval_s=0.0))
    after = bag.cost()
    assert before is not None
    assert after is not None
    assert after.used["writes"] == before.used["writes"] + 10
    assert after.dollars_per_million is None


def test_nobody_bills_sqlite(tmp_path: Path) -> None:
    with mtask.connect(f"sqlite:///{tmp_path}/t.db") as manager:
        bag = manager.submit([{"x": 1}], run="echo {x}", bag="b")
        assert bag.cost() is None
        assert manager.table.shared(f"cost/{bag.info.uid}") == (b"", 0)


def _failure() -> mtask.model.Failure:
    from mtask.model import Failure, Reason

    return Failure(reason=Reason.RAISED, type="ValueError", message="no")


# -- estimates --------------------------------------------------------------------------------------


def estimated(rows: list[dict[str, Any]], urls: Urls, columns: list[str] | None = None) -> Estimate:
    source = RowsSource(rows, columns)
    made = prepare(source, make_spec(run="echo {x}", columns=source.columns))
    try:
        return estimate(made, urls)
    finally:
        made.spool.close()


def test_an_estimate_is_of_the_messages_that_will_be_sent(manager: Manager, table: Metered) -> None:
    rows = [{"x": "y" * (n % 100)} for n in range(3000)]
    found = estimated(rows, Urls("metered:///q", "metered:///t"))
    bag = manager.submit(rows, run="echo {x}", bag="estimate")
    deliveries = []
    while got := manager.queue.receive(max_messages=1000, lease_s=60, wait_s=0):
        deliveries += got
    assert found.tasks == bag.counts().total == 3000
    assert found.messages == len(deliveries) < 3000
    assert found.message_bytes == pytest.approx(sum(len(each.body) for each in deliveries), rel=0.01)
    assert found.packed is not None
    assert found.alone is not None
    assert found.packed.used == {"requests": 3.0 * found.messages, "writes": 1500.0}
    assert found.alone.used == {"requests": 9000.0, "writes": 3000.0}
    assert found.packed.dollars_per_million == pytest.approx(found.packed.dollars / 3000 * 1e6)
    assert found.result_bytes == RESULT_BYTES


def test_an_estimate_of_what_costs_nothing() -> None:
    found = estimated([{"x": 1}], Urls("sqlite:///q", "sqlite:///t"))
    assert (found.tasks, found.messages, found.packed, found.alone) == (1, 1, None, None)


def test_an_estimate_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metered.use(monkeypatch)
    found = estimated([], Urls("metered:///q", "metered:///t"), ["x"])
    assert (found.tasks, found.messages, found.packed) == (0, 0, None)


def test_results_that_expire_need_a_table_that_can(manager: Manager, table: Metered) -> None:
    with pytest.raises(UsageError, match=r"--keep: the table .*t\.db keeps results for ever"):
        manager.submit([{"x": 1}], run="echo {x}", keep_s=86400.0)
    assert table.calls == []
    table.keeps = True  # type: ignore[attr-defined]
    assert manager.submit([{"x": 1}], run="echo {x}", keep_s=86400.0).info.spec.keep_s == 86400.0


@pytest.mark.parametrize("keep_s", [0, -1])
def test_results_are_kept_for_some_time(manager: Manager, keep_s: float) -> None:
    with pytest.raises(UsageError, match="keep_s must be more than 0"):
        manager.submit([{"x": 1}], run="echo {x}", keep_s=keep_s)

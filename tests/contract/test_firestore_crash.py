"""The Firestore table when writers are killed, answers are lost, and many record the same tasks."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from google.cloud.firestore_v1 import types
from google.rpc.code_pb2 import Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.errors import BackendError, UnavailableError
from mtask.model import BagState, Counts, Result, State
from mtask.portion import Portion, expanded
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_lane, a_portion, an_expired
from mtask_gcp import FirestoreTable, open_table
from mtask_gcp.documents import put
from tests.servers.firestore import create_table, killed_at, lose_first_answers

MOST_REQUESTS = 200
FAR = 64 * 20
"""The index of a task that lies far from the first ones."""


@pytest.fixture
def url(firestore: str) -> str:
    return create_table()


@pytest.fixture
def table(url: str) -> Iterator[FirestoreTable]:
    with closing(open_table(url)) as table:
        yield table


def assert_whole(table: FirestoreTable, bag: str = "bag") -> dict[int, Result]:
    """Whatever is counted can be read, once, and nothing else can; by a client that knows nothing, too."""
    rows = list(table.results(bag))
    assert [row.index for row in rows] == sorted({row.index for row in rows})
    states = Counter(row.state.value for row in rows)
    with closing(open_table(table._db.place.url)) as stranger:
        for each in (table, stranger):
            assert each.counts(bag) == Counts(total=each.bag(bag).total, **states)
    assert table.recorded(bag, [row.index for row in rows] + [5000]) == {row.index for row in rows}
    for state in State:
        assert [r.index for r in table.results(bag, states=[state])] == [
            r.index for r in rows if r.state is state
        ]
    assert list(table.results(bag, indexes=[row.index for row in rows])) == rows
    return {row.index: row for row in rows}


LONG = random.Random(1).randbytes(20_000).hex()
"""Too long for a page, however it is compressed."""
WRITTEN: list[Result | Portion] = [
    a_portion([a_done(index, "new") for index in range(60, 70)]),
    a_failed(2, "new"),
    a_done(3, "new"),
    an_expired(FAR, "new"),
    a_done(FAR + 1, LONG),
    a_failed(FAR + 2, LONG),
    a_failed(62, "never"),
]
BEFORE = [a_done(60, "old"), a_failed(61, "old"), a_failed(2, "old"), an_expired(3, "old")]
AFTER = {row.index: row for row in expanded(WRITTEN) if row.index not in (60, 62)} | {
    60: a_done(60, "old"),
    62: a_done(62, "new"),
}


@pytest.mark.parametrize("half", [False, True], ids=["before", "in the middle of"])
def test_a_recorder_is_killed_before_or_in_any_request(url: str, table: FirestoreTable, half: bool) -> None:
    for request in range(MOST_REQUESTS):
        bag = f"bag-{request}"
        table.create_bag(a_bag(bag))
        before = [_of(row, bag) for row in BEFORE]
        table.record(before)
        written = [_of(each, bag) for each in WRITTEN]
        with killed_at(url, request, half=half) as mortal:
            mortal.record(written)
        there = assert_whole(table, bag)
        allowed = {row.index: {_key(row)} for row in before}
        for index, row in AFTER.items():
            allowed.setdefault(index, set()).add(_key(row))
        assert {index for index in (2, 3, 60, 61) if index not in there} == set()
        assert all(_key(row) in allowed[index] for index, row in there.items())
        table.record(written)  # the messages are delivered again
        assert {i: _key(r) for i, r in assert_whole(table, bag).items()} == {
            i: _key(r) for i, r in AFTER.items()
        }
        if not hasattr(mortal, "died"):
            assert request > 2
            return
    raise AssertionError(f"more than {MOST_REQUESTS} requests")


@pytest.mark.parametrize("half", [False, True], ids=["before", "in the middle of"])
def test_one_who_retracts_is_killed_before_or_in_any_request(
    url: str, table: FirestoreTable, half: bool
) -> None:
    for request in range(MOST_REQUESTS):
        bag = f"bag-{request}"
        table.create_bag(a_bag(bag))
        failed = [a_failed(index, "no", bag=bag) for index in (0, 3, 70, FAR)]
        table.record([*failed, a_done(1, bag=bag)])
        with killed_at(url, request, half=half) as mortal:
            assert mortal.retract(bag, [0, 1, 2, 3, 70, FAR]) == {0, 3, 70, FAR}
        assert_whole(table, bag)
        table.retract(bag, [0, 1, 2, 3, 70, FAR])
        assert list(assert_whole(table, bag)) == [1]
        assert list(table.attempts(bag)) == failed, "each kept once"
        if not hasattr(mortal, "died"):
            assert request > 1
            return
    raise AssertionError(f"more than {MOST_REQUESTS} requests")


@pytest.mark.parametrize("half", [False, True], ids=["before", "in the middle of"])
def test_a_submitter_is_killed_before_or_in_any_request(url: str, table: FirestoreTable, half: bool) -> None:
    def submit(mine: FirestoreTable) -> None:
        mine.put_blocks([a_block(number) for number in range(14, 19)])
        mine.update_bag("bag", total=10, sent=10, state=BagState.SEALED)

    table.create_bag(a_bag())
    for request in range(MOST_REQUESTS):
        with killed_at(url, request, half=half) as mortal:
            submit(mortal)
        there = list(table.blocks("bag"))
        assert all(block == a_block(block.number) for block in there)
        if table.bag("bag").state is BagState.SEALED:
            assert len(there) == 5
        if not hasattr(mortal, "died"):
            break
    submit(table)
    assert list(table.blocks("bag")) == [a_block(number) for number in range(14, 19)]
    assert (table.bag("bag").total, table.bag("bag").state) == (10, BagState.SEALED)


def test_answers_are_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtask_gcp.database.PAUSE_S", 0.005)
    with closing(open_table(url)) as table:
        lost = lose_first_answers(table)
        bag = a_bag(total=10)
        table.create_bag(bag)
        assert table.bag("bag") == bag
        table.update_bag("bag", total=20, sent=5, state=BagState.SEALED)
        assert (table.bag("bag").total, table.bag("bag").sent) == (20, 5)
        table.put_blocks([a_block(0), a_block(1)])
        table.record(BEFORE)
        table.record(WRITTEN)
        rows = assert_whole(table)
        assert rows == AFTER | {61: rows[61]}
        table.keep_attempts([a_failed(4), a_failed(5)])
        assert table.retract("bag", [2, 3, 60, FAR]) == {2, FAR}
        assert len(list(table.attempts("bag"))) == 4
        assert set(assert_whole(table)) == AFTER.keys() - {2, FAR}
        assert table.swap("key", b"one", 0) in (True, False)  # refused because of its own first try
        assert table.shared("key")[0] == b"one"
        table.put_lanes([a_lane(1)])
        assert table.remove_lane(a_lane(1).name) in (True, False)
        assert table.lanes() == []
    assert {"batch_write", "batch_get_documents", "run_query", "run_aggregation_query"} <= set(lost)


def test_what_a_batch_left_undone_is_sent_again(table: FirestoreTable) -> None:
    """Firestore answers for each write by itself; here every other one was aborted at first."""
    table.create_bag(a_bag())
    once, aborted = table._db._once, list[str]()

    def busy(method: str, message: Any) -> Any:
        if method != "batch_write" or aborted:
            return once(method, message)
        aborted.extend(each.update.name for each in message.writes[1::2])
        whole = list(message.writes)
        message.writes = whole[::2]
        answer = once(method, message)
        statuses, results = list(answer.status), list(answer.write_results)
        for at in range(1, len(whole), 2):
            statuses.insert(at, {"code": Code.ABORTED, "message": "contention"})
            results.insert(at, {})
        return types.BatchWriteResponse(status=statuses, write_results=results)

    table._db._once = busy  # type: ignore[method-assign]
    rows = [a_done(index) for index in range(0, 320, 4)]
    table.record(rows)
    assert len(aborted) == 5
    assert list(assert_whole(table).values()) == rows


def test_what_is_refused_for_good_is_not_tried_again(table: FirestoreTable) -> None:
    calls: list[str] = []
    once = table._db._once

    def counted(method: str, message: Any) -> Any:
        calls.append(method)
        return once(method, message)

    table._db._once = counted  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="INVALID_ARGUMENT") as error:
        table._db.write([put(f"{table._db.root}/mtask-shared/__no__", {})])
    assert not isinstance(error.value, UnavailableError)
    assert calls == ["batch_write"]


def test_an_attempt_that_is_told_again_is_kept_once(table: FirestoreTable) -> None:
    table.create_bag(a_bag())
    kept = [a_failed(index, worker="w", finished_at=1.5) for index in range(3)]
    table.keep_attempts([*kept, kept[0]])
    table.keep_attempts(kept)
    assert list(table.attempts("bag")) == kept


def test_a_row_that_is_replaced_while_it_is_retracted(url: str, table: FirestoreTable) -> None:
    """Neither is lost: the new one is taken out as well, or is there, and `done` stays."""
    table.create_bag(a_bag())
    table.record([a_failed(0, "old"), a_failed(1, "old"), a_failed(2, "old")])
    with closing(open_table(url)) as slow:
        news, once = [a_failed(0, "new"), a_done(1)], slow._db._once

        def overtaken(method: str, message: Any) -> Any:
            if method == "batch_write":
                table.record(news)
                news.clear()
            return once(method, message)

        slow._db._once = overtaken  # type: ignore[method-assign]
        assert slow.retract("bag", [0, 1, 2]) == {0, 2}
    assert list(assert_whole(table)) == [1]
    kept = [(row.index, row.error.message) for row in table.attempts("bag") if row.error]
    assert sorted(kept) == [(0, "new"), (0, "old"), (1, "old"), (2, "old")]


def test_what_had_no_row_is_not_retracted_when_others_change_its_page(
    url: str, table: FirestoreTable
) -> None:
    table.create_bag(a_bag())
    table.record([a_failed(1)])
    with closing(open_table(url)) as slow:
        news, once = [a_done(5)], slow._db._once

        def overtaken(method: str, message: Any) -> Any:
            if method == "batch_write":
                table.record(news)
                news.clear()
            return once(method, message)

        slow._db._once = overtaken  # type: ignore[method-assign]
        assert slow.retract("bag", [1, 2, 3]) == {1}
    assert list(assert_whole(table)) == [5]


def test_what_was_never_attempted_is_kept_as_attempt_0(table: FirestoreTable) -> None:
    table.create_bag(a_bag())
    table.record([an_expired(0, attempt=0)])
    assert table.retract("bag", [0]) == {0}
    assert list(table.attempts("bag")) == [an_expired(0, attempt=0)]


def test_counts_are_those_of_one_moment(url: str, table: FirestoreTable) -> None:
    """Each sum is a request of its own; what is written between two of them is in none."""
    table.create_bag(a_bag())
    table.record([a_failed(0), a_failed(1), a_done(2)])
    once, sums = table._db._once, []

    def write_between(method: str, message: Any) -> Any:
        answer = once(method, message)
        if method == "run_aggregation_query":
            sums.append(message)
            with closing(open_table(url)) as other:
                other.record([a_done(len(sums) - 1)])
        return answer

    table._db._once = write_between  # type: ignore[method-assign]
    counts = table.counts("bag")
    assert len(sums) > 1
    assert (counts.done, counts.failed) == (1, 2)
    table._db._once = once  # type: ignore[method-assign]
    assert (table.counts("bag").done, table.counts("bag").failed) == (3, 0)


# -- races ------------------------------------------------------------------------------------------------

ROW = st.tuples(st.sampled_from("dddfx"), st.sampled_from([0, 1, 2, 3, 63, 64, FAR]))
CALLS = st.lists(st.lists(ROW, min_size=1, max_size=5), min_size=1, max_size=4)
MAKE = {"d": a_done, "f": a_failed, "x": an_expired}


@pytest.mark.timeout(600)
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(calls=st.lists(CALLS, min_size=2, max_size=4), retracts=st.booleans())
def test_many_record_the_same_tasks(
    url: str, table: FirestoreTable, calls: list[list[list[tuple[str, int]]]], retracts: bool
) -> None:
    """A `done` row that anybody has seen stays; a failure never wins over one."""
    bag = f"bag-{next(NUMBERS)}"
    table.create_bag(a_bag(bag))
    start = threading.Barrier(len(calls) + retracts)
    seen: list[Result] = []
    errors: list[BaseException] = []

    def write(me: int, mine: list[list[tuple[str, int]]]) -> None:
        try:
            with closing(open_table(url)) as own:
                start.wait()
                for turn, rows in enumerate(mine):
                    own.record([MAKE[kind](index, f"{me}.{turn}", bag=bag) for kind, index in rows])
                    seen.extend(own.results(bag, states=[State.DONE]))
        except BaseException as error:
            errors.append(error)

    def retract() -> None:
        start.wait()
        for _ in range(3):
            table.retract(bag, [0, 1, 2, 3, 63, 64, FAR])

    threads = [threading.Thread(target=write, args=each) for each in enumerate(calls)]
    threads += [threading.Thread(target=retract)] * retracts
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = assert_whole(table, bag)
    written = [row for mine in calls for call in mine for row in call]
    assert {index for index, row in rows.items() if row.state is State.DONE} == {
        i for k, i in written if k == "d"
    }
    assert all(rows[early.index] == early for early in seen)
    if not retracts:
        assert rows.keys() == {index for _, index in written}


NUMBERS = iter(range(10**9))


def _of(each: Result | Portion, bag: str) -> Result | Portion:
    """The same in another bag."""
    return a_portion(_in(each.results(), bag)) if isinstance(each, Portion) else _in([each], bag)[0]


def _in(rows: list[Result], bag: str) -> list[Result]:
    return [msgspec.structs.replace(row, bag=bag) for row in rows]


def _key(row: Result) -> tuple[int, State, str]:
    return row.index, row.state, row.value if row.state is State.DONE else row.error.message

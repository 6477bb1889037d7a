"""For tables that write a bag with several requests: what they are put through when writers are killed, answers are lost,
and many record the same tasks. A backend's own file says how its client is killed, and what else must hold."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.model import BagState, Counts, Result, State
from mtask.portion import Portion, expanded
from mtask.table import Table
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion, an_expired

__all__ = ["FAR", "FaultyWriters", "KilledWriters", "races"]

MOST_REQUESTS = 200
FAR = 64 * 20
"""The index of a task that lies in another partition than the first ones."""
BEFORE = [a_done(60, "old"), a_failed(61, "old"), a_failed(2, "old"), an_expired(3, "old")]
NUMBERS = iter(range(10**9))


class Crashes:
    """What both kinds have in common. `url` and `table` are fixtures of the file: an empty table, and a client of it."""

    more: ClassVar[tuple[Result, ...]] = ()
    """Beside the rows that all of them write."""

    @staticmethod
    def open(url: str) -> Any:
        raise NotImplementedError

    def killed_at(self, url: str, request: int) -> AbstractContextManager[Any]:
        """A client that is killed just before its request of this number, from 0, and then has an attribute `died`; the
        errors of its death end with the block."""
        raise NotImplementedError

    def losing(self, url: str, lost: list[str]) -> AbstractContextManager[Any]:
        """A client each of whose requests takes effect, but whose first answers never arrive; `lost` tells which."""
        raise NotImplementedError

    def overtaken(self, url: str, overtake: Callable[[], None]) -> AbstractContextManager[Any]:
        """A client that is overtaken before it changes a page."""
        raise NotImplementedError

    def look(self, table: Any, bag: str) -> None:
        """At what else must hold."""

    def written(self) -> list[Result | Portion]:
        return [
            a_portion([a_done(index, "new") for index in range(60, 70)]),
            a_failed(2, "new"),
            a_done(3, "new"),
            an_expired(FAR, "new"),
            a_done(FAR + 1, "new"),
            a_failed(62, "never"),
            *self.more,
        ]

    def after(self) -> dict[int, Result]:
        """The rows of `written` over those of BEFORE."""
        rows = {row.index: row for row in expanded(self.written()) if row.index not in (60, 62)}
        return rows | {60: a_done(60, "old"), 62: a_done(62, "new")}

    def whole(self, url: str, table: Table, bag: str = "bag") -> dict[int, Result]:
        """Whatever is counted can be read, once, and nothing else can; by a client that knows nothing, too."""
        rows = list(table.results(bag))
        assert [row.index for row in rows] == sorted({row.index for row in rows})
        states = Counter(row.state.value for row in rows)
        self.look(table, bag)
        with closing(self.open(url)) as stranger:
            for each in (table, stranger):
                assert each.counts(bag) == Counts(total=each.bag(bag).total, **states)
        assert table.recorded(bag, [row.index for row in rows] + [5000]) == {row.index for row in rows}
        for state in State:
            assert [r.index for r in table.results(bag, states=[state])] == [
                r.index for r in rows if r.state is state
            ]
        assert list(table.results(bag, indexes=[row.index for row in rows])) == rows
        return {row.index: row for row in rows}


class KilledWriters(Crashes):
    """Whoever writes is killed before each request in turn; what is there then is right, and a second try completes it."""

    least: ClassVar[tuple[int, int]]
    """More requests than that does it take to record, and to retract."""

    def test_a_recorder_is_killed_at_each_request(self, url: str, table: Table) -> None:
        after = {index: _key(row) for index, row in self.after().items()}
        for request in range(MOST_REQUESTS):
            bag = f"bag-{request}"
            table.create_bag(a_bag(bag))
            before = _in(BEFORE, bag)
            table.record(before)
            written = [_of(each, bag) for each in self.written()]
            with self.killed_at(url, request) as mortal:
                mortal.record(written)
            there = self.whole(url, table, bag)
            allowed = {row.index: {_key(row)} for row in before}
            for index, key in after.items():
                allowed.setdefault(index, set()).add(key)
            assert {index for index in (2, 3, 60, 61) if index not in there} == set()
            assert all(_key(row) in allowed[index] for index, row in there.items())
            table.record(written)  # the messages are delivered again
            assert {i: _key(row) for i, row in self.whole(url, table, bag).items()} == after
            if not hasattr(mortal, "died"):
                assert request > self.least[0]
                return
        raise AssertionError(f"more than {MOST_REQUESTS} requests")

    def test_one_who_retracts_is_killed_at_each_request(self, url: str, table: Table) -> None:
        for request in range(MOST_REQUESTS):
            bag = f"bag-{request}"
            table.create_bag(a_bag(bag))
            failed = [a_failed(index, "no", bag=bag) for index in (0, 3, 70, FAR)]
            table.record([*failed, a_done(1, bag=bag)])
            with self.killed_at(url, request) as mortal:
                assert mortal.retract(bag, [0, 1, 2, 3, 70, FAR]) == {0, 3, 70, FAR}
            self.whole(url, table, bag)
            table.retract(bag, [0, 1, 2, 3, 70, FAR])
            assert list(self.whole(url, table, bag)) == [1]
            assert list(table.attempts(bag)) == failed, "each kept once"
            if not hasattr(mortal, "died"):
                assert request > self.least[1]
                return
        raise AssertionError(f"more than {MOST_REQUESTS} requests")

    def test_a_submitter_is_killed_at_each_request(self, url: str, table: Table) -> None:
        def submit(mine: Table) -> None:
            mine.put_blocks([a_block(number) for number in range(14, 19)])
            mine.update_bag("bag", total=10, sent=10, state=BagState.SEALED)

        table.create_bag(a_bag())
        for request in range(MOST_REQUESTS):
            with self.killed_at(url, request) as mortal:
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


class FaultyWriters(Crashes):
    """Answers that are lost, and writers that overtake each other."""

    methods: ClassVar[frozenset[str]]
    """Of requests of which answers were lost."""
    kept: ClassVar[tuple[tuple[int, str], ...]] = ((0, "new"), (0, "old"), (1, "old"), (2, "old"))
    """The attempts when rows 0 and 1 are replaced while all are retracted."""

    def lose_more(self, table: Any) -> None:
        """Answers to what only this backend does in several steps."""

    def test_answers_are_lost(self, url: str) -> None:
        lost: list[str] = []
        with self.losing(url, lost) as table:
            bag, after = a_bag(total=10), self.after()
            table.create_bag(bag)
            assert table.bag("bag") == bag
            table.update_bag("bag", total=20, sent=5, state=BagState.SEALED)
            assert (table.bag("bag").total, table.bag("bag").sent) == (20, 5)
            table.put_blocks([a_block(0), a_block(1)])
            table.record(BEFORE)
            table.record(self.written())
            rows = self.whole(url, table)
            assert rows == after | {61: rows[61]}
            table.keep_attempts([a_failed(4), a_failed(5)])
            assert table.retract("bag", [2, 3, 60, FAR]) == {2, FAR}
            assert len(list(table.attempts("bag"))) == 4
            assert set(self.whole(url, table)) == after.keys() - {2, FAR}
            assert table.swap("key", b"one", 0) in (True, False)  # refused because of its own first try
            assert table.shared("key")[0] == b"one"
            self.lose_more(table)
        assert self.methods <= set(lost)

    def test_an_attempt_that_is_told_again_is_kept_once(self, table: Table) -> None:
        table.create_bag(a_bag())
        kept = [a_failed(index, worker="w", finished_at=1.5) for index in range(3)]
        table.keep_attempts([*kept, kept[0]])
        table.keep_attempts(kept)
        assert list(table.attempts("bag")) == kept

    def test_a_row_that_is_replaced_while_it_is_retracted(self, url: str, table: Table) -> None:
        """Neither is lost: the new one is taken out as well, or is there, and `done` stays."""
        table.create_bag(a_bag())
        table.record([a_failed(0, "old"), a_failed(1, "old"), a_failed(2, "old")])
        news = [a_failed(0, "new"), a_done(1)]

        def overtake() -> None:
            if news:
                table.record(news)
                news.clear()

        with self.overtaken(url, overtake) as slow:
            assert slow.retract("bag", [0, 1, 2]) == {0, 2}
        assert news == []
        assert list(self.whole(url, table)) == [1]
        kept = [(row.index, row.error.message) for row in table.attempts("bag") if row.error]
        assert tuple(sorted(kept)) == self.kept

    def test_what_was_never_attempted_is_kept_as_attempt_0(self, table: Table) -> None:
        table.create_bag(a_bag())
        table.record([an_expired(0, attempt=0)])
        assert table.retract("bag", [0]) == {0}
        assert list(table.attempts("bag")) == [an_expired(0, attempt=0)]

    def race(self, url: str, table: Table, calls: list[list[list[tuple[str, int]]]], retracts: bool) -> None:
        """A `done` row that anybody has seen stays; a failure never wins over one."""
        bag = f"bag-{next(NUMBERS)}"
        table.create_bag(a_bag(bag))
        start = threading.Barrier(len(calls) + retracts)
        seen: list[Result] = []
        errors: list[BaseException] = []

        def write(me: int, mine: list[list[tuple[str, int]]]) -> None:
            try:
                with closing(self.open(url)) as own:
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
        rows = self.whole(url, table, bag)
        written = [row for mine in calls for call in mine for row in call]
        assert {index for index, row in rows.items() if row.state is State.DONE} == {
            i for k, i in written if k == "d"
        }
        assert all(rows[early.index] == early for early in seen)
        if not retracts:
            assert rows.keys() == {index for _, index in written}


ROW = st.tuples(st.sampled_from("dddfx"), st.sampled_from([0, 1, 2, 3, 63, 64, FAR]))
CALLS = st.lists(st.lists(ROW, min_size=1, max_size=5), min_size=1, max_size=4)
MAKE = {"d": a_done, "f": a_failed, "x": an_expired}


def races(most: int) -> Callable[[Any], Any]:
    """For a test that calls `race`, with so many examples: they cost more with one server than with another."""

    def decorate(test: Any) -> Any:
        given_some = given(calls=st.lists(CALLS, min_size=2, max_size=4), retracts=st.booleans())(test)
        unhurried = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        set_up = settings(max_examples=most, deadline=None, suppress_health_check=unhurried)(given_some)
        return pytest.mark.timeout(600)(set_up)

    return decorate


def _of(each: Result | Portion, bag: str) -> Result | Portion:
    """The same in another bag."""
    return a_portion(_in(each.results(), bag)) if isinstance(each, Portion) else _in([each], bag)[0]


def _in(rows: list[Result], bag: str) -> list[Result]:
    return [msgspec.structs.replace(row, bag=bag) for row in rows]


def _key(row: Result) -> tuple[int, State, Any]:
    return row.index, row.state, row.value if row.state is State.DONE else row.error and row.error.message

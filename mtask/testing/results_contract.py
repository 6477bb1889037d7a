"""The part of the contract of a table that is about results and attempts; `TableContract` brings it along."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from mtask.model import Counts, Failure, Reason, Result, State
from mtask.table import Table
from mtask.testing.samples import a_bag, a_done, a_failed, a_portion, an_expired

__all__ = ["ResultsContract"]

NESTED = {"a": [1, None, True, {"b": [[], {}, ""]}], "é\u2028": {"": 0}, 'k"\\': "\x00🦠"}
VALUES = [None, 0, False, "", 2**63, -(2**100), 0.1, 1e-300, 1e22, 5e-324, -0.0, NESTED, "x" * 100_000]
STATES = {"done": a_done, "failed": a_failed, "expired": an_expired}


class ResultsContract:
    """Tests of the rows of a table, with the fixtures of `mtask.testing.table_contract`."""

    @pytest.fixture
    def other_table(self, table: Table) -> Table:
        return table

    @pytest.fixture
    def bag(self, table: Table) -> str:
        """The name of a bag with 10 tasks."""
        table.create_bag(a_bag(total=10))
        return "bag"

    # -- promise 1: which row replaces which --------------------------------------------------------

    @pytest.mark.parametrize("second", STATES)
    @pytest.mark.parametrize("first", STATES)
    @pytest.mark.parametrize("at_once", [False, True], ids=["two calls", "one call"])
    def test_what_replaces_what(self, table: Table, bag: str, first: str, second: str, at_once: bool) -> None:
        old, new = STATES[first](3, "old"), STATES[second](3, "new")
        for results in [[old, new]] if at_once else [[old], [new]]:
            table.record(results)
        kept = old if first == "done" else new
        assert list(table.results(bag)) == [kept]
        assert table.counts(bag) == Counts(total=10, **{kept.state.value: 1})

    def test_counts_of_a_mixed_batch(self, table: Table, bag: str) -> None:
        table.record([a_done(0), a_failed(1), an_expired(2), a_failed(3)])
        table.record([a_failed(0), a_done(1), a_failed(2), a_failed(3), a_done(4), an_expired(5)])
        assert table.counts(bag) == Counts(total=10, done=3, failed=2, expired=1)
        assert "".join(result.state[0] for result in table.results(bag)) == "ddffde"

    def test_counts_stay_right_when_many_write(self, table: Table, other_table: Table, bag: str) -> None:
        def write(mine: Table, shift: int) -> None:
            for turn in range(5):
                make = a_done if (turn + shift) % 2 else a_failed
                mine.record([make(index) for index in range(shift, 40 + shift)])

        pairs = zip((table, other_table) * 2, range(4), strict=True)
        threads = [threading.Thread(target=write, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert table.counts(bag) == Counts(total=10, done=43)
        assert [result.index for result in table.results(bag, states=[State.DONE])] == list(range(43))

    def test_recording_the_same_again_changes_nothing(self, table: Table, bag: str) -> None:
        for _ in range(2):
            table.record([a_done(0, 1), a_failed(1)])
        assert table.counts(bag) == Counts(total=10, done=1, failed=1)

    @pytest.mark.parametrize("before", STATES)
    def test_a_portion_replaces_all_but_what_is_done(self, table: Table, bag: str, before: str) -> None:
        old = STATES[before](4, "old")
        table.record([old])
        new = [a_done(index, "new") for index in range(2, 7)]
        table.record([a_portion(new), a_failed(3), a_done(4, "later")])
        new[2] = old if before == "done" else new[2]
        assert list(table.results(bag)) == new
        assert table.counts(bag) == Counts(total=10, done=5)

    def test_portions_of_several_bags_in_one_call(self, table: Table, bag: str) -> None:
        table.create_bag(a_bag("other"))
        mine, theirs = [[a_done(i, {"a": "\n"}, bag=name) for i in range(130)] for name in (bag, "other")]
        table.record([a_portion(mine[:1]), a_portion(theirs), an_expired(130), a_portion(mine[1:])])
        assert list(table.results(bag)) == [*mine, an_expired(130)]
        assert list(table.results("other")) == theirs
        assert table.counts(bag) == Counts(total=10, done=130, expired=1)

    def test_results_of_several_bags_in_one_call(self, table: Table, bag: str) -> None:
        table.create_bag(a_bag("other"))
        table.record([a_done(0), a_failed(0, bag="other"), a_done(1), a_done(1, bag="other")])
        assert table.counts(bag) == Counts(total=10, done=2)
        assert table.counts("other") == Counts(done=1, failed=1)
        assert [result.state for result in table.results("other")] == [State.FAILED, State.DONE]

    # -- reading results ----------------------------------------------------------------------------

    @pytest.mark.parametrize("value", VALUES, ids=[repr(value)[:12] for value in VALUES])
    def test_every_value_survives(self, table: Table, bag: str, value: Any) -> None:
        table.record([a_done(0, value)])
        (result,) = table.results(bag)
        assert result.value == value
        assert type(result.value) is type(value)
        assert not isinstance(value, float) or math.copysign(1, result.value) == math.copysign(1, value)

    def test_every_field_survives(self, table: Table, other_table: Table, bag: str) -> None:
        times: dict[str, Any] = {
            "queued_at": 1700000000.123,
            "started_at": 1700000001.5,
            "finished_at": 1700000002.25,
        }
        who: dict[str, Any] = {"worker": "w-1", "host": "h", "id": "sample 1/ä", "attempt": 3}
        cost: dict[str, Any] = {"wall_s": 0.75, "cpu_s": 0.5, "peak_bytes": 2**40, "exit_code": -9}
        text: dict[str, Any] = {"stdout": "out\n\x00é", "stderr": "err\r\n🦠"}
        failure = Failure(reason=Reason.SIGNAL, type="signal", message="SIGKILL\n'", traceback="")
        rows = [
            Result.failed("bag", 0, failure, **times, **who, **cost, **text),
            a_done(1, NESTED, **times, **who, **cost, **text),
            an_expired(2, "too late", **times, **who),
        ]
        table.record(rows)
        assert list(other_table.results(bag)) == rows

    def test_results_by_state_place_and_index(self, table: Table, bag: str) -> None:
        kinds = list(STATES.values())
        rows = [kinds[index % 3](index) for index in range(60)]
        table.record(rows[30:])
        table.record(list(reversed(rows[:30])))
        chosen: list[dict[str, Any]] = [
            {},
            {"states": [State.FAILED]},
            {"states": {State.DONE}},
            {"states": (State.FAILED, State.EXPIRED)},
            {"states": list(State)},
            {"after": 0},
            {"after": 41},
            {"after": 59},
            {"after": -1},
            {"indexes": [5, 3, 59, 3, 1000]},
            {"indexes": set(range(10, 50)), "states": [State.DONE], "after": 20},
            {"states": [State.EXPIRED], "after": 30},
        ]
        for choice in chosen:
            expected = [
                row
                for row in rows
                if row.state in choice.get("states", list(State))
                and row.index > choice.get("after", -1)
                and row.index in choice.get("indexes", range(60))
            ]
            assert list(table.results(bag, **choice)) == expected, choice

    def test_results_stream_while_others_write(self, table: Table, bag: str) -> None:
        count = 2500
        for start in range(0, count, 500):
            table.record([a_done(index) for index in range(start, start + 500)])
        stream = table.results(bag)
        assert next(stream).index == 0
        table.record([a_done(count)])
        assert [result.index for result in stream][: count - 1] == list(range(1, count))

    def test_recorded(self, table: Table, bag: str) -> None:
        table.record([a_done(0), a_failed(5), an_expired(70_000)])
        assert table.recorded(bag, [0, 1, 5, 70_000, 10**9]) == {0, 5, 70_000}
        assert table.recorded(bag, range(2000)) == {0, 5}
        assert table.recorded(bag, {7}) == set()

    # -- retract and attempts -----------------------------------------------------------------------

    def test_retract_takes_out_all_but_done(self, table: Table, bag: str) -> None:
        table.record([a_done(0), a_failed(1, attempt=2), an_expired(2), a_failed(3)])
        assert table.retract(bag, [0, 1, 2, 9]) == {1, 2}
        assert table.counts(bag) == Counts(total=10, done=1, failed=1)
        assert [result.index for result in table.results(bag)] == [0, 3]
        assert [result.index for result in table.results(bag, states=[State.FAILED])] == [3]
        assert table.recorded(bag, range(10)) == {0, 3}
        assert list(table.attempts(bag)) == [a_failed(1, attempt=2), an_expired(2)]
        assert table.retract(bag, [1, 2]) == set()
        table.record([a_done(1)])
        assert table.counts(bag) == Counts(total=10, done=2, failed=1)

    def test_retract_many(self, table: Table, bag: str) -> None:
        table.record([a_failed(index) if index % 3 else a_done(index) for index in range(1200)])
        assert len(table.retract(bag, range(1200))) == 800
        assert table.counts(bag) == Counts(total=10, done=400)
        assert sum(1 for _ in table.attempts(bag)) == 800

    def test_attempts_are_beside_the_rows(self, table: Table, bag: str) -> None:
        table.create_bag(a_bag("other"))
        kept = [a_failed(index, attempt=attempt) for index in range(150) for attempt in (1, 2)]
        table.keep_attempts(list(reversed(kept)))
        table.keep_attempts([a_failed(0, bag="other")])
        assert list(table.attempts(bag)) == kept
        assert list(table.attempts(bag, after=3)) == kept[8:]
        assert (list(table.results(bag)), table.recorded(bag, range(9))) == ([], set())
        assert table.counts(bag) == Counts(total=10)

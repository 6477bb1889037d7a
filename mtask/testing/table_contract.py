"""What every table must do: the sentences of `mtask.table.Table` as tests.

A backend's tests are its fixtures and one line, `class TestMine(MyFixtures, TableContract): pass`.
The fixtures are

    table           a new, empty table (required)
    other_table     the same table as another client sees it; by default the same object
    queue_beside    an empty queue in the same database, if there is such a thing
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mtask.errors import BagExistsError, BagNotFoundError
from mtask.model import BagState, Counts, DeadMessage, Failure, Reason, Result, Running, State
from mtask.queue import Queue
from mtask.table import Table
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_message, a_status, an_expired

__all__ = ["TableContract"]

NAMES = ["reads/2026-01", 'it\'s "quoted" `so`', "grüße 🦠", "a b\tc", "%s {x} $1 ?#&=", "..", "A" * 200]
NESTED = {"a": [1, None, True, {"b": [[], {}, ""]}], "é\u2028": {"": 0}, 'k"\\': "\x00🦠"}
VALUES = [None, 0, False, "", 2**63, -(2**100), 0.1, 1e-300, 1e22, 5e-324, -0.0, NESTED, "x" * 100_000]
STATES = {"done": a_done, "failed": a_failed, "expired": an_expired}


class Boom(Exception):
    """Raised to leave a transaction."""


class TableContract:
    """Tests of a table. A table that is consistent only after a while is not a table."""

    @pytest.fixture
    def other_table(self, table: Table) -> Table:
        return table

    @pytest.fixture
    def queue_beside(self) -> Queue:
        pytest.skip("no queue lives in this database")

    @pytest.fixture
    def bag(self, table: Table) -> str:
        """The name of a bag with 10 tasks."""
        table.create_bag(a_bag(total=10))
        return "bag"

    def test_it_is_a_table(self, table: Table) -> None:
        assert isinstance(table, Table)

    # -- bags ---------------------------------------------------------------------------------------

    def test_a_bag_comes_out_as_it_went_in(self, table: Table, other_table: Table) -> None:
        bag = a_bag(digest="d", source="tasks.csv", total=3, sent=1, columns=("id", "grüße"))
        table.create_bag(bag)
        assert other_table.bag("bag") == bag

    @pytest.mark.parametrize("name", NAMES)
    def test_every_name_works(self, table: Table, name: str) -> None:
        bag = a_bag(name)
        table.create_bag(bag)
        table.create_bag(a_bag("another"))
        table.put_blocks([a_block(bag=name)])
        table.record([a_done(1, "v", bag=name, id=name), a_failed(2, bag=name)])
        table.keep_attempts([a_failed(1, bag=name)])
        assert table.bag(name) == bag
        assert list(table.blocks(name)) == [a_block(bag=name)]
        assert [result.index for result in table.results(name)] == [1, 2]
        assert next(table.results(name)) == a_done(1, "v", bag=name, id=name)
        assert table.recorded(name, range(5)) == {1, 2}
        assert list(table.attempts(name)) == [a_failed(1, bag=name)]
        assert table.retract(name, [1, 2]) == {2}
        assert table.counts(name) == Counts(done=1)
        assert (list(table.results("another")), table.counts("another")) == ([], Counts())

    def test_a_name_is_taken_once(self, table: Table, bag: str) -> None:
        before = table.bag(bag)
        with pytest.raises(BagExistsError):
            table.create_bag(a_bag(bag, total=99))
        assert table.bag(bag) == before

    def test_only_one_of_many_creates_a_bag(self, table: Table, other_table: Table) -> None:
        outcomes: list[str] = []
        start = threading.Barrier(4)

        def create(mine: Table, uid: str) -> None:
            start.wait()
            try:
                mine.create_bag(a_bag(uid=uid))
                outcomes.append(uid)
            except BagExistsError:
                outcomes.append("")

        pairs = zip((table, other_table) * 2, "abcd", strict=True)
        threads = [threading.Thread(target=create, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = filter(None, outcomes)
        assert (len(outcomes), table.bag("bag").uid) == (4, winner)

    def test_bags_are_listed_oldest_first(self, table: Table) -> None:
        assert table.bags() == []
        for name, created_at in [("b", 20.0), ("c", 10.0), ("a", 30.0)]:
            table.create_bag(a_bag(name, created_at=created_at))
        assert [bag.name for bag in table.bags()] == ["c", "b", "a"]

    def test_update_sets_what_is_given(self, table: Table, bag: str) -> None:
        before = table.bag(bag)
        table.update_bag(bag, state=BagState.SEALED, total=20, sent=5, digest="new")
        expected = msgspec.structs.replace(before, state=BagState.SEALED, total=20, sent=5, digest="new")
        assert table.bag(bag) == expected
        table.update_bag(bag, state=BagState.CANCELLED)
        assert table.bags() == [msgspec.structs.replace(expected, state=BagState.CANCELLED)]

    def test_a_cancelled_bag_is_not_sealed_but_can_be_taken_up(self, table: Table, bag: str) -> None:
        table.update_bag(bag, state=BagState.CANCELLED)
        table.update_bag(bag, state=BagState.SEALED, total=30)
        assert (table.bag(bag).state, table.bag(bag).total) == (BagState.CANCELLED, 30)
        table.update_bag(bag, state=BagState.RESENDING, generation=2)
        table.update_bag(bag, state=BagState.SEALED, generation=1)
        assert (table.bag(bag).state, table.bag(bag).generation) == (BagState.SEALED, 2)

    def test_total_and_sent_never_go_down(self, table: Table, bag: str) -> None:
        table.update_bag(bag, total=20, sent=5)
        table.update_bag(bag, total=15, sent=7)
        assert (table.bag(bag).total, table.bag(bag).sent) == (20, 7)
        table.update_bag(bag, total=30, sent=0)
        assert (table.bag(bag).total, table.bag(bag).sent) == (30, 7)
        assert table.counts(bag).total == 30

    def test_an_unknown_bag(self, table: Table) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: table.bag("none"),
            lambda: table.update_bag("none", total=1),
            lambda: table.counts("none"),
            lambda: table.record([a_done(bag="none")]),
        ]
        for call in calls:
            with pytest.raises(BagNotFoundError, match="none"):
                call()
        with pytest.raises(KeyError):
            table.block("none", 0)

    # -- blocks -------------------------------------------------------------------------------------

    def test_blocks_come_in_order(self, table: Table, bag: str) -> None:
        blocks = [a_block(number) for number in range(12)]
        table.put_blocks(blocks[6:])
        table.put_blocks(blocks[:6])
        assert list(table.blocks(bag)) == blocks
        assert list(table.blocks(bag, first=9)) == blocks[9:]
        assert list(table.blocks(bag, first=12)) == []
        assert table.block(bag, 7) == blocks[7]

    def test_a_block_that_is_there_stays(self, table: Table, bag: str) -> None:
        table.put_blocks([a_block(0)])
        table.put_blocks([a_block(0, values=["other", "rows"]), a_block(1)])
        assert list(table.blocks(bag)) == [a_block(0), a_block(1)]

    def test_a_block_that_is_not_there(self, table: Table, bag: str) -> None:
        with pytest.raises(KeyError):
            table.block(bag, 0)

    def test_large_blocks_stream(self, table: Table, bag: str) -> None:
        blocks = [a_block(number, values=["x" * 40_000, number]) for number in range(150)]
        for start in range(0, 150, 25):
            table.put_blocks(blocks[start : start + 25])
        stream = table.blocks(bag)
        assert next(stream) == blocks[0]
        table.put_blocks([a_block(150)])  # writing while reading is fine
        assert list(stream)[:149] == blocks[1:]

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

    def test_results_of_several_bags_in_one_call(self, table: Table, bag: str) -> None:
        table.create_bag(a_bag("other"))
        table.record([a_done(0), a_failed(0, bag="other"), a_done(1), a_done(1, bag="other")])
        assert table.counts(bag) == Counts(total=10, done=2)
        assert table.counts("other") == Counts(done=1, failed=1)
        assert [result.state for result in table.results("other")] == [State.FAILED, State.DONE]

    def test_nothing_is_fine_everywhere(self, table: Table, bag: str) -> None:
        table.put_blocks([])
        table.record([])
        table.keep_attempts([])
        table.set_aside([])
        assert (table.recorded(bag, []), table.retract(bag, [])) == (set(), set())
        assert list(table.results(bag, indexes=[])) == list(table.results(bag, states=[])) == []

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
        count = 5000
        for start in range(0, count, 1000):
            table.record([a_done(index) for index in range(start, start + 1000)])
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
        table.record([a_failed(index) if index % 3 else a_done(index) for index in range(3000)])
        assert len(table.retract(bag, range(3000))) == 2000
        assert table.counts(bag) == Counts(total=10, done=1000)
        assert sum(1 for _ in table.attempts(bag)) == 2000

    def test_attempts_are_beside_the_rows(self, table: Table, bag: str) -> None:
        table.create_bag(a_bag("other"))
        kept = [a_failed(index, attempt=attempt) for index in range(150) for attempt in (1, 2)]
        table.keep_attempts(list(reversed(kept)))
        table.keep_attempts([a_failed(0, bag="other")])
        assert list(table.attempts(bag)) == kept
        assert list(table.attempts(bag, after=3)) == kept[8:]
        assert (list(table.results(bag)), table.recorded(bag, range(9))) == ([], set())
        assert table.counts(bag) == Counts(total=10)

    # -- workers and dead messages ------------------------------------------------------------------

    def test_the_last_beat_of_each_worker(self, table: Table, other_table: Table) -> None:
        assert table.workers() == []
        running = (Running(bag="bag", index=4, since=1.5),)
        table.beat(a_status("w/ö", started_at=20.0))
        table.beat(a_status("v", started_at=10.0, running=running))
        table.beat(a_status("w/ö", started_at=20.0, done=5, state="stopped"))
        first, second = other_table.workers()
        assert (first.worker, first.running, first.state) == ("v", running, "working")
        assert (second.worker, second.done, second.state) == ("w/ö", 5, "stopped")

    def test_a_beat_is_stamped(self, table: Table) -> None:
        table.beat(a_status(beat_at=1.0))
        assert abs(table.workers()[0].beat_at - time.time()) < 60

    def test_dead_messages_are_kept(self, table: Table, other_table: Table) -> None:
        dead = [
            DeadMessage(body=bytes(range(256)), reason="not JSON: 'ü'", worker="w", at=float(number))
            for number in range(3)
        ]
        table.set_aside(dead[:2])
        table.set_aside(dead[2:])
        assert list(other_table.dead()) == dead

    # -- both at once -------------------------------------------------------------------------------

    def test_what_a_transaction_did_is_there(self, table: Table, queue_beside: Queue, bag: str) -> None:
        with table.transaction(queue_beside):
            table.record([a_done(0)])
            queue_beside.send([a_message()])
            assert table.counts(bag).done == 1
        assert table.counts(bag).done == 1
        assert len(queue_beside.receive(max_messages=5, lease_s=60, wait_s=0)) == 1

    def test_a_transaction_that_fails_did_nothing(self, table: Table, queue_beside: Queue, bag: str) -> None:
        queue_beside.send([a_message()])
        held = queue_beside.receive(max_messages=1, lease_s=60, wait_s=0)
        with pytest.raises(Boom), table.transaction(queue_beside):
            table.record([a_done(0), a_failed(1)])
            table.create_bag(a_bag("other"))
            table.record([a_done(0, bag="other")])
            queue_beside.delete(held)
            queue_beside.send([a_message(1)])
            with table.transaction(queue_beside):  # joins the outer one
                table.update_bag(bag, sent=9)
            raise Boom
        assert (list(table.results(bag)), table.counts(bag), table.bag(bag).sent) == ([], Counts(total=10), 0)
        assert [known.name for known in table.bags()] == [bag]
        with pytest.raises(BagNotFoundError):
            table.record([a_done(0, bag="other")])
        assert len(queue_beside.extend(held, lease_s=60).extended) == 1
        assert queue_beside.receive(max_messages=5, lease_s=60, wait_s=0) == []

    def test_others_see_nothing_of_a_transaction_before_its_end(
        self, table: Table, queue_beside: Queue, bag: str
    ) -> None:
        seen: list[int] = []
        with table.transaction(queue_beside):
            table.record([a_done(0)])
            thread = threading.Thread(target=lambda: seen.append(table.counts(bag).done))
            thread.start()
            thread.join()
        assert (seen, table.counts(bag).done) == ([0], 1)

"""What every table must do: the sentences of `mtask.table.Table` as tests.

A backend's tests are its fixtures and one line, `class TestMine(MyFixtures, TableContract): pass`.
The fixtures are

    table           a new, empty table (required)
    other_table     the same table as another client sees it; by default the same object
    queue_beside    an empty queue in the same database, if there is such a thing
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.errors import BagExistsError, BagNotFoundError, SchemaError
from mtask.heartbeat import Running
from mtask.model import BagState, Counts, DeadMessage
from mtask.queue import Queue
from mtask.registry import open_queue
from mtask.requirements import Lane, Requirements
from mtask.table import Table
from mtask.testing.open_contract import OpenBagsContract
from mtask.testing.results_contract import ResultsContract
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_lane, a_message, a_status

__all__ = ["TableContract"]

NAMES = ["reads/2026-01", 'it\'s "quoted" `so`', "grüße 🦠", "a b\tc", "%s {x} $1 ?#&=", "..", "A" * 200]
LANES = (
    a_lane(),
    Lane.of(
        -9,
        Requirements(cpus=0.5, memory_bytes=2**40, gpus=2, tags=("blast", "!slow"), only_on=("ü", "eu/1")),
        uid="0123456789ab",
        max_running=3,
        rate=0.1,
    ),
)


class Boom(Exception):
    """Raised to leave a transaction."""


class TableContract(ResultsContract, OpenBagsContract):
    """Tests of a table. A table that is consistent only after a while is not a table."""

    @pytest.fixture
    def queue_beside(self) -> Queue:
        pytest.skip("no queue lives in this database")

    def test_it_is_a_table(self, table: Table) -> None:
        assert isinstance(table, Table)

    # -- bags ---------------------------------------------------------------------------------------

    def test_a_bag_comes_out_as_it_went_in(self, table: Table, other_table: Table) -> None:
        bag = a_bag(
            digest="d",
            source="tasks.csv",
            total=3,
            sent=1,
            endless=True,
            columns=("id", "grüße"),
            lanes=LANES,
        )
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

    def test_a_bag_that_cant_be_read_is_an_error_or_told_and_left_out(self, table: Table) -> None:
        newer = a_bag("newer", created_at=20.0)
        msgspec.structs.force_setattr(newer.spec, "kind", "dream")
        for bag in (a_bag("b", created_at=30.0), newer, a_bag("a", created_at=10.0)):
            table.create_bag(bag)
        for read in (table.bags, lambda: table.bag("newer")):
            with pytest.raises(SchemaError, match="newer mtask may have made it"):
                read()
        skipped: list[SchemaError] = []
        assert [bag.name for bag in table.bags(skipped=skipped.append)] == ["a", "b"]
        assert ["newer mtask may have made it" in str(error) for error in skipped] == [True]

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

    def test_a_block_keeps_its_lane_and_what_follows_it(self, table: Table, bag: str) -> None:
        fields: list[dict[str, Any]] = [{"lane": "c0ffee"}, {"then": 0}, {"lane": "1", "then": 2**31}]
        blocks = [a_block(number, **each) for number, each in enumerate(fields)]
        table.put_blocks(blocks)
        assert list(table.blocks(bag)) == blocks
        assert [table.block(bag, number) for number in range(3)] == blocks

    def test_large_blocks_stream(self, table: Table, bag: str) -> None:
        blocks = [a_block(number, values=["x" * 40_000, number]) for number in range(150)]
        for start in range(0, 150, 25):
            table.put_blocks(blocks[start : start + 25])
        stream = table.blocks(bag)
        assert next(stream) == blocks[0]
        table.put_blocks([a_block(150)])  # writing while reading is fine
        assert list(stream)[:149] == blocks[1:]

    def test_nothing_is_fine_everywhere(self, table: Table, bag: str) -> None:
        table.put_blocks([])
        table.put_lanes([])
        table.record([])
        table.keep_attempts([])
        table.set_aside([])
        assert (table.recorded(bag, []), table.retract(bag, [])) == (set(), set())
        assert list(table.results(bag, indexes=[])) == list(table.results(bag, states=[])) == []

    # -- lanes --------------------------------------------------------------------------------------

    def listed(self, table: Table) -> dict[str, Lane]:
        return {lane.name: lane for lane, _ in table.lanes()}

    def test_lanes_come_out_as_they_went_in(self, table: Table, other_table: Table) -> None:
        assert table.lanes() == []
        table.put_lanes(LANES)
        assert sorted(self.listed(other_table).values(), key=lambda lane: lane.priority) == list(
            reversed(LANES)
        )
        assert all(-1 < age_s < 60 for _, age_s in other_table.lanes())

    def test_a_lane_put_again_is_as_if_new(self, table: Table, other_table: Table) -> None:
        def ages_s() -> dict[str, float]:
            return {lane.name: age_s for lane, age_s in other_table.lanes()}

        one, two = (lane.name for lane in LANES)
        table.put_lanes(LANES)
        before = ages_s()
        deadline = time.monotonic() + 60
        while ages_s()[one] < before[one] + 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        table.put_lanes(LANES[:1])
        after = ages_s()
        assert len(table.lanes()) == 2
        assert after[one] < after[two] - 0.5

    def test_a_lane_is_removed(self, table: Table, other_table: Table) -> None:
        table.put_lanes(LANES)
        assert not other_table.remove_lane(LANES[0].name, unused_s=60), "it was put just now"
        assert len(self.listed(table)) == 2
        assert other_table.remove_lane(LANES[0].name)
        assert list(self.listed(table).values()) == [LANES[1]]
        assert not table.remove_lane(LANES[0].name)
        assert not table.remove_lane("unknown")
        table.put_lanes(LANES[:1])
        assert len(self.listed(other_table)) == 2

    # -- what workers agree on ----------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["limit/c0ffee", "a/b//c", "ü ?#%"])
    def test_a_document_is_swapped(self, table: Table, other_table: Table, key: str) -> None:
        assert table.shared(key) == (b"", 0)
        versions = [0]
        for value in (b"one", bytes(range(256)) * 240, b"", b"one"):  # 60 KiB of any bytes
            assert table.swap(key, value, versions[-1])
            found, version = other_table.shared(key)
            assert found == value
            assert version not in versions
            versions.append(version)
        assert table.shared(f"{key}/") == (b"", 0)

    def test_a_stale_swap_changes_nothing(self, table: Table, other_table: Table) -> None:
        assert table.swap("key", b"one", 0)
        first = table.shared("key")
        assert not other_table.swap("key", b"other", 0)
        assert table.shared("key") == first
        assert other_table.swap("key", b"two", first[1])
        second = table.shared("key")
        for version in (0, first[1], second[1] + 1):
            assert not table.swap("key", b"stale", version)
        assert table.shared("key") == second
        assert not table.swap("another", b"stale", 1)
        assert table.shared("another") == (b"", 0)

    def test_no_count_is_lost(self, table: Table, other_table: Table) -> None:
        def count(mine: Table) -> None:
            for _ in range(25):
                while True:
                    value, version = mine.shared("count")
                    if mine.swap("count", b"%d" % (int(value or b"0") + 1), version):
                        break

        threads = [threading.Thread(target=count, args=(mine,)) for mine in (table, other_table)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert table.shared("count")[0] == b"50"

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
        assert not isinstance(table.transaction(queue_beside), nullcontext)
        with table.transaction(queue_beside):
            table.record([a_done(0)])
            queue_beside.send([a_message()])
            assert table.counts(bag).done == 1
        assert table.counts(bag).done == 1
        assert len(queue_beside.receive(max_messages=5, lease_s=60, wait_s=0)) == 1

    def test_without_a_common_database_there_is_no_transaction(self, table: Table, tmp_path: Path) -> None:
        """By that a worker knows how long it has to keep leases."""
        url = f"sqlite:///{tmp_path}/another.db"
        with closing(open_queue(url)) as elsewhere:
            assert isinstance(table.transaction(elsewhere), nullcontext)

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

    def test_lanes_and_documents_are_part_of_a_transaction(self, table: Table, queue_beside: Queue) -> None:
        with closing(queue_beside.lane("c0ffee")) as lane:
            with pytest.raises(Boom), table.transaction(queue_beside):
                lane.send([a_message()])
                table.put_lanes(LANES)
                assert table.swap("key", b"one", 0)
                raise Boom
            assert lane.receive(max_messages=5, lease_s=60, wait_s=0) == []
            assert (table.lanes(), table.shared("key")) == ([], (b"", 0))
            with table.transaction(queue_beside):
                lane.send([a_message()])
            assert len(lane.receive(max_messages=5, lease_s=60, wait_s=0)) == 1

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

"""One queue made of several, over real queues in a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mtask.errors import BackendError, SendError, UnavailableError
from mtask.lanes import Lanes
from mtask.model import Delivery
from mtask.queue import Depth, Queue
from mtask.requirements import DEFAULT_LANE, Lane, Requirements, front_of
from mtask.table import Table
from mtask.testing.faults import Faults, FaultyQueue, FaultyTable
from mtask.testing.samples import a_lane, a_message, index_of
from mtask_sqlite import SqliteQueue, open_queue, open_table

NAMES = ("", "a", "b")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tasks.db"


@pytest.fixture
def lanes(url: str) -> Iterator[Lanes]:
    with closing(Lanes(open_queue(url))) as lanes:
        yield lanes


@pytest.fixture
def other(url: str) -> Iterator[SqliteQueue]:
    """The queue itself, as somebody else opened it."""
    with closing(open_queue(url)) as queue:
        yield queue


def fill(lanes: Lanes) -> None:
    """Two messages in each lane, sent all at once: 0, 3 in the first; 1, 4; 2, 5."""
    lanes.send([a_message(index, lane=NAMES[index % 3]) for index in range(6)])


def taken_from(queue: Queue) -> list[int]:
    return [index_of(each) for each in queue.receive(max_messages=9, lease_s=60, wait_s=0)]


def hold_all(lanes: Lanes) -> list[Delivery]:
    """All messages, in order of their indexes, so that no two of a lane are side by side."""
    held = [d for name in NAMES for d in lanes.receive(max_messages=9, lease_s=60, wait_s=0, lane=name)]
    return sorted(held, key=index_of)


class Broken:
    """A queue whose lane `a` doesn't answer while `on` is set, and whose lane `slow` opens only when it may."""

    def __init__(self, queue: SqliteQueue) -> None:
        self.queue = queue
        self.on = False
        self.opening, self.may_open = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue, name)

    def lane(self, name: str) -> Any:
        if name == "slow":
            self.opening.set()
            self.may_open.wait(30)
        return BrokenLane(self, self.queue.lane(name)) if name == "a" else self.queue.lane(name)


class BrokenLane:
    def __init__(self, main: Broken, lane: SqliteQueue) -> None:
        self.main, self.queue = main, lane

    def __getattr__(self, name: str) -> Any:
        if self.main.on and name != "close":
            raise UnavailableError("no answer")
        return getattr(self.queue, name)


@pytest.fixture
def broken(url: str) -> Iterator[tuple[Lanes, Broken]]:
    main = Broken(open_queue(url))
    with closing(Lanes(main)) as lanes:
        yield lanes, main


# -- where things go ------------------------------------------------------------------------------------


def test_it_is_a_queue(lanes: Lanes) -> None:
    assert isinstance(lanes, Queue)
    assert lanes.limits == SqliteQueue.limits


def test_messages_go_where_they_say(lanes: Lanes, other: SqliteQueue) -> None:
    fill(lanes)
    assert taken_from(other) == [0, 3]
    for number, name in enumerate(NAMES[1:], 1):
        with closing(other.lane(name)) as lane:
            assert taken_from(lane) == [number, number + 3]


def test_a_delay_holds_in_every_lane(lanes: Lanes) -> None:
    lanes.send([a_message(index, lane=name) for index, name in enumerate(NAMES)], delay_s=60)
    assert lanes.depth(NAMES) == (0, 0, 3)


def test_deliveries_come_from_the_lane_asked_for_and_say_so(lanes: Lanes) -> None:
    fill(lanes)
    assert [(d.lane, index_of(d)) for d in hold_all(lanes)] == [(NAMES[i % 3], i) for i in range(6)]
    assert lanes.receive(max_messages=9, lease_s=60, wait_s=0) == []


def test_a_mixed_batch_is_deleted(lanes: Lanes) -> None:
    fill(lanes)
    held = hold_all(lanes)
    lanes.delete(held[1:])
    assert lanes.depth(NAMES) == (0, 1, 0)
    lanes.delete(held[:1])
    assert lanes.depth(NAMES) == (0, 0, 0)


def test_a_mixed_batch_is_given_back(lanes: Lanes) -> None:
    fill(lanes)
    held = hold_all(lanes)
    lanes.release(held[:3])
    lanes.release(held[3:], delay_s=60)
    assert [lanes.depth([name]) for name in NAMES] == [(1, 0, 1)] * 3
    assert [index_of(d) for d in hold_all(lanes)] == [0, 1, 2]


def test_a_mixed_batch_is_extended(lanes: Lanes) -> None:
    fill(lanes)
    held = hold_all(lanes)
    lanes.delete(held[:2])
    extended, lost = lanes.extend(held, lease_s=60)
    assert lost == held[:2]
    assert sorted((index_of(old), old.lane) for old, _ in extended) == [
        (i, NAMES[i % 3]) for i in (2, 3, 4, 5)
    ]
    assert all(old in held and new.lane == old.lane and new.token != old.token for old, new in extended)
    lanes.delete(held)  # the old tokens are void
    assert lanes.depth(NAMES) == (0, 4, 0)
    lanes.delete([new for _, new in extended])
    assert lanes.depth(NAMES) == (0, 0, 0)


def test_depth_over_several(lanes: Lanes) -> None:
    fill(lanes)
    assert lanes.depth() == (2, 0, 0)
    assert lanes.depth(["a", "b"]) == (4, 0, 0)
    assert lanes.depth([]) == (0, 0, 0)


def test_depth_that_one_of_them_does_not_know(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lanes)
    monkeypatch.setattr(lanes.lane("b"), "depth", lambda: Depth(2, None, None))
    assert lanes.depth(NAMES) == (6, None, None)


# -- faults ---------------------------------------------------------------------------------------------


def test_what_was_not_sent_is_named_of_all_lanes(lanes: Lanes) -> None:
    spare = lanes.limits.message_bytes - len(a_message(value="").encode())
    big = [a_message(index, value="x" * spare, lane=name) for index, name in enumerate("ab")]
    with pytest.raises(SendError) as caught:
        lanes.send([big[0], a_message(2, lane="a"), a_message(3, lane="b"), big[1], a_message(4)])
    assert [message for message, _ in caught.value.unsent] == big
    assert sorted(map(index_of, hold_all(lanes))) == [2, 3, 4]


def test_a_fault_of_one_lane_loses_no_new_token_of_another(broken: tuple[Lanes, Broken]) -> None:
    lanes, main = broken
    fill(lanes)
    held = hold_all(lanes)
    lanes.delete(held[2:3])
    main.on = True
    extended, lost = lanes.extend(held, lease_s=60)
    main.on = False
    assert sorted(index_of(old) for old, _ in extended) == [0, 3, 5]
    assert [id(delivery) for delivery in lost] == [id(held[2])]
    assert {id(old) for old, _ in extended} == {id(held[index]) for index in (0, 3, 5)}
    lanes.delete([new for _, new in extended] + [held[1], held[4]])
    assert lanes.depth(NAMES) == (0, 0, 0)


def test_a_fault_of_all_is_raised(broken: tuple[Lanes, Broken]) -> None:
    lanes, main = broken
    fill(lanes)
    held = [each for each in hold_all(lanes) if each.lane == "a"]
    main.on = True
    with pytest.raises(UnavailableError):
        lanes.extend(held, lease_s=60)


@pytest.mark.parametrize("settle", ["delete", "release"])
def test_a_fault_of_one_lane_keeps_no_other_from_being_settled(
    broken: tuple[Lanes, Broken], settle: str
) -> None:
    lanes, main = broken
    fill(lanes)
    held = hold_all(lanes)
    main.on = True
    with pytest.raises(UnavailableError):
        getattr(lanes, settle)([held[1], held[0], held[2]])
    main.on = False
    left = (0, 4, 0) if settle == "delete" else (2, 4, 0)
    assert lanes.depth(NAMES) == left
    assert lanes.depth("a") == (0, 2, 0)


def test_a_lane_that_opens_slowly_holds_up_no_other(broken: tuple[Lanes, Broken]) -> None:
    lanes, main = broken
    fill(lanes)
    held = hold_all(lanes)
    thread = threading.Thread(target=lambda: lanes.lane("slow"))
    thread.start()
    assert main.opening.wait(30)
    settled: list[bool] = []
    other = threading.Thread(target=lambda: settled.append(lanes.delete(held) is None))
    other.start()
    other.join(10)
    in_time = bool(settled)
    main.may_open.set()
    other.join()
    thread.join()
    assert in_time


def test_threads_that_open_the_same_lane_share_it(broken: tuple[Lanes, Broken]) -> None:
    lanes, main = broken
    opened: list[Queue] = []
    threads = [threading.Thread(target=lambda: opened.append(lanes.lane("slow"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    main.may_open.set()
    for thread in threads:
        thread.join()
    assert [each is lanes.lane("slow") for each in opened] == [True] * 4


# -- lanes that go --------------------------------------------------------------------------------------


def test_a_lane_is_removed_when_it_is_empty(lanes: Lanes) -> None:
    fill(lanes)
    held = hold_all(lanes)
    assert not lanes.remove_lane("a")
    lanes.delete(held)
    before = lanes.lane("a")
    assert lanes.remove_lane("a")
    with pytest.raises(BackendError, match="closed"):
        before.depth()
    fill(lanes)  # it is made again
    assert [index_of(d) for d in hold_all(lanes)] == list(range(6))


def test_lanes_that_are_empty_and_old_are_taken_away(lanes: Lanes, url: str) -> None:
    used, empty = (Lane.of(0, Requirements(gpus=gpus)) for gpus in (1, 2))
    with closing(open_table(url)) as table:
        table.put_lanes([used, empty])
        lanes.lane(used.name).send([a_message(0)])
        assert lanes.clean(table, unused_s=3600) == []
        assert lanes.clean(table, unused_s=0) == [empty.name]
        assert [lane for lane, _ in table.lanes()] == [used]
        assert lanes.depth([used.name]) == (1, 0, 0)


def test_a_lane_that_was_never_used_is_removed(lanes: Lanes) -> None:
    assert lanes.remove_lane("a")


def test_the_queue_itself_is_no_lane_to_remove(lanes: Lanes) -> None:
    assert not lanes.remove_lane("")
    fill(lanes)
    assert lanes.depth(NAMES) == (6, 0, 0)


def test_close_closes_all(url: str) -> None:
    lanes = Lanes(open_queue(url))
    queues = [lanes.lane(name) for name in NAMES]
    lanes.close()
    for queue in queues:
        with pytest.raises(BackendError, match="closed"):
            queue.depth()
    with pytest.raises(BackendError, match="closed"):
        lanes.lane("new")


def test_over_makes_no_lanes_of_lanes(lanes: Lanes, other: SqliteQueue) -> None:
    assert Lanes.over(lanes) is lanes
    assert Lanes.over(other).main is other


# -- with faults, and written together with a table -----------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["faulty queue in lanes", "lanes made faulty"])
def test_lanes_of_a_faulty_queue_are_faulty(url: str, tmp_path: Path, inside: bool) -> None:
    faults = Faults(down=tmp_path)
    queue = open_queue(url)
    lanes: Any = Lanes(FaultyQueue(queue, faults)) if inside else FaultyQueue(Lanes(queue), faults)
    with closing(lanes):
        fill(lanes)
        held = hold_all(lanes)
        (tmp_path / "queue").touch()
        for delivery in held[:3]:
            with pytest.raises(UnavailableError, match="as the test wants"):
                lanes.delete([delivery])
        with pytest.raises(UnavailableError):
            lanes.lane("a").remove()
        (tmp_path / "queue").unlink()
        lanes.delete(held)
        assert lanes.remove_lane("a")
        assert faults.points.count("after queue.send") == 3
        assert faults.points[-1] == "after queue.remove"


def test_a_lane_is_listed_when_it_is_used_and_with_its_messages_only(url: str) -> None:
    front = front_of(DEFAULT_LANE)
    message = a_message(1, lane=front.name)
    with closing(open_table(url)) as table, closing(Lanes(open_queue(url))) as lanes:
        lanes.list_when_used(front, table)
        lanes.send([a_message(0)])
        assert table.lanes() == []
        with pytest.raises(RuntimeError), table.transaction(lanes):
            lanes.send([message])
            raise RuntimeError
        assert (table.lanes(), lanes.depth([front.name])) == ([], (0, 0, 0))
        with table.transaction(lanes):
            lanes.send([message])
        assert [lane for lane, _ in table.lanes()] == [front]
        assert lanes.depth([front.name]) == (1, 0, 0)


def test_lanes_are_listed_all_at_once(url: str) -> None:
    """One by one, two who send to the same ones would wait for each other in a table that locks them."""
    fronts = [front_of(lane) for lane in (a_lane(2), a_lane(1))]
    with closing(open_table(url)) as table, closing(Lanes(open_queue(url))) as lanes:
        listed: list[list[Lane]] = []
        real = table.put_lanes
        table.put_lanes = lambda found: (listed.append(list(found)), real(found))[1]  # type: ignore[method-assign,func-returns-value]
        for front in fronts:
            lanes.list_when_used(front, table)
        lanes.send([a_message(number, lane=front.name) for number, front in enumerate(fronts)])
        assert listed == [fronts]


def test_what_cant_be_listed_is_not_sent(url: str) -> None:
    front = front_of(DEFAULT_LANE)

    class Away:
        def put_lanes(self, lanes: list[Lane]) -> None:
            raise UnavailableError("away")

    table: Any = Away()
    with closing(Lanes(open_queue(url))) as lanes:
        lanes.list_when_used(front, table)
        with pytest.raises(UnavailableError):
            lanes.send([a_message(1, lane=front.name)])
        assert lanes.depth([front.name]) == (0, 0, 0)


@pytest.mark.parametrize("faulty", [False, True])
def test_all_lanes_take_part_in_a_transaction(url: str, faulty: bool) -> None:
    queue: Queue = open_queue(url)
    table: Table = open_table(url)
    if faulty:
        faults = Faults(together=True)
        queue, table = FaultyQueue(queue, faults), FaultyTable(table, faults)
    with closing(table), closing(Lanes(queue)) as lanes:
        with pytest.raises(RuntimeError), table.transaction(lanes):
            fill(lanes)
            assert table.swap("key", b"", 0)
            raise RuntimeError
        assert (lanes.depth(NAMES), table.shared("key")) == ((0, 0, 0), (b"", 0))


def test_writes_of_a_faulty_table_are_points(url: str) -> None:
    faults = Faults()
    with closing(FaultyTable(open_table(url), faults)) as table:
        table.put_lanes([a_lane()])
        table.swap("key", b"", 0)
        table.remove_lane(a_lane().name)
    names = ("put_lanes", "swap", "remove_lane")
    assert faults.points == [f"{when} table.{name}" for name in names for when in ("before", "after")]

"""Rooms, requirements and turns: nobody runs what it can't, and nothing waits for ever."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.requirements import (
    DEFAULT_LANE,
    Capabilities,
    Lane,
    Requirements,
    parse_priority,
    parse_size,
    parse_tags,
    size_text,
)
from mtask.worker.room import Room, Share
from mtask.worker.turns import LOWER_FIRST, PATIENCE_S, STAY_S, Turns

TAGS = st.sets(st.sampled_from(["blast", "eu", "spot", "big"])).map(tuple)
NEEDS = st.builds(
    Requirements,
    cpus=st.sampled_from([0.1, 0.25, 0.3, 1, 2, 3, 4]),
    memory_bytes=st.sampled_from([0, 1, 5, 10]),
    gpus=st.sampled_from([0, 0, 1, 2]),
)
HOSTS = st.builds(
    Capabilities,
    cpus=st.sampled_from([1, 2, 4, 5.5]),
    memory_bytes=st.sampled_from([0, 5, 10, 20]),
    gpus=st.sampled_from([(), ("0",), ("0", "1"), ("a", "b", "c")]),
)


@given(total=HOSTS, slots=st.integers(1, 6), steps=st.lists(st.tuples(NEEDS, st.integers(0, 20))))
def test_a_host_is_never_overcommitted_and_every_gpu_has_one_task(
    total: Capabilities, slots: int, steps: list[tuple[Requirements, int]]
) -> None:
    room = Room(total, slots, cores=range(math.ceil(total.cpus)))
    taken: list[Share] = []
    for needs, back in steps:
        if back < len(taken):
            room.give(taken.pop(back))
        copies = room.copies(needs)
        share = room.take(needs)
        assert (share is None) == (copies == 0)
        if share is not None:
            taken.append(share)
            assert (share.cpus, share.memory_bytes, len(share.gpus)) == (
                needs.cpus,
                needs.memory_bytes,
                needs.gpus,
            )
            assert len(share.cores) == min(math.ceil(needs.cpus), math.ceil(total.cpus))
        assert len(taken) <= slots
        assert sum(share.cpus for share in taken) <= total.cpus + 1e-6
        assert sum(share.memory_bytes for share in taken) <= total.memory_bytes
        gpus = Counter(gpu for share in taken for gpu in share.gpus)
        assert set(gpus) <= set(total.gpus)
        assert max(gpus.values(), default=1) == 1
    for share in taken:
        room.give(share)
    assert room.space() == (slots, total.cpus, total.memory_bytes, len(total.gpus))


def test_ten_tenths_of_a_cpu_are_one() -> None:
    room = Room(Capabilities(cpus=1), 20)
    tenth = Requirements(cpus=0.1)
    assert [room.take(tenth) is not None for _ in range(11)] == [True] * 10 + [False]


def test_pinned_tasks_have_cores_of_their_own() -> None:
    room = Room(Capabilities(cpus=4), 4, cores=range(4))
    shares = [room.take(Requirements(cpus=2)), room.take(Requirements()), room.take(Requirements())]
    assert sorted(core for share in shares if share for core in share.cores) == [0, 1, 2, 3]


def test_a_slot_gets_the_same_gpus_again_if_they_are_free() -> None:
    room = Room(Capabilities(cpus=4, gpus=("0", "1", "2")), 4)
    share = room.take(Requirements(gpus=1), prefer_gpus=("2",))
    assert share is not None
    assert share.gpus == ("2",)


@pytest.mark.parametrize(
    ("needs", "lacks"),
    [
        ({}, ""),
        ({"cpus": 8}, "cpus=8"),
        ({"memory_bytes": 2 * 10**9}, "memory=2GB"),
        ({"gpus": 1}, "gpus=1"),
        ({"tags": ("eu", "blast")}, "the tag blast"),
        ({"tags": ("eu", "!spot")}, ""),
        ({"tags": ("!eu",)}, "a worker without the tag eu"),
        ({"only_on": ("us", "eu")}, ""),
        ({"only_on": ("us", "asia")}, "one of the tags asia, us"),
    ],
)
def test_what_a_worker_lacks(needs: dict[str, object], lacks: str) -> None:
    host = Capabilities(cpus=4, memory_bytes=10**9, tags=("eu",))
    assert host.lacks(Requirements(**needs)) == lacks  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus": 0},
        {"cpus": -1},
        {"cpus": math.nan},
        {"cpus": math.inf},
        {"memory_bytes": -1},
        {"gpus": -1},
        {"tags": ("a b",)},
        {"tags": ("",)},
        {"only_on": ("!eu",)},
    ],
)
def test_requirements_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Requirements(**wrong)  # type: ignore[arg-type]


def test_the_same_requirements_make_the_same_lane() -> None:
    one = Lane.of(0, Requirements(tags=("b", "a", "b")))
    assert one == Lane.of(0, Requirements(tags=("a", "b")))
    assert len({one.name, Lane.of(1, one.requires).name, Lane.of(0, Requirements(gpus=1)).name}) == 3
    assert Lane.of(0, Requirements()) == DEFAULT_LANE
    assert Lane.of(0, Requirements(), uid="bag") == DEFAULT_LANE, "which limits nothing"
    limited = [Lane.of(0, Requirements(), uid=uid, max_running=3).name for uid in ("a", "b", "")]
    assert len({*limited, ""}) == 4
    assert all(name.isalnum() for name in limited)


@given(st.integers(0, 10**15))
def test_sizes_are_read_as_they_are_written(size_bytes: int) -> None:
    assert parse_size(size_text(size_bytes)) == pytest.approx(size_bytes, rel=0.005)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "8 GB RAM", "GB", "nan", "1XB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_priorities_and_tags_from_text() -> None:
    assert [parse_priority(text) for text in ("high", " Normal", "low", "3", -9)] == [1, 0, -1, 3, -9]
    for wrong in ("10", "urgent", "", "1.5"):
        with pytest.raises(ValueError, match="is not a priority"):
            parse_priority(wrong)
    assert parse_tags("blast, eu !spot,") == ("blast", "eu", "!spot")
    with pytest.raises(ValueError, match="can't be a tag"):
        parse_tags("a,b*")


# Turns.

HIGH, LOW = Lane.of(1, Requirements()), Lane.of(-1, Requirements())


def served(turns: Turns, lanes: list[Lane], messages: int) -> list[int]:
    """The priorities of the lanes that messages come from when none is ever empty."""
    found = []
    for _ in range(messages):
        lane = turns.order(lanes)[0]
        turns.received(lane, 1)
        found.append(lane.priority)
    return found


def test_higher_priorities_come_first_and_lower_ones_get_their_share() -> None:
    found = Counter(served(Turns(), [LOW, DEFAULT_LANE, HIGH], 1000))
    assert found[1] == pytest.approx(1000 * (1 - 1 / LOWER_FIRST), abs=2)
    assert found[0] == pytest.approx(found[-1], abs=1)
    assert found[0] + found[-1] == pytest.approx(1000 / LOWER_FIRST, abs=2)


def test_the_lowest_get_their_share_beside_the_middle_when_nothing_is_above_them() -> None:
    turns, found = Turns(), Counter[int]()
    for _ in range(1000):
        for lane in turns.order([LOW, DEFAULT_LANE, HIGH]):
            if lane != HIGH:
                turns.received(lane, 1)
                found[lane.priority] += 1
                break
            turns.empty(lane)
    assert found[-1] == pytest.approx(1000 / LOWER_FIRST, abs=2)


def test_lanes_of_one_priority_take_turns() -> None:
    lanes = [Lane.of(0, Requirements(cpus=cpus)) for cpus in (1, 2, 3)]
    now_s = 0.0
    turns = Turns(lambda: now_s)
    for _ in range(5):
        first = turns.order(lanes)[0]
        turns.received(first, 7)
        now_s += STAY_S
        assert turns.order(lanes)[-1] == first


def test_a_lane_keeps_its_turn_for_a_while_before_one_whose_tasks_need_something_else() -> None:
    """But not before those of a higher priority, nor longer because there is always something in it."""
    lanes = [Lane.of(0, Requirements(cpus=cpus)) for cpus in (1, 2, 3)]
    same = Lane.of(0, lanes[1].requires, uid="a", rate=5)
    now_s = 0.0
    turns = Turns(lambda: now_s)
    turns.received(lanes[1], 1)
    for _ in range(3):
        assert turns.order([*lanes, HIGH])[:2] == [HIGH, lanes[1]]
        assert turns.order([*lanes, same])[:2] == [same, lanes[1]], "which need the same: in turn"
        turns.received(lanes[1], 1)
        now_s += STAY_S / 3 - 0.01
    now_s = STAY_S
    assert turns.order(lanes)[-1] == lanes[1]


def test_for_a_lane_that_is_passed_over_for_long_room_is_made() -> None:
    now_s = 0.0
    turns = Turns(lambda: now_s)
    assert not turns.pass_over(LOW)
    now_s = PATIENCE_S - 0.1
    assert not turns.pass_over(LOW)
    now_s = PATIENCE_S
    assert turns.pass_over(LOW)
    turns.empty(LOW)
    assert not turns.pass_over(LOW), "it had nothing: the time begins anew"

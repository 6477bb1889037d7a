from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import MessageError
from mtask.model import Block, Message
from mtask.packing import (
    BLOCK_BYTES,
    LONGEST_S,
    MOST,
    SHARE,
    auto_count,
    fit,
    join_rows,
    pack,
    piece_size,
    single,
    slice_message,
    split_rows,
    unfold,
)
from mtask.testing.samples import a_bag

values = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.text(max_size=30))
rows_of_json = st.lists(st.lists(values, max_size=3).map(msgspec.json.encode), max_size=60)


@given(rows_of_json, st.one_of(st.none(), st.integers(1, 20)), st.integers(20, 300), st.integers(0, 5000))
def test_blocks_partition_the_rows_in_order(
    rows: list[bytes], per_message: int | None, block_bytes: int, first: int
) -> None:
    packed = list(pack(rows, per_message=per_message, first=first, block_bytes=block_bytes))

    assert [row for _, _, block in packed for row in map(bytes, split_rows(block))] == rows
    at = first
    for start, count, block in packed:
        assert (start, count) == (at, len(split_rows(block)))
        assert 1 <= count <= (per_message or auto_count(start))
        assert len(block) <= block_bytes or count == 1
        at += count


@given(rows_of_json)
def test_the_rows_alone_decide(rows: list[bytes]) -> None:
    whole = list(pack(rows, block_bytes=100))

    assert list(pack(iter(rows), block_bytes=100)) == whole
    # An interrupted submit goes on in the middle and packs the same blocks.
    for first, _, _ in whole:
        assert list(pack(rows[first:], first=first, block_bytes=100)) == [b for b in whole if b[0] >= first]


def test_five_hundred_small_tasks_are_five_hundred_messages() -> None:
    assert len(list(pack([b"[1]"] * 500))) == 500


def test_a_million_small_tasks_are_some_thousand_messages() -> None:
    blocks, first = 0, 0
    while first < 1_000_000:
        first += auto_count(first)
        blocks += 1
    assert 2_000 <= blocks <= 15_000


def test_messages_are_fewer_where_they_grow_sooner() -> None:
    assert len(list(pack([b"[1]"] * 5000, growth=10))) < 100 < 1000 < len(list(pack([b"[1]"] * 5000)))


def test_no_block_is_larger_than_its_limit_in_bytes() -> None:
    row = msgspec.json.encode(["x" * 1000])
    packed = list(pack([row] * 2000, per_message=1000))
    assert {count for _, count, _ in packed[:-1]} == {(BLOCK_BYTES - 1) // (len(row) + 1)}
    assert max(len(block) for _, _, block in packed) <= BLOCK_BYTES


def test_a_row_larger_than_a_block_has_one_of_its_own() -> None:
    large = msgspec.json.encode(["x" * BLOCK_BYTES])
    packed = [(first, count) for first, count, _ in pack([b"[1]", large, b"[2]", b"[3]"], per_message=10)]
    assert packed == [(0, 1), (1, 1), (2, 2)]


def test_no_rows_are_no_block() -> None:
    assert list(pack([])) == []


def test_auto_never_goes_beyond_the_most() -> None:
    assert auto_count(0) == 1
    assert auto_count(10**12) == MOST


# -- pieces of a message that is held for long ----------------------------------------------------------

LEFT = st.integers(1, 2000)
BEGUN = st.integers(1, 1000)
TOOK = st.floats(0.01, 1e5)
AHEAD = st.one_of(st.just(0.0), st.floats(0.01, 1e6))
LEAST = st.sampled_from([0.0, 0.5, 5.0, 100.0])


@given(LEFT, BEGUN, TOOK, AHEAD, LEAST)
def test_a_piece_takes_neither_too_long_nor_too_little(
    left: int, begun: int, took_s: float, ahead: float, least_s: float
) -> None:
    size = piece_size(left, begun=begun, took_s=took_s, ahead=ahead, least_s=least_s)
    task_s, most_s = took_s / begun, min(LONGEST_S, max(least_s, SHARE * ahead * took_s / begun))
    if begun == 1:
        assert size == 1, "long tasks spread at once"
    elif size is None:
        assert left * task_s < 1.5 * most_s
    else:
        assert 1 <= size <= left
        assert size == 1 or (size - 1) * task_s <= 1.5 * most_s
        pieces = -(-left // size)
        assert left - size * (pieces - 1) > 0
        assert pieces == 1 or size * task_s > most_s / 2 - task_s, "more of them than need be"


@given(LEFT, BEGUN, TOOK, AHEAD, st.floats(0.01, 1e6), LEAST)
def test_the_more_there_is_to_do_the_longer_are_the_pieces(
    left: int, begun: int, took_s: float, ahead: float, more: float, least_s: float
) -> None:
    def size(ahead: float) -> int:
        return piece_size(left, begun=begun, took_s=took_s, ahead=ahead, least_s=least_s) or left

    assert size(ahead) <= size(ahead + more)


def test_a_piece_is_a_part_of_what_each_slot_has_ahead_of_it() -> None:
    assert (SHARE, LONGEST_S) == (0.4, 60.0)
    assert piece_size(880, begun=10, took_s=10.0, ahead=100.0, least_s=5.0) == 40
    assert piece_size(900, begun=10, took_s=10.0, ahead=1e6, least_s=5.0) == 60
    assert piece_size(900, begun=10, took_s=10.0, ahead=1.0, least_s=5.0) == 5
    assert piece_size(900, begun=10, took_s=10.0, ahead=0.0, least_s=5.0) == 5, "it isn't known"
    assert piece_size(59, begun=10, took_s=10.0, ahead=100.0, least_s=5.0) is None, "not one and a half"
    assert piece_size(70, begun=10, took_s=10.0, ahead=100.0, least_s=5.0) == 35, "not 40 and 30"
    assert piece_size(900, begun=1, took_s=1.0, ahead=100.0, least_s=5.0) == 1, "no pace was seen"
    assert piece_size(3, begun=2, took_s=120.0, ahead=1.0, least_s=5.0) == 1


# -- messages ---------------------------------------------------------------------------------------


def a_block(count: int, *, first: int = 0, number: int = 0) -> Block:
    rows = join_rows([msgspec.json.encode([first + at]) for at in range(count)])
    return Block(bag="bag", number=number, first=first, count=count, rows=rows)


@given(st.integers(1, 30), st.integers(0, 1000), st.data())
def test_a_slice_has_its_tasks_and_their_rows(count: int, first: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    message = Message.of(a_bag(), a_block(count, first=first))

    part = Message.decode(slice_message(message, split_rows(message.rows), start, stop).encode())

    assert (part.first, part.count) == (first + start, stop - start)
    assert msgspec.json.decode(part.rows) == [[first + at] for at in range(start, stop)]
    assert (part.bag, part.uid, part.block, part.columns) == (
        message.bag,
        message.uid,
        message.block,
        message.columns,
    )


def test_a_single_task_of_a_message() -> None:
    message = Message.of(a_bag(), a_block(5, first=100))
    one = single(message, split_rows(message.rows), 103)
    assert (one.first, one.count, bytes(one.rows)) == (103, 1, b"[[103]]")


@given(st.integers(1, 40), st.integers(1, 3000))
def test_what_a_queue_cant_take_goes_without_its_rows(count: int, message_bytes: int) -> None:
    message = Message.of(a_bag(), a_block(count))
    fitted = fit(message, message_bytes)
    assert fitted.has_rows == (len(message.encode()) <= message_bytes)
    assert unfold(fitted, a_block(count)) == message


def test_many_columns_count_for_the_size_of_a_message() -> None:
    bag = a_bag(columns=tuple(f"column-{number}" for number in range(1000)))
    message = Message.of(bag, a_block(1))
    assert len(message.rows) < 100
    assert not fit(message, 4000).has_rows


def test_a_part_of_a_message_finds_its_rows_in_the_block() -> None:
    block = a_block(10, first=50)
    message = Message.of(a_bag(), block)
    part = slice_message(message, split_rows(message.rows), 3, 6)
    assert unfold(fit(part, 10), block).rows == part.rows


@pytest.mark.parametrize(("first", "count"), [(49, 2), (50, 11), (59, 2), (0, 10), (10**9, 1)])
def test_a_message_that_isnt_of_its_block_is_refused(first: int, count: int) -> None:
    message = Message(bag="bag", uid="uid", block=0, first=first, count=count)
    with pytest.raises(MessageError, match="block 0"):
        unfold(message, a_block(10, first=50))


def test_a_block_that_cant_be_read_is_refused() -> None:
    message = Message(bag="bag", uid="uid", block=0, first=0, count=1)
    with pytest.raises(MessageError, match="can't be read"):
        unfold(message, Block(bag="bag", number=0, first=0, count=2, rows=b'{"no": "list"}'))

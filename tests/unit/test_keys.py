"""Tasks of the same key: which are left out, which come after which, and which of a chain is sent first."""

from __future__ import annotations

import datetime
from pathlib import PurePath

from hypothesis import given
from hypothesis import strategies as st

from mtask.keys import Chain, Seen, heads
from mtask.model import Block

KEYS = st.lists(st.sampled_from(["a", "b", "c", 1, 1.5, True, None, "", "1"]), max_size=30)


def is_key(value) -> bool:
    return value not in (None, "")


def same(one, other) -> bool:
    """As JSON: 1 is neither true nor the text "1"."""
    return (type(one), one) == (type(other), other)


def chained(keys, pieces: int = 1) -> dict[int, int]:
    chain = Chain()
    for start in range(0, max(1, len(keys)), pieces):
        chain.add(keys[start : start + pieces])
    return chain.then


def blocks(then: dict[int, int], count: int) -> list[Block]:
    return [Block(bag="b", number=n, first=n, count=1, rows=b"[[]]", then=then.get(n)) for n in range(count)]


@given(KEYS, st.integers(1, 7))
def test_each_comes_before_the_next_of_its_key(keys, pieces):
    expected = {}
    for index, key in enumerate(keys):
        later = (at for at in range(index + 1, len(keys)) if same(keys[at], key))
        if is_key(key) and (following := next(later, None)) is not None:
            expected[index] = following
    assert chained(keys, pieces) == expected


@given(KEYS, st.data())
def test_of_each_chain_the_first_that_is_wanted_is_sent_and_leads_to_all_others(keys, data):
    wanted = set(data.draw(st.lists(st.integers(0, max(0, len(keys) - 1)), unique=True))) & set(
        range(len(keys))
    )
    then = chained(keys)
    sent = [block.first for block in heads(blocks(then, len(keys)), wanted)]
    firsts = {}
    for index in sorted(wanted):
        key = keys[index]
        firsts.setdefault((type(key), key) if is_key(key) else index, index)
    assert sent == sorted(firsts.values())
    reached = set()
    for index in sent:
        at: int | None = index
        while at is not None:
            assert at not in reached, "no task is in two chains"
            reached.add(at)
            at = then.get(at)
    assert wanted <= reached


@given(KEYS, st.integers(1, 7))
def test_the_first_of_each_key_is_new(keys, pieces):
    seen = Seen()
    new = [each for start in range(0, len(keys), pieces) for each in seen.new(keys[start : start + pieces])]
    assert new == [
        not is_key(key) or not any(same(key, before) for before in keys[:at]) for at, key in enumerate(keys)
    ]
    assert seen.repeated == new.count(False)


def test_an_empty_value_is_no_key():
    nothing = [None, "", float("nan")]
    assert Seen().new([*nothing, *nothing]) == [True] * 6
    assert chained([*nothing, *nothing]) == {}


def test_values_of_every_kind_are_keys():
    values = [[1, 2], {"a": 1, "b": 2}, {"b": 2, "a": 1}, datetime.date(2030, 1, 31), PurePath("a/b")]
    assert Seen().new([*values, *values]) == [True, True, False, True, True] + [False] * 5

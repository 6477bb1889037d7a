"""Names and pages of the Firestore table, without a server."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.cloud.firestore_v1")

from mtask.errors import BackendError
from mtask_gcp import table_units
from mtask_gcp.blobs import compressed
from mtask_gcp.documents import (
    MOST,
    PAGE,
    SHARDS,
    attempt_id,
    checked,
    integer,
    number_in,
    page_id,
    page_of,
    raw,
    shard_of,
    short,
)
from mtask_gcp.pages import DONE, EMPTY, NONE, Change, Page

NUMBERS = st.integers(0, MOST) | st.integers(0, 100)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.text(max_size=40) | st.sampled_from([".", "..", "__a__", "a/b", "x" * 2000]), min_size=2
    )
)
def test_any_text_is_a_name_of_its_own(names: list[str]) -> None:
    found = {name: short(name) for name in names}
    assert len(set(found.values())) == len(set(names))
    for name in found.values():
        assert "/" not in name
        assert name not in (".", "..")
        assert not re.fullmatch("__.*__", name)
        assert 0 < len(name.encode()) <= 1500


@given(numbers=st.lists(NUMBERS, min_size=2))
def test_names_of_a_shard_are_in_the_order_of_their_numbers(numbers: list[int]) -> None:
    assert [number_in(page_id(number)) for number in numbers] == numbers
    for shard in range(SHARDS):
        mine = sorted(number for number in numbers if shard_of(number) == shard)
        names = [page_id(number) for number in mine]
        assert names == sorted(names)
        assert all(f"{shard}" <= name < f"{shard + 1}" for name in names)


@given(attempts=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20)), min_size=2))
def test_attempts_are_in_order_and_in_the_shard_of_their_page(attempts: list[tuple[int, int]]) -> None:
    names = {each: attempt_id(*each, "digest") for each in attempts}
    assert sorted(names, key=lambda each: names[each][1:]) == sorted(names)
    for (index, _), name in names.items():
        assert (number_in(name), name[0]) == (index, str(shard_of(page_of(index))))


@pytest.mark.parametrize("index", [-1, MOST + 1])
def test_an_index_that_no_name_holds_is_refused(index: int) -> None:
    with pytest.raises(BackendError, match=str(index)):
        checked(index)


LETTERS = st.text(NONE + "dfx", min_size=PAGE, max_size=PAGE)
STEPS = st.lists(st.tuples(st.sampled_from(["done", "f", "x", "out"]), st.integers(0, PAGE - 1)), max_size=40)


@settings(deadline=None)
@given(before=LETTERS, there=st.booleans(), steps=STEPS)
def test_a_page_counts_what_it_holds(before: str, there: bool, steps: list[tuple[str, int]]) -> None:
    before = before if there else EMPTY
    change = Change(Page(7, before, 1 if there else None))
    expected = list(before)
    touched = set()
    for kind, offset in steps:
        if expected[offset] == DONE:
            continue
        if kind == "done":
            change.done([offset], raw(b"=x"))
            expected[offset] = DONE
        elif kind == "out":
            change.out(offset)
            expected[offset] = NONE
        else:
            change.ended(offset, kind, 1, raw(b"=x"))
            expected[offset] = kind
        touched.add(offset)
    write = change.write("projects/p/databases/d/documents/a/b", {"ttl": integer(1)})
    fields = write.update.fields
    assert fields["body"].map_value.fields["s"].string_value == change.states == "".join(expected)
    counts = [fields[name].integer_value if name in fields else 0 for name in ("done", "failed", "expired")]
    assert counts == [expected.count(letter) for letter in "dfx"]
    assert ("bad" in fields) == bool(set(expected) & {"f", "x"})
    if there:  # else the document is new, and has no other fields
        paths = set(write.update_mask.field_paths)
        assert {"done", "failed", "expired", "bad", "body.s"} <= paths
        for offset in touched:
            if before[offset] in "fx" and expected[offset] in (DONE, NONE):
                assert f"body.f{offset}" in paths
                assert f"f{offset}" not in fields["body"].map_value.fields
    assert write.current_document._pb.WhichOneof("condition_type") == ("update_time" if there else "exists")


@given(content=st.binary(max_size=2000))
def test_packing_never_makes_it_longer_than_a_letter(content: bytes) -> None:
    assert len(compressed(content)) <= len(content) + 1


def test_alone_each_row_is_a_write() -> None:
    from mtask.estimate import Load

    alone = Load(tasks=1000, messages=1000, message_bytes=1, result_bytes=1, alone=True)
    assert table_units("firestore://p/t", alone) == {"firestore writes": 1000.0}
    packed = Load(tasks=6400, messages=64, message_bytes=1, result_bytes=1)
    assert table_units("firestore://p/t", packed)["firestore writes"] < 400

"""Results that stay encoded on their way to the table."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mtask.model import Failure, Reason, Result, State
from mtask.portion import Done, Portion, expanded, line_of, results_of
from mtask.testing.samples import a_done, a_failed, a_portion

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIME = st.floats(0, 4e9)
DONE = st.builds(
    Done,
    index=st.integers(0, 2**40),
    state=st.just("done"),
    id=st.none() | TEXT,
    value=(st.none() | TEXT | st.integers(-(2**60), 2**60)).map(
        lambda v: msgspec.Raw(msgspec.json.encode(v))
    ),
    stdout=TEXT,
    stderr=TEXT,
    attempt=st.integers(1, 5),
    worker=TEXT,
    host=TEXT,
    queued_at=st.none() | TIME,
    started_at=st.none() | TIME,
    finished_at=st.none() | TIME,
    wall_s=TIME,
    cpu_s=TIME,
    peak_bytes=st.integers(0, 2**50),
)


@given(done=DONE, bag=TEXT)
def test_what_a_child_encodes_is_a_result(done: Done, bag: str) -> None:
    (result,) = results_of(bag, msgspec.json.encode(done)[1:] + b"\n")
    assert (result.bag, result.state, result.error, result.exit_code) == (bag, State.DONE, None, None)
    names = {"value": "value_json"}
    for name in Done.__struct_fields__:
        assert getattr(result, names.get(name, name)) == getattr(done, name), name


def test_all_fields_of_a_task_that_was_done_are_there() -> None:
    encoded = set(Result.__struct_encode_fields__) - {"bag", "error"}
    assert set(Done.__struct_encode_fields__) == encoded


@given(done=DONE)
def test_the_same_attempt_if_it_failed(done: Done) -> None:
    error = Failure(reason=Reason.RAISED, type="ValueError", message="no")
    result = done.failed("bag", error)
    assert (result.state, result.error, result.value) == (State.FAILED, error, None)
    for name in set(Done.__struct_fields__) - {"state", "value"}:
        assert getattr(result, name) == getattr(done, name), name


@given(values=st.lists(TEXT, min_size=1, max_size=8), first=st.integers(0, 100), bag=TEXT)
def test_a_portion_is_its_results(values: list[str], first: int, bag: str) -> None:
    results = [a_done(index, value, bag=bag) for index, value in enumerate(values, first)]
    portion = a_portion(results)
    assert portion.results() == results
    assert portion.split() == [line_of(result) for result in results]
    assert list(expanded([portion, a_failed(3), portion])) == [*results, a_failed(3), *results]


def test_a_line_has_no_newline_and_no_bag() -> None:
    line = line_of(a_done(5, {"a": "\n"}, bag="a bag\n"))
    assert b"\n" not in line
    assert b"a bag" not in line
    assert Portion("a bag\n", 5, 1, line + b"\n").results() == [a_done(5, {"a": "\n"}, bag="a bag\n")]

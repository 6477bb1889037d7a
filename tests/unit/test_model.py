from __future__ import annotations

import contextlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import MessageError, NewerMessageError
from mtask.heartbeat import WorkerStatus
from mtask.model import MESSAGE_VERSION, Bag, Block, Counts, Failure, Message, Reason, Result, Spec, State
from mtask.testing.samples import a_bag, a_block, a_message, a_status

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # half of a surrogate pair is no text
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

# -- messages ---------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(json_values, min_size=2, max_size=2), min_size=1, max_size=5),
    st.integers(0, 2**40),
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
    st.none() | st.floats(0, 1e10),
)
def test_a_message_comes_back_as_it_was(
    rows: list[list[Any]], first: int, attempt: int, deaths: int, check: bool, not_before: float | None
) -> None:
    message = Message(
        bag="bag",
        uid="uid",
        block=3,
        first=first,
        count=len(rows),
        columns=("a", "b"),
        rows=msgspec.Raw(msgspec.json.encode(rows)),
        attempt=attempt,
        deaths=deaths,
        check=check,
        sent_at=12.5,
        not_before=not_before,
    )
    decoded = Message.decode(message.encode())
    assert decoded == message
    assert msgspec.json.decode(decoded.rows) == rows


def test_fields_that_a_newer_version_added_are_ignored() -> None:
    body = msgspec.json.decode(a_message(3).encode()) | {"shape": 7, "colour": {"name": "red"}}
    assert Message.decode(msgspec.json.encode(body)) == a_message(3)


def test_fields_that_an_older_version_didnt_know_have_their_defaults() -> None:
    body = b'{"bag":"b","uid":"u","block":0,"first":4,"count":1}'
    message = Message.decode(body)
    assert (message.v, message.columns, message.attempt, message.deaths) == (1, (), 0, 0)
    assert not message.check
    assert message.not_before is None
    assert not message.has_rows


def test_a_message_of_a_newer_version_asks_for_an_upgrade() -> None:
    body = msgspec.json.decode(a_message().encode()) | {"v": MESSAGE_VERSION + 1}
    with pytest.raises(NewerMessageError, match=rf"version {MESSAGE_VERSION + 1}.*upgrade"):
        Message.decode(msgspec.json.encode(body))


def test_a_newer_version_may_be_quite_different() -> None:
    with pytest.raises(NewerMessageError, match=r"version 9.*upgrade"):
        Message.decode(b'{"v":9,"bag":{"name":"b"},"tasks":[1,2]}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe\x00",
        b'{"bag":"b"}',
        b'{"bag":"b\xff","uid":"u","block":0,"first":0,"count":1}',
        b'{"bag":1,"uid":"u","block":0,"first":0,"count":1}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":0}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":-1}',
        b'{"bag":"b","uid":"u","block":0,"first":-1,"count":1}',
        b'{"bag":"b","uid":"u","block":-1,"first":0,"count":1}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":1,"attempt":-1}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":1,"deaths":-1}',
        b'{"bag":"b","uid":"u","block":0,"first":1e99,"count":1}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":1,"rows":[}',
        b'{"bag":"b","uid":"u","block":0,"first":0,"count":1,"rows":' + b"[" * 100_000,
        b"\x80\x04\x95pickle",
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError, match="not a message"):
        Message.decode(body)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_message_or_an_error(body: bytes) -> None:
    with pytest.raises(MessageError):
        Message.decode(body)


@given(st.data())
def test_a_message_with_a_bad_byte_is_a_message_or_an_error(data: st.DataObject) -> None:
    body = bytearray(a_message(5).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        Message.decode(bytes(body))


@pytest.mark.parametrize(
    "fields", [{"count": 0}, {"first": -1}, {"block": -1}, {"attempt": -1}, {"deaths": -1}]
)
def test_a_message_that_makes_no_sense_cant_be_built(fields: dict[str, int]) -> None:
    good: dict[str, Any] = {"bag": "b", "uid": "u", "block": 0, "first": 0, "count": 1}
    with pytest.raises(ValueError, match="range"):
        Message(**(good | fields))


# -- specs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"target": ()},
        {"kind": "call", "target": ("a", "b")},
        {"kind": "run", "target": ()},
        {"kind": "shell", "target": ()},
        {"kind": "command", "target": ("x",)},
        {"retries": -1},
        {"max_deliveries": 0},
        {"timeout_s": 0.0},
        {"timeout_s": -1.0},
        {"lease_s": 0.5},
        {"backoff_s": -1.0},
        {"backoff_s": 2.0, "backoff_max_s": 1.0},
    ],
)
def test_a_spec_that_makes_no_sense_cant_be_built(fields: dict[str, Any]) -> None:
    fields = {"kind": "call", "target": ("m:f",)} | fields
    with pytest.raises(ValueError):
        Spec(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields), type=Spec)


_NUMBERS = [
    field
    for field in msgspec.structs.fields(Spec)
    if field.type in (int, float, int | None, float | None, "int", "float", "int | None", "float | None")
]


@pytest.mark.parametrize("field", _NUMBERS, ids=lambda field: field.name)
def test_a_spec_takes_no_number_that_could_not_be_stored(field: msgspec.structs.FieldInfo) -> None:
    """Infinity would be stored as null, which can't be read again, or means something else."""
    bad = [math.inf, -math.inf, math.nan, 2**80, "3", True]
    for value in [*bad, 1.5] if "int" in str(field.type) else bad:
        with pytest.raises(ValueError, match=rf"^{field.name} must be a (whole )?number"):
            Spec(kind="shell", target=("x",), **{field.name: value})


def test_all_numbers_of_a_spec_are_known() -> None:
    assert len(_NUMBERS) == 18


@pytest.mark.parametrize(
    ("kind", "target", "title"),
    [
        ("call", ("m:f",), "m:f"),
        ("run", ("echo", "{x}"), "echo {x}"),
        ("shell", ("echo $x | wc",), "echo $x | wc"),
        ("command", (), "column 'command'"),
    ],
)
def test_specs_travel(kind: Any, target: tuple[str, ...], title: str) -> None:
    spec = Spec(kind=kind, target=target, retries=1, timeout_s=2.5)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec
    assert spec.title == title


def test_a_bag_travels_and_each_has_a_uid_of_its_own() -> None:
    bag = a_bag(total=3, sent=2, source="tasks.csv")
    assert msgspec.json.decode(msgspec.json.encode(bag), type=Bag) == bag
    assert a_bag().uid != a_bag().uid


# -- blocks and tasks -------------------------------------------------------------------------------


def test_a_block_gives_its_tasks() -> None:
    block = Block(bag="bag", number=1, first=10, count=2, rows=b'[["a",1],["b",2]]')
    tasks = list(block.tasks(("id", "n")))
    assert [(t.index, t.id, t.params) for t in tasks] == [
        (10, "a", {"id": "a", "n": 1}),
        (11, "b", {"id": "b", "n": 2}),
    ]


@pytest.mark.parametrize(
    ("value", "name"), [("x1", "x1"), (7, "7"), (1.5, "1.5"), (None, "null"), ([1], "[1]")]
)
def test_a_tasks_own_name_is_text(value: Any, name: str) -> None:
    block = Block(bag="bag", number=0, first=0, count=1, rows=msgspec.json.encode([[value]]))
    assert next(block.tasks(("id",))).id == name


def test_the_message_of_a_block() -> None:
    bag, block = a_bag(), a_block(2, count=3)
    message = Message.of(bag, block, check=True)
    assert (message.first, message.count, message.check) == (6, 3, True)
    assert (message.uid, message.columns, bytes(message.rows)) == (bag.uid, bag.columns, block.rows)


# -- results ----------------------------------------------------------------------------------------

NO = Failure(reason=Reason.RAISED, type="ValueError", message="no")


@given(json_values)
def test_a_value_comes_back(value: Any) -> None:
    result = Result.done("bag", 1, value=value, stdout="text")
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result).value == value


def test_how_a_task_can_end() -> None:
    assert Result.done("bag", 0).state is State.DONE
    assert Result.done("bag", 0, value=msgspec.Raw(b"[1]")).value == [1]
    failed = Result.failed("bag", 0, NO)
    assert (failed.state, failed.error, failed.value) == (State.FAILED, NO, None)
    expired = Result.expired("bag", 0, "too late")
    assert expired.error is not None
    assert (expired.state, expired.error.message) == (State.EXPIRED, "too late")


@pytest.mark.parametrize(("state", "error"), [(State.DONE, NO), (State.FAILED, None), (State.EXPIRED, None)])
def test_a_result_that_makes_no_sense_cant_be_built(state: State, error: Failure | None) -> None:
    with pytest.raises(ValueError, match="error"):
        Result(bag="bag", index=0, state=state, error=error)
    body = {"bag": "bag", "index": 0, "state": state} | ({"error": NO} if error else {})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(body), type=Result)


def test_what_is_made_doesnt_change() -> None:
    for made in (a_bag(), a_message(), Result.done("bag", 0), a_block(), a_status(), NO):
        with pytest.raises(AttributeError):
            made.bag = "other"  # type: ignore[union-attr]


# -- counts and heartbeats --------------------------------------------------------------------------


def test_counts_add_up() -> None:
    counts = Counts(total=10, done=3, failed=2, expired=1)
    assert (counts.ended, counts.left) == (6, 4)


@pytest.mark.parametrize(
    ("state", "age_s", "alive"),
    [("working", 0.0, True), ("draining", 5.9, True), ("working", 6.1, False), ("stopped", 0.0, False)],
)
def test_a_worker_is_alive_while_it_beats(state: Any, age_s: float, alive: bool) -> None:
    status: WorkerStatus = a_status(state=state, beat_at=1000.0, interval_s=2.0)
    assert status.alive(1000.0 + age_s) is alive

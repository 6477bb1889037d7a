"""What a function returned, as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import pathlib
import subprocess
import sys
import uuid
from collections import Counter, deque, namedtuple
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtask.errors import MtaskError
from mtask.values import MOST_DEPTH, VALUE_BYTES, UnstorableValueError, encode_value, has_nonfinite

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


@dataclasses.dataclass
class Fit:
    score: float
    model: Any = None


class Item(msgspec.Struct):
    name: str
    size: int = 0


Pair = namedtuple("Pair", "left right")


class Opaque:
    def __repr__(self) -> str:
        return "<an opaque thing>"


def stored(value: Any) -> Any:
    return msgspec.json.decode(encode_value(value))


@settings(deadline=None)
@given(JSON)
def test_what_json_can_say_comes_back_the_same(value: Any) -> None:
    assert stored(value) == value


@settings(deadline=None)
@given(st.recursive(st.floats() | st.none(), st.lists, max_leaves=10))
def test_no_float_is_lost(value: Any) -> None:
    def same(left: Any, right: Any) -> bool:
        if isinstance(left, list):
            return len(left) == len(right) and all(map(same, left, right))
        if isinstance(left, float):
            right = float(right)
            return left == right or (math.isnan(left) and math.isnan(right))
        return left is right

    assert same(value, stored(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        ([math.inf, -math.inf, None], ["inf", "-inf", None]),
        (Fit(math.nan, [1]), {"score": "nan", "model": [1]}),
        ({"a": {1: math.nan}}, {"a": {"1": "nan"}}),
        (2**80, 2**80),
        ((1, (2, 3)), [1, [2, 3]]),
        ({7}, [7]),
        (Pair(1, "b"), [1, "b"]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (Item("x"), {"name": "x", "size": 0}),
        (pathlib.Path("out/a.txt"), "out/a.txt"),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (datetime.datetime(2026, 1, 31, 12, 30), "2026-01-31T12:30:00"),
        (Decimal("1.10"), "1.10"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ([Color.RED, Color.BLUE], ["red", 2]),
        (b"ab", "YWI="),
        (np.float64(0.5), 0.5),
        (np.float64("nan"), "nan"),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ({np.int64(4): np.arange(3)}, {"4": [0, 1, 2]}),
        (np.array([[1.5, math.nan]]), [[1.5, "nan"]]),
        (np.array(2), 2),
        (np.datetime64("2026-01-31"), "2026-01-31"),
        (pd.Timestamp("2026-01-31"), "2026-01-31T00:00:00"),
        (pd.Timedelta("1D"), "P1D"),
        ([pd.NA, pd.NaT], [None, None]),
        ({1: 2, 2.5: 3}, {"1": 2, "2.5": 3}),
    ],
    ids=repr,
)
def test_how_each_type_is_stored(value: Any, expected: Any) -> None:
    assert stored(value) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Opaque(), "test_values.Opaque, which has no JSON form: <an opaque thing>"),
        ({"model": [Opaque()]}, "Opaque has no JSON form at ['model'][0] of what the function returned"),
        (Fit(1.0, (1, Opaque())), "at .model[1] of"),
        (Item("x", Opaque()), "at .size of"),  # type: ignore[arg-type]
        (iter([1]), "list_iterator"),
        ((number for number in [1]), "return list(…) of it"),
        (deque([1]), "return list(…) of it"),
        (1 + 2j, "complex"),
        (np.array([1j]), "complex numbers"),
        (
            np.zeros(10**6),
            "8,000,000 bytes is too large for the table: write it to a file and return its path",
        ),
        (pd.DataFrame({"a": [1]}), "pandas.DataFrame, which has no JSON form: a 0 1; write it to a file"),
        ({(1, 2): 3}, "a dict with the key (1, 2) has no JSON form: keys must be text or numbers"),
        ({"a": {None: 1}}, "the key None at ['a']"),
        (["x", "a\ud800"], "surrogate pair in it has no JSON form at [1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_name_and_place(value: Any, text: str) -> None:
    with pytest.raises(UnstorableValueError) as caught:
        encode_value(value)
    assert text in str(caught.value)
    assert isinstance(caught.value, (MtaskError, ValueError))


def test_a_value_that_contains_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnstorableValueError, match="nested too deep, or contains itself"):
        encode_value(loop)


def test_json_that_is_there_already_is_looked_at() -> None:
    assert encode_value(msgspec.Raw(b'[1,\n "a\\nb"]')) == msgspec.Raw(b'[1,"a\\nb"]')
    assert encode_value({"a": msgspec.Raw(b"{ }")}) == msgspec.Raw(b'{"a":{ }}')
    for bad in (b"[1,", b"1 2"):
        with pytest.raises(UnstorableValueError):
            encode_value([msgspec.Raw(bad)])


def test_a_value_that_others_could_not_read() -> None:
    """Brackets in text don't count."""

    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth > 1 else ["[" * 999]

    assert encode_value(nested(MOST_DEPTH))
    with pytest.raises(UnstorableValueError, match=f"nested more than {MOST_DEPTH} deep"):
        encode_value(nested(MOST_DEPTH + 1))


def test_a_value_too_large_says_what_to_do() -> None:
    assert len(encode_value("x" * (VALUE_BYTES - 2))) == VALUE_BYTES
    with pytest.raises(UnstorableValueError) as caught:
        encode_value("x" * VALUE_BYTES)
    assert str(caught.value) == (
        "the function returned 262,146 bytes of JSON (a value of type str); the limit is 262,144: "
        "write it to a file and return its path"
    )
    with pytest.raises(UnstorableValueError, match="the limit is 10"):
        encode_value([1] * 10, limit_bytes=10)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(math.inf, True), ([{"a": (1.0, math.nan)}], True), (Fit(math.nan), True), ([1, "nan", None], False)],
)
def test_has_nonfinite(value: Any, expected: bool) -> None:
    assert has_nonfinite(value) is expected


def test_numpy_is_not_imported_for_values_without_it() -> None:
    code = (
        "import sys, mtask.values as v; v.encode_value({'a': [1.5, None]}); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

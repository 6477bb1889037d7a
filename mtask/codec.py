"""The codecs of simple types; see `convert`, which finds the codec of any annotation."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import msgspec

from mtask.values import to_json_able

__all__ = [
    "ANYTHING",
    "BOOL_WORDS",
    "CONVERSION_ERRORS",
    "FLOAT",
    "INT",
    "SIMPLE",
    "TEXT",
    "Codec",
    "float_back",
    "iso_codec",
    "path_codec",
    "subclass_codec",
]

CONVERSION_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    AttributeError,
    InvalidOperation,
)
"""What `parse` and `check` may raise."""
_BOOLS = {
    "true": True,
    "yes": True,
    "1": True,
    "t": True,
    "false": False,
    "no": False,
    "0": False,
    "f": False,
}
BOOL_WORDS = _BOOLS | {word: value for text, value in _BOOLS.items() for word in (text.upper(), text.title())}


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of one annotation travel."""

    expected: str
    """For errors: "an integer"."""
    parse: Callable[[str], Any]
    """Text → wire; raises one of CONVERSION_ERRORS."""
    check: Callable[[Any], Any]
    """Value → wire; raises one of CONVERSION_ERRORS."""
    decode: Callable[[Any], Any] | None = None
    """Wire → argument; None: they are the same."""
    parse_all: Callable[[Sequence[str]], Sequence[Any]] | None = None
    """`parse` of a whole column, fast; where it fails, `parse` decides about each value."""
    check_all: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    """`check` of a whole column, in the same way."""


def float_back(value: Any) -> Any:
    """A float as it was before it went over the wire."""
    return float(value) if type(value) is str else value


def _same(value: Any) -> Any:
    return value


def _only(*kinds: type) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Lets a column pass whose values are all of these very types."""
    allowed = set(kinds)

    def check_all(column: Sequence[Any]) -> Sequence[Any]:
        if set(map(type, column)) <= allowed:
            return column
        raise TypeError

    return check_all


def _check_anything(value: Any) -> Any:
    # The order of a set changes from one process to the next, and with it the digest of the bag.
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=lambda item: msgspec.json.encode(item, enc_hook=to_json_able))
    return value


def _check_anythings(column: Sequence[Any]) -> Sequence[Any]:
    if {set, frozenset} & set(map(type, column)):
        raise TypeError
    return column


def _check_text(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError


def _parse_int(text: str) -> int:
    # int() takes 12_34 for 1234
    if "_" in text:
        raise ValueError
    try:
        return int(text)
    except ValueError:
        if text.strip().lstrip("+-").isdecimal():
            raise OverflowError from None  # thousands of digits
        raise


def _parse_ints(column: Sequence[str]) -> list[int]:
    if "_" in "".join(column):
        raise ValueError
    return list(map(int, column))


def _check_int(value: Any) -> int:
    if not isinstance(value, bool) and isinstance(value, Integral):
        return int(value)
    raise TypeError


def _parse_float(text: str) -> float | str:
    if "_" in text:
        raise ValueError
    value = float(text)
    if math.isfinite(value):
        return value
    if text.strip(" \t+-")[:1] in "0123456789.":
        raise OverflowError
    return repr(value)


def _parse_floats(column: Sequence[str]) -> list[float]:
    if "_" in "".join(column):
        raise ValueError
    values = list(map(float, column))
    if all(map(math.isfinite, values)):
        return values
    raise ValueError


def _check_float(value: Any) -> float | str:
    if not isinstance(value, bool) and isinstance(value, Real):
        value = float(value)
        return value if math.isfinite(value) else repr(value)
    raise TypeError


def _check_floats(column: Sequence[Any]) -> Sequence[Any]:
    kinds = set(map(type, column))
    if not kinds <= {int, float}:
        raise TypeError
    values = column if kinds <= {float} else list(map(float, column))
    if all(map(math.isfinite, values)):
        return values
    raise ValueError


def _parse_bool(text: str) -> bool:
    return _BOOLS[text.strip().lower()]


def _check_bool(value: Any) -> bool:
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and value.dtype.kind == "b"):
        return bool(value)
    raise TypeError


def iso_codec(kind: Any, expected: str) -> Codec:
    def parse(text: str) -> str:
        result: str = kind.fromisoformat(text.strip()).isoformat()
        return result

    def check(value: Any) -> str:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, kind) and (
            kind is not datetime.date or not isinstance(value, datetime.datetime)
        ):
            result: str = value.isoformat()
            return result
        raise TypeError

    example = {"a date": "2026-01-31", "a time": "23:59:00"}.get(expected, "2026-01-31T23:59:00")
    return Codec(f"{expected} like {example}", parse, check, kind.fromisoformat)


def _check_decimal(value: Any) -> str:
    if isinstance(value, (bool, bytes)) or (isinstance(value, str) and "_" in value):
        raise TypeError
    return str(Decimal(str(value)))


def _check_uuid(value: Any) -> str:
    return str(value if isinstance(value, UUID) else UUID(value))


ANYTHING = Codec("anything", _same, _check_anything, None, _same, _check_anythings)
TEXT = Codec("text", _same, _check_text, None, _same, _only(str))
INT = Codec("an integer", _parse_int, _check_int, None, _parse_ints, _only(int))
FLOAT = Codec("a number", _parse_float, _check_float, float_back, _parse_floats, _check_floats)
SIMPLE: dict[Any, Codec] = {
    int: INT,
    float: FLOAT,
    bool: Codec(
        "true or false",
        _parse_bool,
        _check_bool,
        None,
        lambda column: list(map(BOOL_WORDS.__getitem__, column)),
        _only(bool),
    ),
    datetime.time: iso_codec(datetime.time, "a time"),
    Decimal: Codec("a decimal number", _check_decimal, _check_decimal, Decimal),
    UUID: Codec("a UUID", _check_uuid, _check_uuid, UUID),
}


def subclass_codec(codec: Codec, kind: Any) -> Codec:
    decode = kind if codec.decode is None else lambda value: kind(float_back(value))
    return Codec(codec.expected, codec.parse, codec.check, decode, codec.parse_all, codec.check_all)


def path_codec(kind: Any) -> Codec:
    def check(value: Any) -> str:
        text = os.fspath(value)
        if not isinstance(text, str) or not text:
            raise ValueError  # Path("") would be the current directory
        return text

    def parse_all(column: Sequence[str]) -> Sequence[str]:
        if "" in column:
            raise ValueError
        return column

    return Codec("a path", check, check, kind, parse_all)

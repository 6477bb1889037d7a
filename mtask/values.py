"""What a function returned, as JSON.

Besides what JSON can say, these can be stored:

    float nan, inf, -inf                    the texts "nan", "inf", "-inf" (JSON encoders make null of
                                            them, which is a loss; pandas and float() read the texts)
    tuple, set, frozenset                   arrays
    dataclasses, msgspec.Struct, attrs      objects; named tuples are arrays
    datetime, date, time, timedelta         ISO 8601 text
    Decimal, UUID, Path, bytes              text (bytes: base64)
    Enum                                    its value
    numpy scalars                           numbers; datetime64 and timedelta64: ISO 8601 text
    numpy arrays                            nested arrays; they are meant to be small
    pandas Timestamp, Timedelta; NaT, NA    ISO 8601 text; null

The keys of a dict are text, or numbers, which become text. Anything else is refused by
`UnstorableValueError`: it isn't pickled, since whoever reads the table would have to trust it.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from mtask.errors import MtaskError

__all__ = ["VALUE_BYTES", "UnstorableValueError", "encode_value", "has_nonfinite", "to_json_able"]

VALUE_BYTES = 256 * 1024
"""Largest value in bytes of JSON. All vendors' rows have a limit (DynamoDB: 400 KB)."""
MOST_DEPTH = 200
"""Of lists and objects in each other: whoever reads a value has a limit, which depends on how deep in
calls they are themselves."""
_NULL = msgspec.Raw(b"null")
_NO_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[^][{}"]+')
_PLAIN = (bool, int, float, str)
_RAW = msgspec.json.Decoder(msgspec.Raw)
_ADVICE = "write it to a file and return its path"


class UnstorableValueError(MtaskError, ValueError):
    """A function returned something that has no JSON form, or too much of it."""


def encode_value(value: Any, *, limit_bytes: int = VALUE_BYTES) -> msgspec.Raw:
    """The JSON of what a function returned. Raises UnstorableValueError, which names the part at fault."""
    if value is None:
        return _NULL
    try:
        encoded = _ENCODER.encode(value)
        if b"null" in encoded:
            # a real None, or a nan
            encoded = _ENCODER.encode(_spelled_out(value))
        if type(value) not in _PLAIN:
            # What is in a msgspec.Raw was not looked at, and may be no JSON, or several lines of it.
            _RAW.decode(encoded)
            if b"\n" in encoded:
                encoded = msgspec.json.format(encoded, indent=-1)
    except (TypeError, ValueError, RecursionError, OverflowError, AttributeError) as error:
        raise UnstorableValueError(_explain(value, error)) from None
    if len(encoded) > limit_bytes:
        raise UnstorableValueError(
            f"the function returned {len(encoded):,} bytes of JSON ({_kind(value)}); "
            f"the limit is {limit_bytes:,}: {_ADVICE}"
        )
    if len(encoded) > 2 * MOST_DEPTH and _depth(encoded) > MOST_DEPTH:
        raise UnstorableValueError(f"the function returned a value nested more than {MOST_DEPTH} deep")
    return msgspec.Raw(encoded)


def to_json_able(value: Any) -> Any:
    """What stands for an object that msgspec doesn't know (its `enc_hook`). Raises TypeError."""
    kind = type(value)
    if kind.__module__ == "numpy" or kind.__module__.startswith("numpy."):
        return _of_numpy(value)
    if isinstance(value, PurePath):
        return str(value)
    if kind.__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return datetime.timedelta(value.days, value.seconds, value.microseconds)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"no JSON form for {kind.__name__}")


def has_nonfinite(value: Any) -> bool:
    """Is there a nan or an inf anywhere in it?"""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(has_nonfinite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(has_nonfinite, value))
    if isinstance(value, (str, int, bytes)) or value is None:
        return False
    try:
        plain = msgspec.to_builtins(value, enc_hook=to_json_able, str_keys=True)
    except (TypeError, ValueError, RecursionError, OverflowError):
        return False
    return type(plain) in (dict, list, float) and has_nonfinite(plain)


def _depth(encoded: bytes) -> int:
    """How deep lists and objects are nested."""
    brackets = _NO_BRACKETS.sub(b"", encoded)
    return max(itertools.accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _of_numpy(value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "mM":
        return value.astype(str).tolist()
    if kind == "c":
        raise TypeError("no JSON form for complex numbers")
    if hasattr(value, "nbytes") and value.nbytes > 16 * VALUE_BYTES:
        raise TypeError(f"an array of {value.nbytes:,} bytes is too large for the table: {_ADVICE}")
    if kind == "V" and value.dtype.names is None:
        raise TypeError("no JSON form for raw bytes")
    return value.tolist()


def _spelled_out(value: Any) -> Any:
    """The value as plain lists, dicts and so on, with texts for the floats that JSON doesn't have."""
    return _replace(msgspec.to_builtins(value, enc_hook=to_json_able, str_keys=True))


def _replace(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else repr(value)
    if kind is dict:
        return {key: _replace(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_replace(item) for item in value]
    return value


def _explain(value: Any, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"the function returned {_kind(value)} that is nested too deep, or contains itself"
    path, part = _culprit(value, "", 0)
    where = f" at {path} of what the function returned" if path else ""
    name = type(part).__name__
    if isinstance(part, Mapping):
        bad = next((key for key in part if not _is_key(key)), None)
        what = f"a dict with the key {_short(bad)}{where}"
        return f"{what} has no JSON form: keys must be text or numbers"
    if isinstance(part, str):
        return f"text with half of a surrogate pair in it has no JSON form{where}: {_short(part)}"
    if type(part).__module__.startswith("numpy"):
        return f"{_kind(part)} has no JSON form{where}: {error}"
    if name in ("generator", "map", "filter", "zip", "range", "dict_keys", "dict_values", "deque"):
        advice = "return list(…) of it"
    elif name == "coroutine":
        advice = "await it"
    elif name in ("DataFrame", "Series"):
        advice = f"{_ADVICE}, or return .to_dict('list')"
    else:
        advice = f"return numbers, text, lists, dicts or dataclasses; or {_ADVICE}"
    start = "" if path else "the function returned "
    return f"{start}{_kind(part)}{' has no JSON form' + where if path else ', which has no JSON form'}: {_short(part)}; {advice}"


def _culprit(value: Any, path: str, depth: int) -> tuple[str, Any]:
    """The innermost part that can't be encoded, and the way to it."""
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        children = ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        children = ((f"[{at}]", item) for at, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        children = (("{…}", item) for item in value)
    else:
        kind: Any = type(value)
        names = getattr(kind, "__struct_fields__", getattr(kind, "__dataclass_fields__", ()))
        children = ((f".{name}", getattr(value, name, None)) for name in names)
    if depth < 50:
        for step, item in children:
            try:
                _ENCODER.encode(item)
            except (TypeError, ValueError, RecursionError, OverflowError, AttributeError):
                return _culprit(item, path + step, depth + 1)
    return path, value


def _is_key(key: Any) -> bool:
    try:
        _ENCODER.encode({key: 0})
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _kind(value: Any) -> str:
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return f"a value of type {name}"


def _short(value: Any, most: int = 80) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= most else f"{text[:most]}…"


_ENCODER = msgspec.json.Encoder(enc_hook=to_json_able)

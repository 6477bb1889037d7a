"""How the value of one parameter travels, by its annotation: text or value → JSON → argument.

Each annotation has a `Codec`. What goes over the wire is the same whether it came from text (CSV)
or from values (JSON lines, Parquet, Python), so that a worker needs to know only the annotation:

    float           a number; nan, inf and -inf, which JSON doesn't have, as text
    Enum            the member's name
    Path, Decimal, UUID, datetime, date, time     text
    list, tuple, set, dict, dataclass, TypedDict, msgspec.Struct      as msgspec writes them
    a union         plain where its JSON tells the members apart; else [number of the member, value]
"""

from __future__ import annotations

import datetime
import enum
import os
import types
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Literal

import msgspec

from mtask.codec import (
    ANYTHING,
    BOOL_WORDS,
    CONVERSION_ERRORS,
    FLOAT,
    INT,
    SIMPLE,
    TEXT,
    Codec,
    float_back,
    iso_codec,
    path_codec,
    subclass_codec,
)
from mtask.values import to_json_able

__all__ = ["UnsupportedAnnotationError", "codec_of"]


class UnsupportedAnnotationError(TypeError):
    """Nothing that a file can hold becomes a value of this type."""


def codec_of(annotation: Any) -> Codec:
    """The codec of an annotation. Raises UnsupportedAnnotationError."""
    kind = _unwrapped(annotation)
    if kind in (Any, object, str, None, types.NoneType) or isinstance(kind, (str, typing.ForwardRef)):
        return TEXT if kind is str else ANYTHING
    if kind in SIMPLE:
        return SIMPLE[kind]
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(kind))
    if origin is Literal:
        return _literal(typing.get_args(kind))
    base = origin or kind
    if base is os.PathLike:
        return path_codec(Path)
    if isinstance(base, type):
        if issubclass(base, enum.Enum):
            return _enumeration(base)
        if issubclass(base, PurePath):
            return path_codec(base)
        if issubclass(base, str):
            return subclass_codec(TEXT, base)
        if issubclass(base, datetime.date):
            return iso_codec(base, "a date and time" if issubclass(base, datetime.datetime) else "a date")
        if issubclass(base, (Integral, Real)):  # numpy's numbers are registered as such
            return subclass_codec(INT if issubclass(base, Integral) else FLOAT, base)
        if issubclass(base, (bytes, bytearray, memoryview)):
            raise UnsupportedAnnotationError("bytes can't be sent: annotate str")
    return _structure(kind)


def _unwrapped(annotation: Any) -> Any:
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final, typing.ClassVar):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, typing.TypeVar):
            annotation = annotation.__bound__ or Any
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


# Choices and unions.


def _enumeration(kind: type[enum.Enum]) -> Codec:
    members = kind.__members__
    texts = {str(member.value): name for name, member in members.items()} | {name: name for name in members}

    def check(value: Any) -> str:
        if isinstance(value, kind):
            return str(value.name)
        if isinstance(value, str) and value in members:
            return value
        return str(kind(value).name)

    expected = f"one of {_list(list(members))} ({kind.__name__})"
    return Codec(expected, texts.__getitem__, check, members.__getitem__)


def _literal(options: tuple[Any, ...]) -> Codec:
    # A member of an Enum travels as its name, all others as they are.
    wires = [(option, option.name if isinstance(option, enum.Enum) else option) for option in options]
    texts = {"" if wire is None else str(wire): wire for _, wire in wires}
    for text, value in BOOL_WORDS.items():
        if any(option is value for option, _ in wires):
            texts.setdefault(text, value)

    def check(value: Any) -> Any:
        for option, wire in wires:
            if type(option) is type(value) and option == value:
                return wire
        raise ValueError

    members = {wire: option for option, wire in wires if isinstance(option, enum.Enum)}
    decode = (lambda value: members.get(value, value)) if members else None
    return Codec(f"one of {_list([repr(option) for option in options])}", texts.__getitem__, check, decode)


def _list(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def _union(arguments: tuple[Any, ...]) -> Codec:
    members = [_unwrapped(member) for member in arguments if member not in (None, types.NoneType)]
    if str in members:
        # Last, because it takes everything; and who takes a str or a Path takes a str.
        members = [member for member in members if member is not str and not _is_path(member)] + [str]
    codecs = []
    refusal: Exception | None = None
    for member in members:
        try:
            codecs.append(codec_of(member))
        except UnsupportedAnnotationError as error:
            refusal = error
    if not codecs:
        raise refusal or UnsupportedAnnotationError("an empty union")
    codec = codecs[0] if len(codecs) == 1 else _one_of(codecs)
    return _optional(codec) if len(members) < len(arguments) and type(None) in arguments else codec


def _is_path(member: Any) -> bool:
    base = typing.get_origin(member) or member
    return isinstance(base, type) and (base is os.PathLike or issubclass(base, PurePath))


def _one_of(codecs: list[Codec]) -> Codec:
    decodes = {codec.decode for codec in codecs}
    tagged = decodes != {None} and (decodes - {None, float_back} != set() or TEXT in codecs)

    def first(way: Callable[[Codec], Callable[[Any], Any]]) -> Callable[[Any], Any]:
        ways = [way(codec) for codec in codecs]

        def convert(value: Any) -> Any:
            for number, attempt in enumerate(ways):
                try:
                    wire = attempt(value)
                except CONVERSION_ERRORS:
                    continue
                return [number, wire] if tagged else wire
            raise ValueError

        return convert

    def decode(wire: list[Any]) -> Any:
        back = codecs[wire[0]].decode
        return wire[1] if back is None else back(wire[1])

    return Codec(
        " or ".join(codec.expected for codec in codecs),
        first(lambda codec: codec.parse),
        first(lambda codec: codec.check),
        decode if tagged else None if decodes == {None} else float_back,
    )


def _optional(codec: Codec) -> Codec:
    parse, check, back = codec.parse, codec.check, codec.decode

    def parse_all(column: Sequence[str]) -> Sequence[Any]:
        if codec.parse_all is None or "" in column:
            raise ValueError
        return codec.parse_all(column)

    def check_all(column: Sequence[Any]) -> Sequence[Any]:
        if codec.check_all is None or None in column:
            raise ValueError
        return codec.check_all(column)

    return Codec(
        f"{codec.expected} or nothing",
        lambda text: None if text == "" else parse(text),
        lambda value: None if value is None else check(value),
        back if back in (None, float_back) else lambda value: None if value is None else back(value),
        parse_all,
        check_all,
    )


# Everything that msgspec knows: collections, dataclasses, TypedDict, Struct, …


def _structure(kind: Any) -> Codec:
    name = (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace("typing.", "")
    )
    try:
        info = msgspec.inspect.type_info(kind)
        decoder = msgspec.json.Decoder(kind, dec_hook=_from_plain)
    except (TypeError, ValueError, NameError) as error:
        raise UnsupportedAnnotationError(f"{name}: {error}") from None
    if (custom := _custom(info, set())) is not None:
        raise UnsupportedAnnotationError(
            f"{name}: no file can hold a value of type {getattr(custom, '__name__', custom)}"
        )

    # The order of a set changes from one process to the next, and with it the digest of the bag.
    order: Literal["deterministic"] | None = "deterministic" if "SetType(" in repr(info) else None

    def to_wire(value: Any) -> Any:
        return msgspec.to_builtins(value, enc_hook=to_json_able, str_keys=True, order=order)

    def decode(wire: Any) -> Any:
        return msgspec.convert(wire, kind, dec_hook=_from_plain, str_keys=True)

    def check(value: Any) -> Any:
        try:
            wire = to_wire(decode(value))
        except msgspec.ValidationError:
            wire = to_wire(value)  # perhaps with numpy's numbers in it
        decode(wire)  # an object of the very class was let through unchecked
        return wire

    scalar = isinstance(info, msgspec.inspect.TimeDeltaType)
    parse = check if scalar else lambda text: to_wire(decoder.decode(text))
    if scalar:
        expected = "a duration like P1DT2H"
    elif isinstance(info, (msgspec.inspect.CollectionType, msgspec.inspect.TupleType)):
        expected = f"a JSON array ({name})"
    else:
        expected = f"a JSON object ({name})"
    return Codec(expected, parse, check, decode)


def _custom(info: Any, seen: set[int]) -> Any:
    """The first class in a msgspec type that msgspec can't make, if any."""
    if isinstance(info, msgspec.inspect.CustomType):
        return None if _is_path(info.cls) else info.cls
    if isinstance(info, (list, tuple)):
        parts: Any = info
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(info) not in seen:
        seen.add(id(info))
        parts = [getattr(info, name) for name in info.__struct_fields__ if name not in ("cls", "default")]
    else:
        return None
    return next((found for part in parts if (found := _custom(part, seen)) is not None), None)


def _from_plain(kind: type, value: Any) -> Any:
    if _is_path(kind) and isinstance(value, (str, PurePath)):
        return Path(value) if kind is os.PathLike else kind(value)
    raise NotImplementedError

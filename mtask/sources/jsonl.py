"""JSON lines: one object a line, all with the same keys."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import msgspec

from mtask.errors import InputError, UsageError
from mtask.sources.base import Chunk, check_columns, is_regular, open_bytes, shorten

__all__ = ["JsonlSource"]

_CHUNK_BYTES = 1 << 20
_MOST_LINE_BYTES = 64 << 20
_DECODER = msgspec.json.Decoder(dict[str, Any])


class JsonlSource:
    """A file of JSON objects; the keys of the first one name the columns. Blank lines are skipped."""

    textual = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self.name = os.fspath(path)
        self._first: list[bytes] = []
        self._stream: io.BufferedReader | None = self._open()
        self.repeatable = is_regular(path)
        try:
            self.columns = self._header(self._stream)
        except BaseException:
            self._stream.close()
            raise
        if self.repeatable:
            self._stream.close()

    def chunks(self) -> Iterator[Chunk]:
        """All rows; see Source."""
        if self.repeatable:
            stream, held = self._open(), []
        elif self._stream is None:
            raise UsageError(f"{self.name} can be read only once")
        else:
            stream, held, self._stream = self._stream, self._first, None
        at = 1
        try:
            while lines := held or stream.readlines(_CHUNK_BYTES):
                if not held and at == 1:
                    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
                held = []
                yield self._chunk(lines, at)
                at += len(lines)
        finally:
            stream.close()

    def _header(self, stream: io.BufferedReader) -> tuple[str, ...]:
        while line := self._readline(stream):
            self._first.append(line)
            if line.strip():
                break
        else:
            raise InputError('is empty; each line should be an object, as in: {"id": 1}', source=self.name)
        number = len(self._first)
        columns = check_columns(tuple(self._decode(line, number)), self.name, number)
        if not columns:
            raise InputError("an object without keys", source=self.name, line=number)
        return columns

    def _open(self) -> io.BufferedReader:
        return io.BufferedReader(open_bytes(self._path), 1 << 18)

    def _readline(self, stream: io.BufferedReader) -> bytes:
        line = stream.readline(_MOST_LINE_BYTES)
        return line.removeprefix(b"\xef\xbb\xbf") if not self._first else line

    def _chunk(self, lines: list[bytes], at: int) -> Chunk:
        numbers: Any = range(at, at + len(lines))
        try:
            rows = _DECODER.decode_lines(b"".join(lines))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rows = []
        if len(rows) != len(lines):
            numbers = [number for number, line in zip(numbers, lines, strict=True) if line.strip()]
            rows = [self._decode(lines[number - at], number) for number in numbers]
        if not rows:
            return Chunk([], [()] * len(self.columns), self.name)
        width = len(self.columns)
        try:
            if set(map(len, rows)) != {width}:
                raise KeyError
            if width == 1:
                columns: list[Any] = [list(map(itemgetter(self.columns[0]), rows))]
            else:
                columns = list(zip(*map(itemgetter(*self.columns), rows), strict=True))
        except KeyError:
            raise self._other_keys(rows, numbers) from None
        return Chunk(numbers, columns, self.name)

    def _other_keys(self, rows: list[dict[str, Any]], numbers: Any) -> InputError:
        for row, number in zip(rows, numbers, strict=True):
            missing = [key for key in self.columns if key not in row]
            extra = [key for key in row if key not in self.columns]
            if missing or extra:
                parts = [f"without {', '.join(map(repr, missing))}"] if missing else []
                if extra:
                    parts.append(f"with {', '.join(map(repr, extra))} more")
                return InputError(
                    f"other keys than the first line has: {', '.join(parts)}; "
                    "every line must have the same keys (null is a value)",
                    source=self.name,
                    line=number,
                )
        raise AssertionError("all rows have the columns")

    def _decode(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = msgspec.json.decode(line)
        except UnicodeDecodeError as error:
            byte = line[error.start] if error.start < len(line) else 0
            problem = f"not UTF-8: byte 0x{byte:02x}"
        except RecursionError:
            problem = "nested too deep"
        except msgspec.ValidationError as error:
            problem = f"{error}: {shorten(line.strip())[1:]}"
        except msgspec.DecodeError as error:
            problem = (
                f"not JSON: {str(error).removeprefix('JSON is malformed: ')}: {shorten(line.strip())[1:]}"
            )
            if b"NaN" in line or b"Infinity" in line:
                problem += '; JSON has no NaN or Infinity: write null, or the text "nan" or "inf"'
            elif number == 1 and line.lstrip().startswith((b"[", b"{")):
                problem += "; this file should have one object a line"
        else:
            if isinstance(value, dict):
                return value
            kind = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
            problem = (
                f"expected an object, found {kind.get(type(value), 'a number')}: {shorten(line.strip())[1:]}"
            )
        raise InputError(problem, source=self.name, line=number)

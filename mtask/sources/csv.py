"""CSV: RFC 4180, and what Excel writes (a byte order mark, CRLF, semicolons where a comma is decimal)."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from mtask.errors import InputError, UsageError
from mtask.sources.base import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Bytes,
    Chunk,
    check_columns,
    is_regular,
    open_bytes,
    shorten,
    stream_bytes,
)

__all__ = ["MOST_FIELD_CHARS", "CsvSource"]

MOST_FIELD_CHARS = 16 << 20
"""Longest field. Without a limit, a missing quote would read the rest of the file into memory."""
_BREAK = re.compile(r"\r\n|\r|\n")


class CsvSource:
    """A CSV file, or a stream of CSV, whose first line names the columns.

    Lines that are blank are skipped. Without `delimiter`, the header decides: a comma, or else
    (when it has none) a semicolon, or else a tab; a first line `sep=;`, as Excel writes it, is obeyed.
    """

    textual = True

    def __init__(
        self, path: str | os.PathLike[str] | BinaryIO, *, name: str = "", delimiter: str = ""
    ) -> None:
        self._path, self._delimiter = path, delimiter
        self.name = name or (os.fspath(path) if isinstance(path, (str, os.PathLike)) else "standard input")
        self._reader: _Reader | None = self._open()
        self.columns = self._reader.columns
        self.repeatable = isinstance(path, (str, os.PathLike)) and is_regular(path)
        if self.repeatable:
            self._reader.close()

    def chunks(self) -> Iterator[Chunk]:
        """All rows; see Source."""
        if self.repeatable:
            reader = self._open()
        elif self._reader is None:
            raise UsageError(f"{self.name} can be read only once")
        else:
            reader, self._reader = self._reader, None
        try:
            yield from reader.chunks()
        finally:
            reader.close()

    def _open(self) -> _Reader:
        if isinstance(self._path, (str, os.PathLike)):
            raw = open_bytes(self._path, refuse_nul=True)
        else:
            raw = stream_bytes(self._path, self.name, refuse_nul=True)
        try:
            return _Reader(raw, self.name, self._delimiter)
        except BaseException:
            raw.close()
            raise


class _Reader:
    def __init__(self, raw: Bytes, name: str, delimiter: str) -> None:
        self._raw, self._name = raw, name
        csv.field_size_limit(max(csv.field_size_limit(), MOST_FIELD_CHARS))
        # errors="strict", and newline="" because csv looks after the ends of lines itself
        self._text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")  # type: ignore[type-var]
        self._text._CHUNK_SIZE = 1 << 17  # type: ignore[attr-defined]
        self._line = 1
        """The line on which the next row begins."""
        delimiter = self._header(delimiter)
        lines = chain(filter(None, self._ahead), self._text)
        self._rows = csv.reader(lines, delimiter=delimiter, strict=True)
        found = self._read(1)
        while found == [[]]:
            self._line += 1
            found = self._read(1)
        if not found:
            raise InputError(
                "is empty; the first line should name the columns, as in: id,reads", source=self._name
            )
        self.columns = check_columns(found[0], self._name, self._line)
        self._line += _span(found[0])

    def close(self) -> None:
        self._text.close()

    def _header(self, delimiter: str) -> str:
        """Reads ahead to the first line that isn't blank, and tells the delimiter."""
        self._ahead: list[str] = []
        while True:
            line = self._readline()
            if not self._ahead and (match := re.fullmatch(r'"?sep=(.)"?[\r\n]*', line)):
                self._line += 1
                delimiter = delimiter or match[1]
                continue
            self._ahead.append(line)
            if line.strip("\r\n") or not line:
                break
        return delimiter or next((mark for mark in ",;\t" if mark in line), ",")

    def _readline(self) -> str:
        try:
            return self._text.readline()
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from None

    def _read(self, count: int) -> list[list[str]]:
        rows: list[list[str]] = []
        try:
            rows.extend(islice(self._rows, count))
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from None
        except csv.Error as error:
            raise self._broken(error, self._line + sum(map(_span, rows))) from None
        return rows

    def chunks(self) -> Iterator[Chunk]:
        count = 256
        while True:
            before, line_before = self._raw.total, self._rows.line_num
            rows = self._read(count)
            if not rows:
                return
            lines_read = self._rows.line_num - line_before
            chunk = self._chunk(rows, lines_read)
            if len(chunk):
                yield chunk
            size = max(1, (self._raw.total - before) // len(rows))
            count = max(16, min(CHUNK_ROWS, CHUNK_BYTES // size))

    def _chunk(self, rows: list[list[str]], lines_read: int) -> Chunk:
        first, width = self._line, len(self.columns)
        self._line += lines_read
        lines: Any
        if lines_read == len(rows):
            lines = range(first, first + lines_read)
        else:
            lines = []
            for row in rows:
                lines.append(first)
                first += _span(row)
        if set(map(len, rows)) != {width}:
            kept = [
                at for at, row in enumerate(rows) if row and (width == 1 or len(row) > 1 or row[0].strip())
            ]
            rows, lines = [rows[at] for at in kept], [lines[at] for at in kept]
            for row, line in zip(rows, lines, strict=True):
                if len(row) != width:
                    raise self._ragged(row, line)
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * width
        return Chunk(lines, columns, self._name)

    def _ragged(self, row: list[str], line: int) -> InputError:
        width = len(self.columns)
        if len(row) < width:
            what = f"there is none for column {self.columns[len(row)]!r}"
        else:
            what = "write a value that has a comma in it between double quotes"
        return InputError(
            f"expected {width} field{'s' * (width != 1)}, found {len(row)}; {what}. "
            f"The row begins: {shorten(','.join(row))}",
            source=self._name,
            line=line,
        )

    def _broken(self, error: csv.Error, line: int) -> InputError:
        text = str(error)
        if "unexpected end" in text:
            problem = "a double quote is opened in this row and never closed"
        elif "field larger" in text:
            problem = f"a field of more than {MOST_FIELD_CHARS >> 20} MiB; is a closing double quote missing?"
        elif "expected after" in text:
            problem = (
                "a double quote in the middle of a field; write such a field between double quotes, "
                'and a double quote in it twice: "5"" pipe"'
            )
        else:
            problem = f"not CSV: {text}"
        return InputError(problem, source=self._name, line=line)

    def _not_utf8(self, error: UnicodeDecodeError) -> InputError:
        data, start = bytes(error.object), error.start
        line = self._raw.line_of(data, start)
        if line == 1 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            hint = "this is UTF-16; save it as “CSV UTF-8”"
        elif line == 1 and data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            hint = "it looks compressed; give it a name that ends in .csv.gz or .csv.zst"
        else:
            hint = "convert the file, for instance: iconv -f latin1 -t utf8 OLD > NEW"
        found = data[max(0, start - 12) : start + 12]
        return InputError(
            f"not UTF-8: byte 0x{data[start]:02x} in {found!r}; {hint}", source=self._name, line=line
        )


def _span(row: list[str]) -> int:
    """How many lines of the file a row takes."""
    return 1 + len(_BREAK.findall(",".join(row)))

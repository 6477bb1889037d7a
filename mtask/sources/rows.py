"""Rows that a Python program gives: mappings, tuples, dataclasses, or a pandas DataFrame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from mtask.errors import InputError, UsageError
from mtask.sources.base import CHUNK_ROWS, Chunk, check_columns, shorten

__all__ = ["RowsSource"]


class RowsSource:
    """Rows from an iterable, which is read once, a few thousand at a time, unless it is a sequence.

    A row is a mapping, a dataclass, a named tuple, a msgspec.Struct; or a tuple or list, when
    `columns` is given. The first row names the columns, and all others must have the same. Of a
    DataFrame, the index is left out, and missing values are None (but nan where the column is of
    floats). In errors, `line` is the number of the row, from 1.
    """

    textual = False

    def __init__(
        self, rows: Iterable[Any], columns: Sequence[str] | None = None, *, name: str = "rows"
    ) -> None:
        self.name = name
        self._frame: Any = rows if _is_frame(rows) else None
        self.repeatable = self._frame is not None or isinstance(rows, Sequence)
        if isinstance(rows, (str, bytes, Mapping)):
            raise UsageError(f"rows must be a list of mappings or tuples, not a {type(rows).__name__}")
        self._rows: Iterable[Any] | None = rows
        first: list[Any] = []
        if self._frame is None and columns is None:
            try:
                iterator = iter(rows)
            except TypeError:
                raise UsageError(f"rows must be iterable, not a {type(rows).__name__}") from None
            first = list(islice(iterator, 1))
            if not self.repeatable:
                self._rows = chain(first, iterator)
        if columns is None:
            columns = self._columns_of(first) if self._frame is None else list(self._frame.columns)
        names: Sequence[Any] = columns
        strange = [column for column in names if not isinstance(column, str)]
        if strange:
            raise InputError(f"the name of a column must be text, not {strange[0]!r}", source=name)
        self.columns = check_columns(columns, name, None)

    def chunks(self) -> Iterator[Chunk]:
        """All rows; see Source."""
        if self._frame is not None:
            yield from self._frame_chunks(self._frame)
            return
        if self._rows is None:
            raise UsageError(f"{self.name} can be read only once; give a list")
        iterator = iter(self._rows)
        if not self.repeatable:
            self._rows = None
        at = 1
        while rows := list(islice(iterator, CHUNK_ROWS)):
            values = [self._values(row, number) for number, row in enumerate(rows, at)]
            columns: list[Any] = list(zip(*values, strict=True))
            yield Chunk(range(at, at + len(rows)), columns, self.name)
            at += len(rows)

    def _frame_chunks(self, frame: Any) -> Iterator[Chunk]:
        for start in range(0, len(frame), CHUNK_ROWS):
            part = frame.iloc[start : start + CHUNK_ROWS]
            columns = [self._series(part.iloc[:, at]) for at in range(len(self.columns))]
            yield Chunk(range(start + 1, start + len(part) + 1), columns, self.name)

    @staticmethod
    def _series(series: Any) -> list[Any]:
        values: list[Any] = series.tolist()
        if getattr(series.dtype, "kind", "O") in "biuf" and type(series.dtype).__module__.startswith("numpy"):
            return values
        missing = series.isna()
        if not missing.any():
            return values
        return [None if gone else value for value, gone in zip(values, missing.tolist(), strict=True)]

    def _columns_of(self, first: list[Any]) -> Sequence[str]:
        if not first:
            return ()
        fields = _fields(first[0])
        if fields is None:
            raise UsageError(
                f"the first row is a {type(first[0]).__name__}, which doesn't name its values: "
                f"give mappings, or columns=[…]: {shorten(first[0])}"
            )
        return fields

    def _values(self, row: Any, number: int) -> Sequence[Any]:
        width = len(self.columns)
        if isinstance(row, Mapping):
            if len(row) == width:
                try:
                    return [row[column] for column in self.columns]
                except KeyError:
                    pass
            raise self._other(row, list(row), number)
        fields = _fields(row)
        if fields is not None and not isinstance(row, tuple):
            if set(fields) == set(self.columns):
                return [getattr(row, column) for column in self.columns]
            raise self._other(row, fields, number)
        if isinstance(row, (tuple, list)):
            if len(row) == width:
                return row
            problem = f"expected {width} values, found {len(row)}: {shorten(row)}"
        else:
            problem = f"expected a mapping, a tuple or a dataclass, found {shorten(row)}"
        raise InputError(problem, source=self.name, line=number)

    def _other(self, row: Any, keys: Sequence[Any], number: int) -> InputError:
        missing = [key for key in self.columns if key not in keys]
        extra = [key for key in keys if key not in self.columns]
        parts = [f"without {', '.join(map(repr, missing))}"] if missing else []
        if extra:
            parts.append(f"with {', '.join(map(repr, extra))} more")
        return InputError(
            f"other columns than {', '.join(map(repr, self.columns))}: {', '.join(parts)}: {shorten(row)}",
            source=self.name,
            line=number,
        )


def _fields(row: Any) -> list[str] | None:
    """The names of a row's values, if it has any."""
    if isinstance(row, Mapping):
        return list(row)
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return [field.name for field in dataclasses.fields(row)]
    for attribute in ("_fields", "__struct_fields__"):
        if isinstance(names := getattr(type(row), attribute, None), tuple):
            return list(names)
    return None


def _is_frame(rows: Any) -> bool:
    return (
        type(rows).__module__.partition(".")[0] == "pandas"
        and hasattr(rows, "iloc")
        and hasattr(rows, "columns")
    )

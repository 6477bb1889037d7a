"""Parquet, by pyarrow."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from mtask.errors import InputError, UsageError
from mtask.sources.base import CHUNK_ROWS, Chunk, check_columns, is_regular, open_bytes

__all__ = ["ParquetSource"]


class ParquetSource:
    """A Parquet file. Dates and times become ISO 8601 text, decimals text; `line` is the number of the row."""

    textual = False
    repeatable = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise UsageError(
                f"{os.fspath(path)}: reading Parquet needs the package pyarrow: pip install 'mtask[files]'"
            ) from None
        self._path, self._arrow = path, pyarrow
        self.name = os.fspath(path)
        open_bytes(path).close()
        if not is_regular(path):
            raise InputError("Parquet can't be read from a pipe; give a file", source=self.name)
        with self._open() as file:
            schema = file.schema_arrow
        self.columns = check_columns(tuple(schema.names), self.name, None)
        if not self.columns:
            raise InputError("has no columns", source=self.name)
        self._converters = [self._converter(field.type, field.name) for field in schema]

    def chunks(self) -> Iterator[Chunk]:
        """All rows; see Source."""
        at = 1
        with self._open() as file:
            batches = file.iter_batches(batch_size=CHUNK_ROWS)
            while (batch := self._next(batches, at)) is not None:
                columns = [
                    column if convert is None else list(map(convert, column))
                    for column, convert in zip(batch, self._converters, strict=True)
                ]
                count = len(columns[0])
                if count:
                    yield Chunk(range(at, at + count), columns, self.name)
                at += count

    def _open(self) -> Any:
        try:
            return self._arrow.parquet.ParquetFile(self._path)
        except (self._arrow.ArrowException, OSError) as error:
            raise InputError(f"not a Parquet file: {_first_line(error)}", source=self.name) from None

    def _next(self, batches: Any, at: int) -> list[list[Any]] | None:
        try:
            batch = next(batches, None)
            return None if batch is None else [column.to_pylist() for column in batch.columns]
        except (self._arrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"can't be read: {_first_line(error)}", source=self.name, line=at) from None

    def _converter(self, kind: Any, column: str) -> Callable[[Any], Any] | None:
        """How values of this type become what JSON can say; None: as they are."""
        types = self._arrow.types
        if (
            types.is_boolean(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_null(kind)
            or types.is_string(kind)
            or types.is_large_string(kind)
            or kind == self._arrow.string_view()
        ):
            return None
        if types.is_temporal(kind) or types.is_decimal(kind):
            return _to_builtin
        if types.is_dictionary(kind):
            return self._converter(kind.value_type, column)
        if types.is_struct(kind):
            for at in range(kind.num_fields):
                self._converter(kind.field(at).type, column)
            return _to_builtin
        if types.is_map(kind):
            self._converter(kind.key_type, column)
            self._converter(kind.item_type, column)
            return _to_builtin
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            self._converter(kind.value_type, column)
            return _to_builtin
        raise InputError(
            f"values of type {kind} can't be sent; store text or numbers", source=self.name, column=column
        )


def _to_builtin(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {key: _to_builtin(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_builtin(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

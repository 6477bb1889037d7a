"""Where tasks come from: CSV, JSON lines, Parquet, standard input, and rows of a Python program."""

from __future__ import annotations

import os
import sys
from pathlib import PurePath
from typing import BinaryIO

from mtask.errors import UsageError
from mtask.sources.base import Chunk, Source, encode_rows
from mtask.sources.csv import CsvSource
from mtask.sources.rows import RowsSource

__all__ = ["Chunk", "CsvSource", "RowsSource", "Source", "encode_rows", "open_source"]

_INSTEAD = {
    ".xlsx": "save it from Excel as “CSV UTF-8”",
    ".xls": "save it from Excel as “CSV UTF-8”",
    ".ods": "save it as CSV with the encoding UTF-8",
    ".json": "write one object a line and name it .jsonl: jq -c '.[]' tasks.json > tasks.jsonl",
    ".zip": "unpack it, or compress it as .gz or .zst",
    ".bz2": "compress it as .gz or .zst",
    ".xz": "compress it as .gz or .zst",
}


def open_source(path: str | os.PathLike[str], stdin: BinaryIO | None = None) -> Source:
    """Open a task file by its suffix; `-` is CSV from standard input (or from `stdin`).

    .tsv has tabs; .jsonl and .ndjson are JSON lines; .parquet is Parquet; all else is CSV. All but
    Parquet may be compressed as .gz or .zst. Reads the header, and raises InputError or UsageError
    when there is something wrong with it.
    """
    if os.fspath(path) == "-":
        return CsvSource(stdin or sys.stdin.buffer, name="standard input")
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    match suffixes[-1] if suffixes else "":
        case ".tsv":
            return CsvSource(path, delimiter="\t")
        case ".jsonl" | ".ndjson":
            from mtask.sources.jsonl import JsonlSource

            return JsonlSource(path)
        case ".parquet" | ".pq":
            from mtask.sources.parquet import ParquetSource

            return ParquetSource(path)
        case suffix if suffix in _INSTEAD and os.path.exists(path):
            raise UsageError(f"{os.fspath(path)}: files of this kind can't be read; {_INSTEAD[suffix]}")
    return CsvSource(path)

"""What is fetched before an attempt and put in its place after it: `--in NAME=URL`, `--out NAME=URL`.

A NAME stands beside the columns, or in the place of a column of the same name: a command finds the path
of a file on its own machine there, and so does a function's parameter. In a URL, {column} is always the
column's own value. Who fetches and puts is `mtask.worker.child.stage`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from mtask.errors import UsageError
from mtask.keys import Seen
from mtask.model import COMMAND_COLUMN, ID_COLUMN
from mtask.requirements import REQUIREMENT_COLUMNS
from mtask.sources.base import Chunk
from mtask.spec import Spec
from mtask.template import text_of, text_parts, variable_problem
from mtask.urls import is_url, require, scheme_of, shown

__all__ = ["WRITTEN_WHOLE", "Staging", "StagingCheck", "file_name", "staged_columns"]

WRITTEN_WHOLE = frozenset({"", "file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Schemes of stores in which an output appears at once and whole: by a rename, or because they show no object
before its last byte has come."""
_RESERVED = {ID_COLUMN, COMMAND_COLUMN, *REQUIREMENT_COLUMNS}

MOST_NAME_BYTES = 200
"""Of a file; file systems take 255, and something may be added."""

Urls = dict[str, str]
"""Name → URL, or an absolute path."""


def staged_columns(
    columns: Iterable[str], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> tuple[str, ...]:
    """What a command template, or a function, may name. Raises UsageError for a name that can't be given."""
    for option, names in (("--in", inputs), ("--out", outputs)):
        for name in names:
            if name in _RESERVED:
                raise UsageError(f"{option} {name}: this name means something else; choose another one")
            if problem := variable_problem(name):
                raise UsageError(
                    f"{option} {name}: a command finds its path in the variable ${name}, but {name!r} {problem}"
                )
    if both := sorted(inputs.keys() & outputs.keys()):
        raise UsageError(f"{both[0]!r} is the name of an input and of an output: give them different names")
    return tuple(dict.fromkeys((*columns, *inputs, *outputs)))


class Staging:
    """The inputs and outputs of a bag's tasks, made from their rows."""

    def __init__(self, spec: Spec, columns: Sequence[str]) -> None:
        """`columns`: of the rows. Raises UsageError for names or URLs that make no sense."""
        self.columns = staged_columns(columns, spec.inputs, spec.outputs)
        """Those of `filled` rows."""
        self.own = len(columns)
        self.names = (*spec.inputs, *spec.outputs)
        self._at = [self.columns.index(name) for name in self.names]
        self.inputs = {name: _parts("--in", name, url, columns) for name, url in spec.inputs.items()}
        self.outputs = {name: _parts("--out", name, url, columns) for name, url in spec.outputs.items()}
        every = [*self.inputs.values(), *self.outputs.values()]
        self.used = tuple({columns[part] for parts in every for part in parts if isinstance(part, int)})
        """Columns that are in a URL: a function needn't take them."""

    def urls(self, row: Sequence[Any]) -> tuple[Urls, Urls]:
        """Of a row's inputs and outputs. Paths are made absolute: they begin where this process is.
        Raises ValueError, which names the one that can't be."""
        made = []
        for templates in (self.inputs, self.outputs):
            urls = {name: url_of(parts, row) for name, parts in templates.items()}
            for name, url in urls.items():
                if not url or "\0" in url:
                    raise ValueError(f"{name!r} has no URL in this row: {url!r}")
            made.append({name: url if is_url(url) else _absolute(url) for name, url in urls.items()})
        return made[0], made[1]

    def filled(self, row: Sequence[Any], paths: Mapping[str, str]) -> list[Any]:
        """The row with the paths in it, in the order of `columns`."""
        whole = [*row, *[None] * (len(self.columns) - self.own)]
        for name, at in zip(self.names, self._at, strict=True):
            whole[at] = paths[name]
        return whole

    def sampled(self, chunk: Chunk) -> Chunk:
        """A chunk of filled rows, with some path or other: do the parameters take one?"""
        more = [["/path"] * len(chunk)] * (len(self.columns) - self.own)
        return Chunk(chunk.lines, [*chunk.columns, *more], chunk.source)

    def unfilled(self, chunk: Chunk) -> Chunk:
        """Without what `sampled` added."""
        return Chunk(chunk.lines, chunk.columns[: self.own], chunk.source)


def _parts(option: str, name: str, url: str, columns: Sequence[str]) -> list[str | int]:
    try:
        return text_parts(url, columns)
    except UsageError as error:
        raise UsageError(f"{option} {name}: {error}") from None


def url_of(parts: Sequence[str | int], row: Sequence[Any]) -> str:
    return "".join([part if isinstance(part, str) else text_of(row[part]) for part in parts])


def _absolute(path: str) -> str:
    whole = os.path.abspath(path)
    return f"{whole}/" if path.endswith("/") and whole != "/" else whole


def file_name(url: str) -> str:
    """How a file from there, or to go there, is called here: programs look at the ending of a name."""
    path = urlsplit(url).path if scheme_of(url) in ("http", "https") else url.partition("://")[2] or url
    name = (
        posixpath.basename(path.rstrip("/"))
        .encode("utf-8", "replace")[-MOST_NAME_BYTES:]
        .decode("utf-8", "ignore")
    )
    return name if name.strip(".") else "file"


class StagingCheck:
    """Checks what `submit` sends: every URL of every row, as far as that can be done without asking a store."""

    def __init__(self, spec: Spec, columns: Sequence[str]) -> None:
        """Raises UsageError, also when this installation can't use a URL that a template begins with."""
        self._staging = Staging(spec, columns)
        self.used = self._staging.used
        self._columns = tuple(columns)
        self._seen, self._rows, self._schemes = Seen(), 0, dict[tuple[str, bool], str]()
        staging = self._staging
        for option, templates in (("--in", staging.inputs), ("--out", staging.outputs)):
            for name, parts in templates.items():
                if isinstance(first := parts[0], int):
                    continue
                is_output = option == "--out"
                constant = len(parts) == 1
                problem = self._problem(first, is_output) if constant else self._unusable(first, is_output)
                if problem:
                    raise UsageError(f"{option} {name}: {problem}")

    def wire(self, wire: Callable[[Chunk], Chunk]) -> Callable[[Chunk], Chunk]:
        """The same for chunks without the paths."""
        return lambda chunk: self._staging.unfilled(wire(self._staging.sampled(chunk)))

    def check(self, chunk: Chunk, sent: Sequence[bool] | None) -> None:
        """`sent`: which of the rows are; None: all. Raises InputError, with the line."""
        staging = self._staging
        for at, row in enumerate(zip(*chunk.columns, strict=True)):
            if sent is not None and not sent[at]:
                continue
            self._rows += 1
            for is_output, templates in ((False, staging.inputs), (True, staging.outputs)):
                for name, parts in templates.items():
                    url = url_of(parts, row)
                    problem = self._problem_of_row(url, is_output)
                    if problem:
                        option = "--out" if is_output else "--in"
                        raise chunk.error(f"{option} {name}: {problem}", at, self._column(parts))

    def _problem_of_row(self, url: str, is_output: bool) -> str:
        if not url:
            return "the URL is empty"
        if "\0" in url:
            return "a NUL character can't be in a URL"
        if problem := self._problem(url, is_output):
            return problem
        if is_output and not self._seen.new([url])[0]:
            return f"another output goes to {shown(url)}, too: put a column into the URL that tells the tasks apart, as {{id}}"
        return ""

    def _problem(self, url: str, is_output: bool) -> str:
        if is_output and url.endswith("/"):
            return f"{shown(url)} is a folder; an output is one file"
        return self._unusable(url, is_output)

    def _unusable(self, url: str, is_output: bool) -> str:
        """By its scheme."""
        key = scheme_of(url), is_output
        if key not in self._schemes:
            self._schemes[key] = _scheme_problem(*key)
        return self._schemes[key]

    def _column(self, parts: Sequence[str | int]) -> str | None:
        return next((self._columns[part] for part in parts if isinstance(part, int)), None)


def _scheme_problem(scheme: str, is_output: bool) -> str:
    if is_output and scheme not in WRITTEN_WHOLE:
        known = ", ".join(sorted(each for each in WRITTEN_WHOLE if each))
        return f"to {scheme}:// nothing can be written so that it appears whole or not at all; use a path, or one of {known}"
    try:
        require(scheme)
    except UsageError as error:
        return str(error)
    return ""

"""Where queue and table are: command line, then environment, then `mtask.toml`, then the default."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import NamedTuple

from mtask.errors import UsageError
from mtask.registry import serves_table

__all__ = ["DEFAULT_URL", "FILE", "Urls", "find_urls"]

DEFAULT_URL = "sqlite:///.mtask/mtask.db"
FILE = "mtask.toml"
_KEYS = ("queue", "table")


class Urls(NamedTuple):
    queue: str
    table: str


def find_urls(queue: str | None = None, table: str | None = None) -> Urls:
    """The URLs of queue and table.

    `mtask.toml` is looked for in the working directory and its parents. Where only the queue is
    given and its backend can be a table, too, it is both. Raises UsageError for a file that is wrong.
    """
    stored = _from_file()
    queue = queue or os.environ.get("MTASK_QUEUE") or stored.get("queue")
    table = table or os.environ.get("MTASK_TABLE") or stored.get("table")
    if table is None:
        table = queue if queue is not None and serves_table(queue) else DEFAULT_URL
    return Urls(queue or DEFAULT_URL, table)


def _from_file() -> dict[str, str]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / FILE
        if path.is_file():
            return _read(path)
    return {}


def _read(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise UsageError(f"{path}: unknown setting {unknown[0]!r}; there are {', '.join(_KEYS)}")
    for key, value in content.items():
        if not isinstance(value, str):
            raise UsageError(f'{path}: {key} must be a URL in quotes, like "{DEFAULT_URL}"')
    return content

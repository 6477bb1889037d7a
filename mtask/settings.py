"""Where queue and table are: command line, then environment, then `mtask.toml`, then the default."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mtask.errors import UsageError
from mtask.registry import scheme_of, shown, table_beside

__all__ = ["DEFAULT_URL", "FILE", "Urls", "absolute", "find_urls"]

DEFAULT_URL = "sqlite:///.mtask/mtask.db"
FILE = "mtask.toml"
_KEYS = ("queue", "table")


class Urls(NamedTuple):
    """Where queue and table are."""

    queue: str
    table: str

    @property
    def place(self) -> str:
        """For people."""
        queue, table = (_place(url) for url in self)
        return queue if queue == table else f"{queue} (results in {table})"

    @property
    def table_place(self) -> str:
        """Of the table alone, for people."""
        return _place(self.table)


def find_urls(queue: str | None = None, table: str | None = None) -> Urls:
    """The URLs of queue and table.

    `mtask.toml` is looked for in the working directory and its parents; a relative path in it is
    relative to its folder. Where only the queue is given, the table is the one that goes with it. Raises UsageError for a file or a variable that is wrong.
    """
    stored = _from_file()
    queue = queue or _from_environment("MTASK_QUEUE") or stored.get("queue")
    table = table or _from_environment("MTASK_TABLE") or stored.get("table")
    if table is None:
        table = (queue and table_beside(queue)) or DEFAULT_URL
    return Urls(queue or DEFAULT_URL, table)


def absolute(url: str) -> str:
    """The same place for a process that works in another folder."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith("/"):
        return url
    if path.startswith("~"):
        return f"sqlite:///{quote(os.path.expanduser(path))}"
    return f"sqlite:///{quote(str(Path.cwd()))}/{path}"


def _place(url: str) -> str:
    return shown(url).removeprefix("sqlite:///")


def _from_environment(name: str) -> str | None:
    url = os.environ.get(name)
    if url:
        _check(url, name)
    return url


def _from_file() -> dict[str, str]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / FILE
        if path.is_file():
            return _read(path)
    return {}


def _read(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    urls = dict[str, str]()
    for key, value in content.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {' and '.join(_KEYS)}"
            raise UsageError(f"{path}: unknown setting {key!r}; {hint}")
        if not isinstance(value, str):
            raise UsageError(f'{path}: {key} must be a URL in quotes, like "{DEFAULT_URL}"')
        _check(value, f"{path}: {key}")
        urls[key] = _below(path.parent, value)
    return urls


def _check(url: str, place: str) -> None:
    try:
        scheme_of(url)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _below(folder: Path, url: str) -> str:
    """The same file wherever below the folder mtask is called."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(("/", "~")) or folder == Path.cwd():
        return url
    return f"sqlite:///{quote(str(folder))}/{path}"

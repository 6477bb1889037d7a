"""Queue and table in one SQLite file: no server, no account; many processes of one machine.

    sqlite:///tasks.db                 a path relative to the working directory
    sqlite:////data/tasks.db           an absolute one
    sqlite:///tasks.db?lane=big        a queue of its own in the same file
    sqlite:///tasks.db?durable=no      never waits for the disk; after a power cut the file may be damaged

Beside the file `tasks.db` lie `tasks.db-wal` and `tasks.db-shm` (SQLite's; parts of the database while
anybody has it open) and `tasks.db.lock` (empty; its time is that of the last send). Not for network file systems: their locks don't hold.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError
from mtask.registry import MADE, THERE
from mtask_sqlite.database import Database
from mtask_sqlite.queue import SqliteQueue
from mtask_sqlite.table import SqliteTable

if TYPE_CHECKING:
    from mtask.doctor import Finding

__all__ = [
    "Database",
    "SqliteQueue",
    "SqliteTable",
    "diagnose",
    "make_queue",
    "make_table",
    "open_queue",
    "open_table",
]

_EXAMPLE = "it should look like sqlite:///tasks.db (relative) or sqlite:////data/tasks.db (absolute)"


def open_queue(url: str) -> SqliteQueue:
    """Open or create the file at `url`, and the queue in it.

    Raises UsageError for a URL that can't be used, BackendError for a file that can't.
    """
    path, lane, durable = _parse(url)
    database = Database.open(path, durable=durable)
    try:
        return SqliteQueue(database, lane)
    except BaseException:
        database.close()
        raise


def open_table(url: str) -> SqliteTable:
    """Open or create the file at `url`, and the table in it; raises as `open_queue` does."""
    path, _, durable = _parse(url)
    return SqliteTable(Database.open(path, durable=durable))


def make_queue(url: str) -> list[tuple[str, str]]:
    """As mtask.registry says; raises as `open_queue` does."""
    path, _, durable = _parse(url)
    was_there = os.path.exists(path)
    Database.open(path, durable=durable).close()
    return [(f"file {path}", THERE if was_there else MADE)]


make_table = make_queue
"""One file holds both."""


def diagnose(urls: Sequence[str], _roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says: whether the files are there; opening one that isn't would make it."""
    from mtask.doctor import Finding

    for path in dict.fromkeys(_parse(url)[0] for url in urls):
        if not os.path.exists(path):
            todo = "go to the folder where you work; if this is it, the first `mtask run` or `mtask submit` makes the file"
            yield Finding("file", False, f"{os.path.abspath(path)} isn't there", todo, stops=True)


def _parse(url: str) -> tuple[str, str, bool]:
    """The path, the lane, and whether it is durable."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or not url.startswith("sqlite:///"):
        raise UsageError(f"{url!r} is not the URL of an SQLite file; {_EXAMPLE}")
    path = os.path.expanduser(unquote(parts.path[1:]))
    if not path or path.endswith("/"):
        raise UsageError(f"{url!r} names no file; {_EXAMPLE}")
    if path == ":memory:":
        raise UsageError(f"{url!r}: manager and workers are several processes and need a file; {_EXAMPLE}")
    if parts.fragment:
        raise UsageError(f"{url!r}: a '#' in a path is written %23")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    lane, durable = options.pop("lane", "main"), options.pop("durable", "yes")
    if options:
        raise UsageError(f"{url!r}: unknown option {min(options)!r}; there are lane=NAME and durable=no")
    if durable not in ("yes", "no"):
        raise UsageError(f"{url!r}: durable is yes or no, not {durable!r}")
    if not lane:
        raise UsageError(f"{url!r}: the lane has no name")
    return path, lane, durable == "yes"

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
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError
from mtask_sqlite.database import Database
from mtask_sqlite.queue import SqliteQueue
from mtask_sqlite.table import SqliteTable

__all__ = ["Database", "SqliteQueue", "SqliteTable", "open_queue", "open_table"]

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

"""The SQLite table behind a service that takes its time: a backend of somebody else's, found by its entry point.

    slow:///tasks.db?fast=0.06&reliable=0.1

For bags whose names begin with `fast` or `reliable`, each call of `record` takes 60 or 100 ms, for others no longer than
SQLite takes. Only one is served at a time, over all processes that use this file. As the table service of the literature
sends a status message for what it has stored, this one appends a line to `tasks.db.stored`: when, how many rows, of
which bag.

This folder is what pip makes of such a package; with it on the module path, mtask finds the scheme.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from mtask.errors import UsageError
from mtask.model import Result
from mtask.portion import Portion
from mtask.queue import Queue
from mtask_sqlite import SqliteTable
from mtask_sqlite import open_table as open_sqlite

__all__ = ["SlowTable", "Stored", "open_table", "stored"]


class Stored(NamedTuple):
    """What one call of `record` has stored of one bag."""

    at: float
    """UTC, when the call was over."""
    rows: int
    bag: str


class SlowTable(SqliteTable):
    """Only `record` is slow: the literature's service had no other call."""

    services_s: dict[str, float]
    """By how the bag's name begins."""

    def record(self, results: Sequence[Result | Portion]) -> None:
        bags = _rows_by_bag(results)
        service_s = max(map(self._service_s, bags), default=0.0)
        with open(f"{self.database.path}.stored", "a", encoding="utf-8") as status:
            fcntl.flock(status, fcntl.LOCK_EX)  # until the file is closed, or the process dies
            over_s = time.monotonic() + service_s
            super().record(results)
            time.sleep(max(0.0, over_s - time.monotonic()))
            at = time.time()
            status.writelines(f"{at:.6f} {rows} {bag}\n" for bag, rows in bags.items())

    def _service_s(self, bag: str) -> float:
        return max(
            (took_s for start, took_s in self.services_s.items() if bag.startswith(start)), default=0.0
        )

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()  # a service elsewhere shares none with the queue


def open_table(url: str) -> SlowTable:
    """Raises UsageError for a URL that makes no sense."""
    path, _, options = url.partition("?")
    try:
        services_s = {name: float(text) for name, text in parse_qsl(options, strict_parsing=True)}
    except ValueError:
        raise UsageError(f"{url!r}: it should look like slow:///tasks.db?fast=0.06&reliable=0.1") from None
    inner = open_sqlite(path.replace("slow:", "sqlite:", 1))
    table = SlowTable(inner.database)  # which takes over its one use
    table.services_s = services_s
    return table


def stored(path: Path, bag: str) -> list[Stored]:
    """What was stored of a bag, in order, by the file `….stored`."""
    lines = (line.split(" ", 2) for line in path.read_text(encoding="utf-8").splitlines())
    return [Stored(float(at), int(rows), name) for at, rows, name in lines if name == bag]


def _rows_by_bag(results: Iterable[Result | Portion]) -> Counter[str]:
    counts = Counter[str]()
    for each in results:
        counts[each.bag] += each.count if isinstance(each, Portion) else 1
    return counts

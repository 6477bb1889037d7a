"""What `mtask doctor` looks at: first what every place has in common, then what each backend knows of its own."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import mtask
from mtask.errors import MtaskError, SchemaError
from mtask.heartbeat import WorkerStatus
from mtask.queue import Depth
from mtask.registry import ROLES, diagnose, open_queue, open_table, shown
from mtask.settings import Urls
from mtask.table import Table

__all__ = ["CLOCK_S", "Finding", "clock_finding", "clock_findings", "examine"]

OLDEST_PYTHON = (3, 11)
CLOCK_S = 30.0
"""A clock that is wrong by more confuses times in results, delays and expiries; AWS refuses requests at 300 s."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    """In a few words, for the first column."""
    ok: bool | None
    """None: that can't be told from here."""
    text: str
    """What was found."""
    todo: str = ""
    """What to do about it; empty if there is nothing to do, or the text says it."""
    stops: bool = False
    """There is no point in opening the queue or the table: nothing is there, or nobody may."""

    @classmethod
    def problem(cls, what: str, error: Exception, todo: str = "", *, stops: bool = False) -> Finding:
        """What an error says."""
        return cls(what, False, str(error), todo, stops)


def examine(urls: Urls, roles: Collection[str] = ROLES) -> Iterator[Finding]:
    """One finding after the other, as they are made; nothing is changed that somebody else could notice."""
    yield from _program()
    stops = False
    for finding in _try("place", lambda: diagnose(urls.queue, urls.table, roles), stops=True):
        stops = stops or finding.stops
        yield finding
    if not stops:
        yield from _try("queue", lambda: _queue(urls.queue))
        yield from _try("table", lambda: _table(urls.table))


def clock_finding(ahead_s: float, whose: str) -> Finding:
    """`ahead_s`: how much this host's clock is ahead of that one."""
    off_s = abs(ahead_s)
    text = f"{off_s:.0f} s {'ahead of' if ahead_s > 0 else 'behind'} {whose}" if off_s >= 1 else f"as {whose}"
    todo = "" if off_s < CLOCK_S else "set it: `timedatectl set-ntp true`, or ask whoever runs this machine"
    return Finding("clock", off_s < CLOCK_S, text, todo)


def clock_findings(date: str | None, asked_s: float, took_s: float, whose: str) -> Iterator[Finding]:
    """By the header `Date` of an answer, if it has one: as much as is sure. `asked_s`: when it was asked for, here."""
    if not date:
        return
    # The header has whole seconds, cut off; the request may have been answered at any moment of its way.
    ahead_s = asked_s + took_s / 2 - (parsedate_to_datetime(date).timestamp() + 0.5)
    sure_s = max(0.0, abs(ahead_s) - 0.5 - took_s / 2)
    yield clock_finding(sure_s if ahead_s > 0 else -sure_s, whose)


def _program() -> Iterator[Finding]:
    version = platform.python_version()
    fits = sys.version_info >= OLDEST_PYTHON
    todo = "" if fits else f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    yield Finding("python", fits, f"{version} ({sys.executable})", todo)
    yield Finding("mtask", True, mtask.__version__)


def _try(what: str, look: Callable[[], Iterable[Finding]], *, stops: bool = False) -> Iterator[Finding]:
    try:
        yield from look()
    except MtaskError as error:
        yield Finding.problem(what, error, stops=stops)


def _queue(url: str) -> Iterator[Finding]:
    queue = open_queue(url)
    try:
        began_s = time.monotonic()
        depth = queue.depth()
        took_ms = (time.monotonic() - began_s) * 1000
    finally:
        queue.close()
    yield Finding("queue", True, f"{shown(url)} answers in {took_ms:.0f} ms: {_depth_text(depth)}")


def _depth_text(depth: Depth) -> str:
    parts = [f"{number:,} {name}" for name, number in depth._asdict().items() if number is not None]
    return f"{', '.join(parts)} messages" if parts else "it can't tell how many messages are in it"


def _table(url: str) -> Iterator[Finding]:
    table = open_table(url)
    try:
        began_s = time.monotonic()
        unread: list[SchemaError] = []
        bags = len(table.bags(skipped=unread.append))
        took_ms = (time.monotonic() - began_s) * 1000
        yield Finding("table", True, f"{shown(url)} answers in {took_ms:.0f} ms: {bags:,} bags")
        if unread:
            yield Finding("bags", False, f"{len(unread):,} can't be read: {unread[0]}", "upgrade mtask here")
        yield from _workers(table)
        if dead := sum(1 for _ in table.dead()):
            yield Finding(
                "dead messages",
                False,
                f"{dead:,} that nobody could read, or that were received too often",
                "`mtask dead` shows them; `mtask repair BAG` sends their tasks again",
            )
    finally:
        table.close()


def _workers(table: Table) -> Iterator[Finding]:
    now = time.time()
    workers = table.workers()
    alive = [worker for worker in workers if worker.alive(now)]
    silent = [worker for worker in workers if worker.state != "stopped" and not worker.alive(now)]
    text = f"{len(alive)} alive" + (f", {len(silent)} of the last day fell silent" if silent else "")
    todo = "" if alive else "nothing is run until `mtask worker` is started"
    yield Finding("workers", True if alive else None, text, todo)
    yield from _versions(alive)


def _versions(alive: list[WorkerStatus]) -> Iterator[Finding]:
    versions = {worker.version for worker in alive} - {""}
    if versions - {mtask.__version__}:
        found = ", ".join(sorted(versions))
        yield Finding(
            "versions",
            False,
            f"this is mtask {mtask.__version__}, workers have {found}",
            "install the same version everywhere: an older worker gives back what a newer one must read",
        )

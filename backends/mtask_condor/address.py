"""The URL of a queue in HTCondor, taken apart."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import mtask
from mtask.errors import UsageError
from mtask.requirements import parse_size

__all__ = ["Address", "address_of"]

EXAMPLE = (
    "it should look like condor:///reads (the schedd of this machine) or condor://submit.example.org/reads"
)
SPLIT_AFTER_S = 60.0
"""Where somebody always collects."""
_OPTIONS = ("collect", "disk", "folder", "grace_s", "path", "pool", "python", "split_after_s", "table")


class Address(NamedTuple):
    """Where a queue is, and how its jobs run."""

    schedd: str
    """Name of the schedd; empty: the one of this machine."""
    pool: str
    """host[:port] of the collector that knows it; empty: the one that this machine is configured for."""
    name: str
    folder: Path
    """Absolute. Messages and results lie here, on a disk of the schedd's machine."""
    python: str
    """The interpreter on the execute nodes."""
    path: tuple[str, ...]
    """Where it finds mtask and the user's modules."""
    direct: bool
    """Do the nodes write to the table themselves?"""
    disk_kib: int | None
    """Asked for by each job."""
    grace_s: float
    """Between SIGTERM and SIGKILL, when a node is taken away."""
    split_after_s: float | None
    """None: nothing is cut."""
    collect: bool
    """Is there to be a job that collects?"""

    @property
    def url(self) -> str:
        """Without options."""
        return f"condor://{quote(self.schedd)}/{self.name}"


def address_of(url: str) -> Address:
    """Raises UsageError."""
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme != "condor" or not url.startswith("condor://"):
        raise UsageError(f"{url!r} is not the URL of a queue in HTCondor; {EXAMPLE}")
    if not re.fullmatch(r"[^\W_][\w.-]{0,63}", name, re.ASCII):
        raise UsageError(
            f"{url!r}: the queue needs a name of 1 to 64 letters, digits, '.', '-' and '_' behind the schedd; {EXAMPLE}"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(given.keys() - set(_OPTIONS)):
        raise UsageError(f"{url!r}: unknown option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    if given.get("table", "files") not in ("files", "direct"):
        raise UsageError(
            f"{url!r}: table is files (HTCondor brings results back) or direct, not {given['table']!r}"
        )
    schedd = unquote(parts.netloc)
    collect = _collects(url, given.get("collect"), schedd)
    folder = given.get("folder") or os.path.join(".mtask", "condor", schedd or "local", name)
    return Address(
        schedd=schedd,
        pool=_pool(url, given.get("pool", ""), schedd),
        name=name,
        folder=Path(folder).expanduser().absolute(),
        python=given.get("python") or sys.executable,
        path=tuple(given["path"].split(":")) if given.get("path") else _path_here(),
        direct=given.get("table") == "direct",
        disk_kib=_disk_kib(url, given.get("disk")),
        grace_s=_seconds(url, given, "grace_s", 40.0),
        split_after_s=_seconds(url, given, "split_after_s", SPLIT_AFTER_S)
        if collect or "split_after_s" in given
        else None,
        collect=collect,
    )


def _collects(url: str, given: str | None, schedd: str) -> bool:
    """By itself only where that job is the same user's on the same machine: root's jobs are somebody else's."""
    if given not in (None, "yes", "no"):
        raise UsageError(f"{url!r}: collect is yes or no, not {given!r}")
    if given == "yes" and not os.geteuid():
        raise UsageError(
            f"{url!r}: root's jobs are somebody else's, who can't collect; leave collect=yes out, and call `mtask wait`"
        )
    return given == "yes" or (given is None and not schedd and os.geteuid() != 0)


def _pool(url: str, pool: str, schedd: str) -> str:
    if pool and not re.fullmatch(r"[\w.-]+(:\d+)?", pool):
        raise UsageError(f"{url!r}: pool is the host, or host:port, of a collector, not {pool!r}")
    if pool and not schedd:
        raise UsageError(f"{url!r}: which schedd of that pool? Write condor://SCHEDD/NAME?pool={pool}")
    return pool


def _path_here() -> tuple[str, ...]:
    """The working folder, and what this interpreter's mtask and its libraries were imported from."""
    import msgspec

    import mtask_condor

    found = [
        Path.cwd(),
        *(Path(module.__file__ or "").parents[1] for module in (mtask, mtask_condor, msgspec)),
    ]
    return tuple(dict.fromkeys(map(str, found)))


def _disk_kib(url: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return -(-parse_size(text) // 1024)
    except ValueError as error:
        raise UsageError(f"{url!r}: disk: {error}") from None


def _seconds(url: str, given: dict[str, str], name: str, default_s: float) -> float:
    try:
        value_s = float(given.get(name, default_s))
    except ValueError:
        value_s = -1.0
    if not 1 <= value_s < 1e9:
        raise UsageError(f"{url!r}: {name} must be a number of seconds from 1 on, not {given[name]!r}")
    return value_s

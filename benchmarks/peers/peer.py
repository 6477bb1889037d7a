"""The words of all peers. The standard library is all that is needed here."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["SLOTS", "WORKLOADS", "Module", "Peer", "Row", "Run", "Table", "Task", "address", "folder"]

SLOTS = 2
"""Tasks at a time, for everyone."""
WORKLOADS = ("functions", "commands", "latency")
IN_A_TASK = "os.posix_spawn and waitpid in a function task"

Row = tuple[int, str, float]
Task = Callable[[int, str, float], int]
"""`tasks.noop` or `tasks.spawn`. A peer that starts programs itself runs /bin/true instead of `spawn`."""


@dataclass(frozen=True)
class Table:
    """A CSV file of tasks: a number, a short text, a fraction."""

    path: Path
    count: int

    def rows(self) -> list[Row]:
        with self.path.open(newline="") as file:
            next(lines := csv.reader(file))
            return [(int(number), name, float(weight)) for number, name, weight in lines]


Run = Callable[[Task, Table], Sequence[Any]]
"""Does all tasks of a table, and returns their results, in any order, when all are back."""


@dataclass(frozen=True)
class Peer:
    """One way to run one peer."""

    name: str
    settings: str
    """What was set for throughput, and which document of the peer recommends it."""
    durable: str
    """What is still there after a power cut."""
    requirements: tuple[str, ...] = ()
    """For pip, the peer itself first. None: this environment will do."""
    programs: tuple[str, ...] = ()
    """Must be on PATH; the first one tells the version."""
    servers: tuple[str, ...] = ()
    """Of servers.py. They are started before the workers."""
    workers: int = 0
    """So many processes run the module's `worker`."""
    workloads: tuple[str, ...] = WORKLOADS
    values: bool = True
    """Are return values kept? Otherwise only the number of the tasks done is checked."""
    commands: str = IN_A_TASK
    """How it starts a program."""
    note: str = ""


class Module(Protocol):
    """What a peer's module has."""

    PEERS: tuple[Peer, ...]

    def client(self, name: str) -> AbstractContextManager[Run]: ...

    def worker(self, name: str) -> None:
        """Not needed by a peer that has none."""


def address(server: str) -> str:
    """The URL of a server that the driver has started."""
    return os.environ[f"MTASK_PEERS_{server.upper()}"]


def folder() -> Path:
    """For files of workers and client; empty at first, removed at the end."""
    return Path(os.environ["MTASK_PEERS_FOLDER"])

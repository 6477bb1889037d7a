"""Huey on SQLite."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client", "worker"]

POLL_S = 0.01
SETTINGS = (
    f"one consumer with {SLOTS} process workers (Huey docs, Consuming Tasks), which look "
    f"every {POLL_S} s into an empty queue (-d, -m); SqliteHuey in WAL mode; results by task.map and "
    f"ResultGroup.get(blocking=True, max_delay={POLL_S})"
)
REQUIREMENTS = ("huey==3.5.4",)

PEERS = (
    Peer(
        "huey-sqlite",
        settings=f"{SETTINGS}; fsync=False",
        durable="tasks until a worker takes them, and results: not against a power cut",
        requirements=REQUIREMENTS,
        workers=1,
        note="a task is deleted from the queue when a worker takes it; a result when it is read",
    ),
    Peer(
        "huey-sqlite-fsync",
        settings=f"{SETTINGS}; fsync=True",
        durable="tasks until a worker takes them, and results until they are read",
        requirements=REQUIREMENTS,
        workers=1,
        note="a task is deleted from the queue when a worker takes it; a result when it is read",
    ),
)


def make(name: str) -> Any:
    from huey import SqliteHuey

    huey = SqliteHuey("peers", filename=str(folder() / "huey.db"), fsync=name.endswith("fsync"))
    for task in (noop, spawn):
        setattr(huey, task.__name__, huey.task(name=task.__name__)(task))
    return huey


def worker(name: str) -> None:
    options = {"worker_type": "process", "initial_delay": POLL_S, "max_delay": POLL_S, "periodic": False}
    make(name).create_consumer(workers=SLOTS, **options).run()


@contextmanager
def client(name: str) -> Iterator[Run]:
    huey = make(name)

    def run(task: Task, table: Table) -> list[int]:
        results = getattr(huey, task.__name__).map(table.rows())
        return list(results.get(blocking=True, max_delay=POLL_S))

    yield run

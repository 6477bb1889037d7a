"""litequeue, a queue in SQLite: no workers, no results. Both are made here of what it has."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import tasks
from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder

__all__ = ["PEERS", "client", "worker"]

POLL_S = 0.001

PEERS = (
    Peer(
        "litequeue",
        settings=f"{SLOTS} processes that pop(), call, put() the result into a second queue and done() (litequeue's "
        f"docstring: one file for each queue); JSON; an empty queue is looked at every {POLL_S * 1000:.0f} ms",
        durable="tasks and results, but the last ones before a power cut (synchronous=NORMAL)",
        requirements=("litequeue==0.9",),
        workers=SLOTS,
        note="a queue only: the loop of the workers is the benchmark's",
    ),
)


def queue(name: str) -> Any:
    from litequeue import LiteQueue

    return LiteQueue(folder() / f"{name}.db", timeout=60)


def messages(taken: Any) -> Iterator[Any]:
    while True:
        if (message := taken.pop()) is None:
            time.sleep(POLL_S)
        else:
            yield message


def worker(name: str) -> None:  # noqa: ARG001
    calls, results = queue("calls"), queue("results")
    for message in messages(calls):
        task, row = json.loads(message.data)
        results.put(json.dumps(getattr(tasks, task)(*row)))
        calls.done(message.message_id)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    calls, results = queue("calls"), queue("results")

    def run(task: Task, table: Table) -> list[int]:
        for row in table.rows():
            calls.put(json.dumps((task.__name__, row)))
        values = []
        for _, message in zip(range(table.count), messages(results), strict=False):
            values.append(json.loads(message.data))
            results.done(message.message_id)
        return values

    yield run

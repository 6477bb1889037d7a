"""python-task-queue (task-queue on the package index) with its file queue."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client"]

POLL_S = 0.01

PEERS = (
    Peer(
        "python-task-queue",
        settings=f"a file queue (fq://), the one of its queues that needs no cloud; insert of all without threads, which "
        f"are for cloud queues (n_threads=0), then {SLOTS} forked processes in TaskQueue.poll, until "
        f"block_until_empty(interval_sec={POLL_S}) returns",
        durable="tasks until they are done, without fsync; return values are not kept",
        requirements=("task-queue==2.14.3",),
        workloads=("functions", "commands"),
        values=False,
        note="return values are dropped; the workers start after the insert (their start is in the time), because a "
        "task that is taken while it is being inserted stays in the queue until its lease ends, and runs again",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    from taskqueue import TaskQueue, queueable

    known: dict[Task, Any] = {task: queueable(task) for task in (noop, spawn)}
    queue = TaskQueue(f"fq://{folder() / 'queue'}", n_threads=0, progress=False)
    options = {"lease_seconds": 600, "max_backoff_window": POLL_S}
    fork = multiprocessing.get_context("fork")

    def run(task: Task, table: Table) -> list[None]:
        queue.insert([partial(known[task], *row) for row in table.rows()])
        workers = [fork.Process(target=queue.poll, kwargs=options) for _ in range(SLOTS)]
        for worker in workers:
            worker.start()
        queue.block_until_empty(interval_sec=POLL_S)
        for worker in workers:
            worker.kill()
            worker.join()
        return [None] * table.count

    yield run

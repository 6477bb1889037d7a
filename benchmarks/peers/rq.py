"""RQ, which needs Redis."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, address

__all__ = ["PEERS", "client", "worker"]

QUEUE = "peers"
WAIT_S = 120
SETTINGS = f"{SLOTS} workers, Queue.enqueue_many, and Job.latest_result(timeout), which waits without polling"
REQUIREMENTS = ("rq==3.0.0",)

PEERS = (
    Peer(
        "rq",
        settings=f"{SETTINGS}; the default Worker, which forks for each task, as RQ docs, Notes on Performance, "
        "recommend for production",
        durable="nothing",
        requirements=REQUIREMENTS,
        servers=("redis",),
        workers=SLOTS,
    ),
    Peer(
        "rq-simple",
        settings=f"{SETTINGS}; SimpleWorker, which doesn't fork, for jobs that are extremely short-lived "
        "(RQ docs, Notes on Performance)",
        durable="nothing",
        requirements=REQUIREMENTS,
        servers=("redis",),
        workers=SLOTS,
    ),
)


def worker(name: str) -> None:
    kind = "rq.SimpleWorker" if name == "rq-simple" else "rq.Worker"
    os.execlp("rq", "rq", "worker", "--quiet", "--url", address("redis"), "--worker-class", kind, QUEUE)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    from redis import Redis
    from rq import Queue

    queue = Queue(QUEUE, connection=Redis.from_url(address("redis")))

    def run(task: Task, table: Table) -> list[int]:
        jobs = queue.enqueue_many([Queue.prepare_data(task, row) for row in table.rows()])
        return [job.latest_result(timeout=WAIT_S).return_value for job in jobs]

    yield run

"""taskiq on Redis."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, address
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "broker", "client", "worker"]

POLL_S = 0.001
CONNECTIONS = 20

PEERS = (
    Peer(
        "taskiq",
        settings=f"taskiq worker --workers {SLOTS}, tasks are coroutines; RedisStreamBroker with acknowledgements and "
        "RedisAsyncResultBackend, as taskiq-redis' README recommends; wait_result(check_interval="
        f"{POLL_S}) for one task after the other",
        durable="nothing",
        requirements=("taskiq==0.13.0", "taskiq-redis==1.2.4"),
        servers=("redis",),
        workers=1,
        note="a worker process takes many coroutines at a time; these are done one after the other",
    ),
)


def broker() -> Any:
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    results: Any = RedisAsyncResultBackend(address("redis"), max_connection_pool_size=CONNECTIONS)
    stream = RedisStreamBroker(address("redis"), max_connection_pool_size=CONNECTIONS).with_result_backend(
        results
    )

    @stream.task(task_name=noop.__name__)
    async def noop_task(number: int, name: str, weight: float) -> int:
        return noop(number, name, weight)

    @stream.task(task_name=spawn.__name__)
    async def spawn_task(number: int, name: str, weight: float) -> int:
        return spawn(number, name, weight)

    return stream


def worker(name: str) -> None:  # noqa: ARG001
    options = ["--workers", str(SLOTS), "--log-level", "WARNING"]
    os.execlp("taskiq", "taskiq", "worker", f"{__name__}:broker", *options)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    stream = broker()

    async def do(task: Task, table: Table) -> list[int]:
        send = stream.find_task(task.__name__).kiq
        sent = await asyncio.gather(*(send(*row) for row in table.rows()))
        return [(await one.wait_result(check_interval=POLL_S)).return_value for one in sent]

    with asyncio.Runner() as runner:
        runner.run(stream.startup())
        yield lambda task, table: runner.run(do(task, table))
        runner.run(stream.shutdown())

"""Procrastinate, which needs PostgreSQL."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, address
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client", "worker"]

POLL_S = 0.005
UNFINISHED = (
    "SELECT EXISTS (SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')) AS unfinished"
)

PEERS = (
    Peer(
        "procrastinate",
        settings=f"{SLOTS} worker processes, each run_worker_async(concurrency=1) with LISTEN/NOTIFY; tasks are "
        "coroutines, sent by batch_defer_async (Procrastinate docs, on deferring many jobs at once)",
        durable="tasks and their states; return values are not kept",
        requirements=("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
        servers=("postgres",),
        workers=SLOTS,
        values=False,
        note=f"return values are not stored: the client asks PostgreSQL every {POLL_S * 1000:.0f} ms whether all are done",
    ),
)


def make() -> Any:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=address("postgres")))

    @app.task(name=noop.__name__)
    async def noop_task(number: int, name: str, weight: float) -> int:
        return noop(number, name, weight)

    @app.task(name=spawn.__name__)
    async def spawn_task(number: int, name: str, weight: float) -> int:
        return spawn(number, name, weight)

    return app


def worker(name: str) -> None:  # noqa: ARG001
    async def work() -> None:
        app = make()
        async with app.open_async():
            while not await app.check_connection_async():
                await asyncio.sleep(0.1)  # the client makes the tables
            await app.run_worker_async(concurrency=1)

    asyncio.run(work())


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    app = make()

    async def do(task: Task, table: Table) -> list[None]:
        jobs = [{"number": number, "name": name, "weight": weight} for number, name, weight in table.rows()]
        await app.tasks[task.__name__].batch_defer_async(*jobs)
        while (await app.connector.execute_query_one_async(UNFINISHED))["unfinished"]:
            await asyncio.sleep(POLL_S)
        return [None] * table.count

    with asyncio.Runner() as runner:
        runner.run(app.connector.open_async())
        runner.run(app.schema_manager.apply_schema_async())
        yield lambda task, table: runner.run(do(task, table))
        runner.run(app.connector.close_async())

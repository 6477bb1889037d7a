"""Celery with each of the brokers that it recommends."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, address
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client", "worker"]

PREFETCH = 128
SETTINGS = (
    f"one worker with a prefork pool of {SLOTS}, worker_prefetch_multiplier={PREFETCH} (Celery docs, Optimizing: "
    "64 or 128 for many short tasks), without gossip, mingle and heartbeat; "
    "group(…).apply_async().get(), and delay(…).get() for a single task"
)
REQUIREMENTS = ("celery[redis]==5.7.0",)
EARLY = "a task is acknowledged before it runs (task_acks_late=False, the default): a dying worker loses it"

PEERS = (
    Peer(
        "celery-redis",
        settings=f"{SETTINGS}; broker and results: Redis",
        durable="nothing",
        requirements=REQUIREMENTS,
        servers=("redis",),
        workers=1,
        note=EARLY,
    ),
    Peer(
        "celery-rabbitmq",
        settings=f"{SETTINGS}; broker: RabbitMQ, persistent messages; results: rpc://, transient messages",
        durable="tasks until a worker takes them, not confirmed to the sender; no results",
        requirements=REQUIREMENTS,
        servers=("rabbitmq",),
        workers=1,
        note=EARLY,
    ),
)


def make(name: str) -> Any:
    from celery import Celery

    on_redis = name.endswith("redis")
    broker = address("redis" if on_redis else "rabbitmq")
    app = Celery("peers", broker=broker, backend=broker if on_redis else "rpc://")
    app.conf.update(worker_prefetch_multiplier=PREFETCH, broker_connection_retry_on_startup=True)
    for task in (noop, spawn):
        app.task(name=task.__name__)(task)
    app.finalize()
    return app


def worker(name: str) -> None:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    make(name).worker_main(["worker", "--pool=prefork", f"--concurrency={SLOTS}", *quiet])


@contextmanager
def client(name: str) -> Iterator[Run]:
    from celery import group

    app = make(name)

    def run(task: Task, table: Table) -> list[int]:
        known, rows = app.tasks[task.__name__], table.rows()
        if len(rows) == 1:
            return [known.delay(*rows[0]).get()]
        return list(group(known.s(*row) for row in rows).apply_async().get())

    yield run

"""Dramatiq with each of its brokers; the results are in Redis."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, address
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client", "on_rabbitmq", "on_redis", "worker"]

WAIT_MS = 120_000
SETTINGS = (
    f"dramatiq --processes {SLOTS} --threads 1, the default prefetch of two messages a thread; "
    "group(…).run().get_results(block=True) (Dramatiq docs, Results: the Redis backend is the recommended one)"
)
REQUIREMENTS = ("dramatiq[rabbitmq,redis]==2.2.1",)

PEERS = (
    Peer(
        "dramatiq-rabbitmq",
        settings=f"{SETTINGS}; broker: RabbitMQ, persistent messages",
        durable="tasks until they are done, not confirmed to the sender; no results",
        requirements=REQUIREMENTS,
        servers=("rabbitmq", "redis"),
        workers=1,
    ),
    Peer(
        "dramatiq-redis",
        settings=f"{SETTINGS}; broker: Redis",
        durable="nothing",
        requirements=REQUIREMENTS,
        servers=("redis",),
        workers=1,
    ),
)


def on_rabbitmq() -> Any:
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    return with_actors(RabbitmqBroker(url=address("rabbitmq")))


def on_redis() -> Any:
    from dramatiq.brokers.redis import RedisBroker

    return with_actors(RedisBroker(url=address("redis")))


def with_actors(broker: Any) -> Any:
    from dramatiq import actor, set_broker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker.add_middleware(Results(backend=RedisBackend(url=address("redis"))))
    set_broker(broker)
    for task in (noop, spawn):
        actor(task, broker=broker, store_results=True)
    return broker


def worker(name: str) -> None:
    factory = f"{__name__}:{make_of(name).__name__}"
    options = ["--processes", str(SLOTS), "--threads", "1", "--skip-logging"]
    os.execlp("dramatiq", "dramatiq", factory, *options)


def make_of(name: str) -> Any:
    return on_rabbitmq if name.endswith("rabbitmq") else on_redis


@contextmanager
def client(name: str) -> Iterator[Run]:
    from dramatiq import group

    broker = make_of(name)()

    def run(task: Task, table: Table) -> list[int]:
        message = broker.get_actor(task.__name__).message
        return list(
            group(message(*row) for row in table.rows()).run().get_results(block=True, timeout=WAIT_MS)
        )

    yield run

"""Parsl with its HighThroughputExecutor."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import TRUE, noop

__all__ = ["PEERS", "client"]

PREFETCH = 100

PEERS = (
    Peer(
        "parsl",
        settings=f"HighThroughputExecutor(max_workers_per_node={SLOTS}, prefetch_capacity={PREFETCH}, encrypted=False), "
        "one block of the LocalProvider (Parsl docs, HighThroughputExecutor: prefetch 0 only for few or long tasks)",
        durable="nothing",
        requirements=("parsl==2026.10.26",),
        commands="its own: bash_app, by a shell",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    import parsl
    from parsl import Config, HighThroughputExecutor, bash_app, python_app
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=SLOTS,
        prefetch_capacity=PREFETCH,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(Config(executors=[executor], run_dir=str(folder() / "parsl"), initialize_logging=False)):
        apps: dict[bool, Any] = {True: python_app(noop, cache=False), False: bash_app(command, cache=False)}

        def run(task: Task, table: Table) -> list[int]:
            return [future.result() for future in [apps[task is noop](*row) for row in table.rows()]]

        yield run


def command(number: int, name: str, weight: float) -> str:  # noqa: ARG001
    return f"{TRUE} {number}"

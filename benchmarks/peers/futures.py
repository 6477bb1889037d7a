"""ProcessPoolExecutor of the standard library: the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task

__all__ = ["PEERS", "client"]

PEERS = (
    Peer(
        "ProcessPoolExecutor",
        settings=f"max_workers={SLOTS}; map with chunksize=1, its default: each task is sent by itself",
        durable="nothing",
    ),
    Peer(
        "ProcessPoolExecutor-chunks",
        settings=f"max_workers={SLOTS}; map with chunksize=100: 'for very long iterables, using a large value for "
        "chunksize can significantly improve performance' (Python docs, concurrent.futures)",
        durable="nothing",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:
    chunksize = 100 if name.endswith("chunks") else 1
    with ProcessPoolExecutor(SLOTS) as pool:

        def run(task: Task, table: Table) -> list[int]:
            return list(pool.map(task, *zip(*table.rows(), strict=True), chunksize=chunksize))

        yield run

"""Dask distributed, a cluster on this machine."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task

__all__ = ["PEERS", "client"]

PEERS = (
    Peer(
        "dask",
        settings=f"LocalCluster with {SLOTS} worker processes of one thread, no dashboard; Client.map(pure=False) and "
        "gather (Dask docs, Futures; its Best Practices advise fewer and larger tasks, which is left out here: "
        "each task is one of the scheduler's)",
        durable="nothing",
        requirements=("distributed==2026.8.0",),
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=SLOTS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as connected,
    ):

        def run(task: Task, table: Table) -> list[int]:
            futures = connected.map(task, *zip(*table.rows(), strict=True), pure=False)
            return list(connected.gather(futures))

        yield run

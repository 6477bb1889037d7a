"""joblib with its default backend, loky."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task

__all__ = ["PEERS", "client"]

PEERS = (
    Peer(
        "joblib",
        requirements=("joblib==1.6.0",),
        settings=f"Parallel(n_jobs={SLOTS}) with loky and batch_size='auto', the default, which puts short tasks "
        "together; one pool for all calls, as a context manager (joblib docs, Embarrassingly parallel for loops)",
        durable="nothing",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    from joblib import Parallel, delayed

    with Parallel(n_jobs=SLOTS) as parallel:

        def run(task: Task, table: Table) -> list[int]:
            return list(parallel(delayed(task)(*row) for row in table.rows()))

        yield run

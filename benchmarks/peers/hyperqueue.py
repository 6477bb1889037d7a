"""HyperQueue by its Python package, which has server and workers in it."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import TRUE, noop

__all__ = ["PEERS", "client"]

PEERS = (
    Peer(
        "hyperqueue",
        settings=f"LocalCluster with one worker of {SLOTS} cores; one job with all tasks, no files for their outputs "
        "(stdout=None, stderr=None; HyperQueue docs, on the outputs of many tasks); Job.program and Job.function",
        durable="nothing (no journal)",
        requirements=("hyperqueue==0.27.0",),
        values=False,
        commands="its own",
        note="each function task is an interpreter of its own; return values are not kept; "
        "wait_for_jobs, the only way to wait that the Python package has, asks once a second",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig
    from hyperqueue.task.function import PythonEnv

    place = folder() / "hyperqueue"
    place.mkdir()
    with LocalCluster(str(place), WorkerConfig(cores=SLOTS)) as cluster:
        connected = cluster.client(python_env=PythonEnv(python_bin=sys.executable))

        def run(task: Task, table: Table) -> list[None]:
            job = Job(default_workdir=place)
            for row in table.rows():
                if task is noop:
                    job.function(noop, args=row, stdout=None, stderr=None)
                else:
                    job.program([TRUE, str(row[0])], stdout=None, stderr=None)
            connected.wait_for_jobs([connected.submit(job)])
            return [None] * table.count

        yield run

"""mtask itself: as a command, as a service like the brokers, and as an executor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import TRUE, noop

__all__ = ["PEERS", "client", "worker"]

SQLITE = "tasks and results, in SQLite, by the time they are seen"

PEERS = (
    Peer(
        "mtask-run",
        settings=f"the command: mtask run tasks.csv --call … (or --run …) -j {SLOTS} --quiet, on a new file",
        durable=SQLITE,
        workloads=("functions", "commands"),
        values=False,
        commands="its own",
        note="start of the interpreter, of the workers and end are in the time; results stay in the file",
    ),
    Peer(
        "mtask-service",
        settings=f"mtask worker -j {SLOTS} runs already; submit(tasks.csv), wait() and results() of the Python API",
        durable=SQLITE,
        workers=1,
        commands="its own",
    ),
    Peer(
        "mtask-executor",
        settings=f"mtask.Executor({SLOTS}), as concurrent.futures",
        durable="nothing that outlives the program",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:
    if name == "mtask-run":
        yield run_command
    elif name == "mtask-service":
        import mtask

        with mtask.connect() as manager:

            def run(task: Task, table: Table) -> list[Any]:
                bag = manager.submit(table.path, **what(task), bag=f"bag-{uuid.uuid4().hex}")
                bag.wait()
                results = bag.results()
                return [result.value if task is noop else result.exit_code for result in results]

            yield run
    else:
        import mtask

        with mtask.Executor(SLOTS) as executor:
            yield lambda task, table: list(executor.map(task, *zip(*table.rows(), strict=True)))


def worker(name: str) -> None:  # noqa: ARG001
    os.execv(sys.executable, [sys.executable, "-m", "mtask", "worker", "-j", str(SLOTS), "--quiet"])


def run_command(task: Task, table: Table) -> list[None]:
    place = folder() / uuid.uuid4().hex
    place.mkdir()
    (option, value) = next(iter(what(task).items()))
    command = [sys.executable, "-m", "mtask", "run", str(table.path), f"--{option}", value]
    subprocess.run([*command, "-j", str(SLOTS), "--quiet"], check=True, cwd=place, stdout=subprocess.DEVNULL)
    shutil.rmtree(place)
    return [None] * table.count


def what(task: Task) -> dict[str, Any]:
    return {"call": "benchmarks.peers.tasks:noop"} if task is noop else {"run": f"{TRUE} {{number}}"}

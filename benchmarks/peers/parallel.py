"""GNU parallel and xargs, which run command lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import TRUE

__all__ = ["PEERS", "client"]

COMMANDS = {
    "parallel": ("parallel", "--will-cite", "--ungroup", f"-j{SLOTS}", TRUE),
    "xargs": ("xargs", f"-P{SLOTS}", "-n1", TRUE),
}

PEERS = (
    Peer(
        "parallel",
        settings=f"parallel --ungroup -j{SLOTS} /bin/true: outputs are passed on as they come (man parallel)",
        durable="nothing",
        programs=("parallel",),
        workloads=("commands",),
        values=False,
        commands="its own",
        note="start and end of the program are in the time",
    ),
    Peer(
        "xargs",
        settings=f"xargs -P{SLOTS} -n1 /bin/true",
        durable="nothing",
        programs=("xargs",),
        workloads=("commands",),
        values=False,
        commands="its own",
        note="start and end of the program are in the time",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:
    environment = {**os.environ, "PARALLEL_HOME": str(folder())}

    def run(task: Task, table: Table) -> list[None]:  # noqa: ARG001
        numbers = "".join(f"{number}\n" for number, _, _ in table.rows())
        subprocess.run(COMMANDS[name], input=numbers, text=True, check=True, env=environment)
        return [None] * table.count

    yield run

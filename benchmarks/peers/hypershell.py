"""HyperShell, which runs command lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.processes import free_port
from benchmarks.peers.tasks import TRUE

__all__ = ["PEERS", "client"]

BUNDLE = 100

PEERS = (
    Peer(
        "hypershell",
        settings=f"hs cluster --num-threads {SLOTS} --bundlesize {BUNDLE} --no-db --no-confirm (HyperShell docs, hs "
        "cluster: 'submit directly to clients'), one command line for all tasks",
        durable="nothing (--no-db)",
        requirements=("hypershell==2.8.2",),
        workloads=("commands",),
        values=False,
        commands="its own, by a shell",
        note="start and end of the cluster are in the time",
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    environment = {**os.environ, "HYPERSHELL_SITE": str(folder() / "hypershell")}

    def run(task: Task, table: Table) -> list[None]:  # noqa: ARG001
        command = ["hs", "cluster", "-", "--template", f"{TRUE} {{}}", "--num-threads", str(SLOTS)]
        options = ["--bundlesize", str(BUNDLE), "--no-db", "--no-confirm", "--port", str(free_port())]
        numbers = "".join(f"{number}\n" for number, _, _ in table.rows())
        subprocess.run([*command, *options], input=numbers, text=True, check=True, env=environment)
        return [None] * table.count

    yield run

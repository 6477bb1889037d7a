"""The measurement of one peer. Runs in the peer's environment, as

    python -m benchmarks.peers.measuring client MODULE NAME OPTIONS
    python -m benchmarks.peers.measuring worker MODULE NAME

and prints a line of JSON for each figure as soon as it is there, so that what comes before a hang is kept.
Whatever else the peer prints goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import write_csv
from benchmarks.peers.catalog import load
from benchmarks.peers.peer import Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import noop, spawn

__all__ = ["Options", "main"]

WARM = 20
"""Tasks before anything is timed: they wait for the workers and warm them up."""
TRIAL_S = 2.0
"""A trial that takes so much longer than one task tells how many tasks the peer can do in the time."""


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    tasks: int = 10_000
    commands: int = 2_000
    samples: int = 200
    """One task at a time, for the latency."""
    repeats: int = 3
    longest_s: float = 4.0
    """Of one repetition: a peer that would take longer gets fewer tasks."""


def measure(peer: Peer, run: Run, options: Options) -> Iterator[dict[str, object]]:
    measures: dict[str, Callable[[], Iterator[dict[str, object]]]] = {
        "functions": lambda: rates(peer, run, noop, options.tasks, options),
        "commands": lambda: rates(peer, run, spawn, options.commands, options),
        "latency": lambda: iter([latencies(peer, run, options)]),
    }
    for workload in peer.workloads:
        for figure in measures[workload]():
            yield {"workload": workload, **figure}


def rates(peer: Peer, run: Run, task: Task, tasks: int, options: Options) -> Iterator[dict[str, object]]:
    timed(peer, run, task, table(min(WARM, tasks)))
    count, one_s = 1, timed(peer, run, task, table(1))
    trial_s = one_s
    while trial_s < one_s + TRIAL_S and count < tasks:
        count = min(5 * count, tasks)
        trial_s = timed(peer, run, task, table(count))
    if count < tasks:
        each_s = (trial_s - one_s) / (count - 1)
        count = min(tasks, max(count, int((options.longest_s - one_s) / each_s)))
    for _ in range(options.repeats):
        yield {"tasks": count, "rate": count / timed(peer, run, task, table(count))}


def latencies(peer: Peer, run: Run, options: Options) -> dict[str, object]:
    timed(peer, run, noop, table(WARM))
    samples: list[float] = []
    while len(samples) < 2 or (len(samples) < options.samples and sum(samples) < options.longest_s):
        samples.append(timed(peer, run, noop, table(1)))
    quantiles = statistics.quantiles(samples, n=20, method="inclusive")
    return {"tasks": len(samples), "p50_ms": 1000 * quantiles[9], "p95_ms": 1000 * quantiles[18]}


def table(count: int) -> Table:
    path = folder() / f"tasks-{count}.csv"
    if not path.exists():
        write_csv(path, count)
    return Table(path, count)


def timed(peer: Peer, run: Run, task: Task, tasks: Table) -> float:
    """Seconds from reading the file to the last result. Raises RuntimeError when the results aren't right."""
    began_s = time.perf_counter()
    results = run(task, tasks)
    wall_s = time.perf_counter() - began_s
    right: Any = len(results) == tasks.count
    if right and peer.values:
        right = sorted(results) == (list(range(tasks.count)) if task is noop else [0] * tasks.count)
    if not right:
        raise RuntimeError(
            f"{peer.name}: {len(results)} results of {tasks.count} tasks, such as {list(results)[:5]}"
        )
    return wall_s


def versions(peer: Peer) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for requirement in peer.requirements:
        name = re.split(r"[\[=<>]", requirement)[0]
        found[name] = importlib.metadata.version(name)
    for program in peer.programs:
        found[program] = first_line(program, "--version")
    return found


def first_line(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "unknown")


def main(role: str, module: str, name: str, *options: str) -> None:
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.chdir(folder())
    code = load(module)
    if role == "worker":
        code.worker(name)
        return
    peer = next(peer for peer in code.PEERS if peer.name == name)
    print(json.dumps({"versions": versions(peer)}), file=lines)
    with code.client(name) as run:
        for figure in measure(peer, run, Options(**json.loads(options[0]))):
            print(json.dumps(figure), file=lines)


if __name__ == "__main__":
    main(*sys.argv[1:])

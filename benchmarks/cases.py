"""The benchmarks. Each runs the real command on a fresh database, start-up included."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.measure import Measurement, Run, run_mtask, sandbox, write_csv

__all__ = ["CASES"]

FUNCTIONS = 100_000
COMMANDS = 2_000
ROWS = 1_000_000
TRUE = "/bin/true"


def functions(repeats: int) -> list[Measurement]:
    """No-op function tasks, from a CSV file to all results durable, 2 slots; beside it
    ProcessPoolExecutor on the same calls, of which nothing is durable."""

    def once(folder: Path) -> Run:
        write_csv(folder / "tasks.csv", FUNCTIONS)
        return run_mtask(folder, "run", "tasks.csv", "--call", "benchmarks.tasks:noop", "-j", "2", "--quiet")

    rates, pool = [], []
    for _ in range(repeats):
        rates.append(FUNCTIONS / sandbox(once).wall_s)
        pool.append(_pool())
    return [
        Measurement("functions", "tasks/s", rates, goal=15_000, note=f"{FUNCTIONS:,} no-op calls"),
        Measurement("ProcessPoolExecutor", "tasks/s", pool, note="10,000 of the same calls, chunksize 1"),
    ]


def _pool() -> float:
    began_s = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(abs, range(10_000)):
            pass
    return 10_000 / (time.perf_counter() - began_s)


def commands(repeats: int) -> list[Measurement]:
    """No-op commands, 2 slots; beside it bare posix_spawn of the same, two at a time."""

    def once(folder: Path) -> Run:
        write_csv(folder / "tasks.csv", COMMANDS)
        return run_mtask(folder, "run", "tasks.csv", "--run", f"{TRUE} {{number}}", "-j", "2", "--quiet")

    rates, bare = [], []
    for _ in range(repeats):
        rates.append(COMMANDS / sandbox(once).wall_s)
        bare.append(_bare_spawn())
    return [
        Measurement("commands", "tasks/s", rates, goal=600, note=f"{COMMANDS:,} × {TRUE}"),
        Measurement("posix_spawn", "tasks/s", bare, note="the same, without anything around it"),
    ]


def _bare_spawn() -> float:
    began_s = time.perf_counter()
    started = running = 0
    while started < COMMANDS or running:
        while running < 2 and started < COMMANDS:
            os.posix_spawn(TRUE, [TRUE, str(started)], os.environ)
            started, running = started + 1, running + 1
        os.wait()
        running -= 1
    return COMMANDS / (time.perf_counter() - began_s)


def submit(repeats: int) -> list[Measurement]:
    """Check, pack, store and send a large file; the memory is the peak of the submitting process."""

    def once(folder: Path) -> Run:
        write_csv(folder / "tasks.csv", ROWS)
        return run_mtask(folder, "submit", "tasks.csv", "--call", "benchmarks.tasks:noop", "--quiet")

    runs = [sandbox(once) for _ in range(repeats)]
    return [
        Measurement(
            "submit",
            "rows/s",
            [ROWS / run.wall_s for run in runs],
            peak_bytes=max(run.peak_bytes for run in runs),
            goal=150_000,
            note=f"{ROWS:,} rows of 3 columns, checked against the function's annotations",
        )
    ]


CASES: dict[str, Callable[[int], list[Measurement]]] = {
    "functions": functions,
    "commands": commands,
    "submit": submit,
}

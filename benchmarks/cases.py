"""The benchmarks. Each runs the real command on a fresh database, start-up included."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import sqlite3
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mtask
from benchmarks import condor, postgres, rabbitmq, requests, waiting
from benchmarks.measure import Measurement, Run, run_mtask, sandbox, write_csv

__all__ = ["CASES", "LONG"]

FUNCTIONS = 100_000
MILLION = 1_000_000
COMMANDS = 2_000
TRUE = "/bin/true"


def functions(repeats: int) -> list[Measurement]:
    """No-op function tasks, from a CSV file to all results durable, 2 slots; beside it
    ProcessPoolExecutor on the same calls, of which nothing is durable."""

    def once(folder: Path, rows: int = FUNCTIONS) -> Run:
        write_csv(folder / "tasks.csv", rows)
        return run_mtask(folder, "run", "tasks.csv", "--call", "benchmarks.tasks:noop", "-j", "2", "--quiet")

    rates, million, pool = [], [], []
    for _ in range(repeats):
        rates.append(FUNCTIONS / sandbox(once).wall_s)
        million.append(sandbox(lambda folder: once(folder, MILLION)))
        pool.append(_pool())
    return [
        Measurement("functions", "tasks/s", rates, goal=60_000, note=f"{FUNCTIONS:,} no-op calls"),
        Measurement(
            "functions, a million",
            "tasks/s",
            [MILLION / run.wall_s for run in million],
            peak_bytes=max(run.peak_bytes for run in million),
            goal=100_000,
            note="the same",
        ),
        Measurement("ProcessPoolExecutor", "tasks/s", pool, note="10,000 of the same calls, chunksize 1"),
    ]


def _pool() -> float:
    began_s = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(abs, range(10_000)):
            pass
    return 10_000 / (time.perf_counter() - began_s)


def commands(repeats: int) -> list[Measurement]:
    """No-op commands, 2 slots: the whole run, and what it comes to without its start and its end; beside
    it bare posix_spawn of the same, two at a time."""
    rates, steady, bare = [], [], []

    def once(folder: Path) -> Run:
        write_csv(folder / "tasks.csv", COMMANDS)
        run = run_mtask(folder, "run", "tasks.csv", "--run", f"{TRUE} {{number}}", "-j", "2", "--quiet")
        steady.append(_steady(folder))
        return run

    for _ in range(repeats):
        rates.append(COMMANDS / sandbox(once).wall_s)
        bare.append(_bare_spawn())
    return [
        Measurement(
            "commands", "tasks/s", rates, goal=0.85 * statistics.median(bare), note=f"{COMMANDS:,} × {TRUE}"
        ),
        Measurement(
            "steady commands", "tasks/s", steady, note="the same, from the first start to the last end"
        ),
        Measurement("posix_spawn", "tasks/s", bare, note="the same, without anything around it"),
    ]


def _steady(folder: Path) -> float:
    url = f"sqlite:///{folder}/.mtask/mtask.db"
    with mtask.connect(url, url) as manager:
        results = [result for bag in manager.bags() for result in manager.bag(bag.name).results()]
    began_at = min(result.started_at for result in results if result.started_at is not None)
    ended_at = max(result.finished_at for result in results if result.finished_at is not None)
    return len(results) / (ended_at - began_at)


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
    """Check, pack, store and send a large file; the memory is the peak of the submitting process. Beside it one plain
    loop, which does none of that."""
    plain: list[float] = []

    def once(folder: Path) -> Run:
        write_csv(folder / "tasks.csv", MILLION)
        plain.append(MILLION / _plain_loop(folder))
        return run_mtask(folder, "submit", "tasks.csv", "--call", "benchmarks.tasks:noop", "--quiet")

    runs = [sandbox(once) for _ in range(repeats)]
    return [
        Measurement(
            "submit",
            "rows/s",
            [MILLION / run.wall_s for run in runs],
            peak_bytes=max(run.peak_bytes for run in runs),
            goal=400_000,
            note=f"{MILLION:,} rows of 3 columns, checked against the function's annotations",
        ),
        Measurement("plain loop", "rows/s", plain, note="the same file, row by row: csv, JSON, SQLite"),
    ]


def _plain_loop(folder: Path) -> float:
    """The seconds it takes, in one transaction."""
    began_s = time.perf_counter()
    with contextlib.closing(sqlite3.connect(folder / "plain.db")) as database, database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, body TEXT)")
        with (folder / "tasks.csv").open(newline="") as file:
            rows = map(json.dumps, csv.reader(file))
            database.executemany("INSERT INTO message (body) VALUES (?)", ((row,) for row in rows))
    return time.perf_counter() - began_s


def scale(repeats: int) -> list[Measurement]:
    """A bag of one million, and one of ten million: what takes longer than ten times as long?"""
    found = []
    for rows in (MILLION, 10 * MILLION):
        runs = [sandbox(functools.partial(_stages, rows)) for _ in range(repeats)]
        for stage in runs[0]:
            took_s = [run[stage].wall_s for run in runs]
            looks = stage.startswith("status")
            found.append(
                Measurement(
                    f"{stage}, {rows // MILLION} million",
                    "s" if looks else "tasks/s",
                    took_s if looks else [rows / each for each in took_s],
                    goal=0.2 if looks else 0.0,
                    at_most=looks,
                    peak_bytes=max(run[stage].peak_bytes for run in runs),
                )
            )
    return found


def _stages(rows: int, folder: Path) -> dict[str, Run]:
    write_csv(folder / "tasks.csv", rows)
    return {
        "submit": run_mtask(folder, "submit", "tasks.csv", "--call", "benchmarks.tasks:noop", "--quiet"),
        "status before": run_mtask(folder, "status", "tasks"),
        "run": run_mtask(folder, "worker", "-j", "2", "--idle-exit", "0.1s"),
        "status after": run_mtask(folder, "status", "tasks"),
        "results": run_mtask(folder, "results", "tasks", "-o", "results.csv"),
        "results as Parquet": run_mtask(folder, "results", "tasks", "-o", "results.parquet"),
    }


CASES: dict[str, Callable[[int], list[Measurement]]] = {
    "functions": functions,
    "commands": commands,
    "submit": submit,
    **waiting.CASES,
}
LONG: dict[str, Callable[[int], list[Measurement]]] = {
    "scale": scale,
    **requests.CASES,
    **postgres.CASES,
    **condor.CASES,
    **rabbitmq.CASES,
}
"""Only if asked for by name."""

"""`python -m benchmarks.simulate.real`: small bags run by real workers on SQLite, beside the same simulated."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mtask
from benchmarks.simulate.clouds import CLOUDS
from benchmarks.simulate.fleet import simulate
from benchmarks.simulate.setup import Setup
from benchmarks.simulate.times import task_times

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A bag small enough to be run here."""

    tasks: int
    times: str
    workers: int
    slots_per_worker: int
    per_message: int | None = None
    split_after_s: float = 10.0


CASES = (
    Case(200, "uniform:0.05:0.5", workers=2, slots_per_worker=4),
    Case(200, "uniform:0.05:0.5", workers=2, slots_per_worker=8),
    Case(200, "uniform:0.05:0.5", workers=3, slots_per_worker=8),
    # Before a message is cut, the heartbeats and the count must have been read: that takes two seconds.
    Case(800, "uniform:0.05:0.5", workers=2, slots_per_worker=8, per_message=40, split_after_s=6.0),
    Case(1600, "constant:0.1", workers=2, slots_per_worker=4, per_message=100, split_after_s=6.0),
)


CALL = "benchmarks.simulate.naps:nap"


@contextlib.contextmanager
def _workers(case: Case, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "mtask", "worker", "-j", str(case.slots_per_worker), "--notices", "off"]
    command += ["--split-after", f"{case.split_after_s}s", "--queue", _url(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        running = [
            subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            for _ in range(case.workers)
        ]
        try:
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/mtask.db"


def _count_messages(folder: Path) -> None:
    """From now on, in a table of its own."""
    with contextlib.closing(sqlite3.connect(folder / "mtask.db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS seen (n INTEGER)")
        database.execute(
            "CREATE TRIGGER IF NOT EXISTS see AFTER INSERT ON message BEGIN INSERT INTO seen VALUES (1); END"
        )


def _run(case: Case, times_s: Sequence[float]) -> tuple[float, int]:
    """(seconds from the first start to the last end, messages)."""
    with tempfile.TemporaryDirectory(prefix="mtask-real-") as name:
        folder = Path(name)
        with mtask.connect(_url(folder)) as manager, _workers(case, folder):
            slots = case.workers * case.slots_per_worker
            manager.submit([{"seconds": 0.5}] * (6 * slots), call=CALL, bag="warm").wait(timeout_s=60)
            _count_messages(folder)
            rows = [{"seconds": round(seconds, 4)} for seconds in times_s]
            bag = manager.submit(rows, call=CALL, bag="bag", per_message=case.per_message)
            bag.wait(timeout_s=60)
            spans = [(result.started_at or 0.0, result.finished_at or 0.0) for result in bag.results()]
        with contextlib.closing(sqlite3.connect(folder / "mtask.db")) as database:
            (messages,) = database.execute("SELECT count(*) FROM seen").fetchone()
    return max(stop for _, stop in spans) - min(start for start, _ in spans), messages


def main() -> None:
    print(
        "| tasks | slots | a message | split after | bound | simulated | real | messages simulated | real |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        times_s = task_times(case.times, case.tasks, seed=1)
        setup = Setup(
            np.round(times_s, 4),
            case.workers * case.slots_per_worker,
            slots_per_worker=case.slots_per_worker,
            cloud=CLOUDS["sqlite"],
            per_message=case.per_message,
            split_after_s=case.split_after_s,
        )
        out = simulate(setup)
        real_s, messages = _run(case, times_s.tolist())
        print(
            f"| {case.tasks} × {case.times} | {case.workers} × {case.slots_per_worker}"
            f" | {case.per_message or 'auto'} | {case.split_after_s:g} s | {out.bound_s:.2f} s"
            f" | {out.makespan_s:.2f} s | {real_s:.2f} s | {out.count.messages} | {messages} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Queue and table in a PostgreSQL server of this machine, with its settings as they come: each commit waits for the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.measure import Measurement, Run, run_mtask, sandbox, write_csv
from benchmarks.peers.processes import Processes
from benchmarks.peers.servers import SERVERS

__all__ = ["CASES"]

TASKS = 100_000


def postgres(repeats: int) -> list[Measurement]:
    """No-op function tasks, from a CSV file to all results durable, 2 slots, each time in a new schema."""
    server = SERVERS["postgres"]
    if server.program() is None:
        raise RuntimeError(f"there is no PostgreSQL here: apt-get install {server.package}")
    runs = []
    with (
        tempfile.TemporaryDirectory(prefix="mtask-bench-") as logs,
        tempfile.TemporaryDirectory(prefix="mtask-bench-") as data,
        Processes(Path(logs)) as processes,
    ):
        url = server.start(processes, Path(data))
        for number in range(repeats):
            runs.append(sandbox(lambda folder, url=f"{url}?schema=bench{number}": _once(folder, url)))  # type: ignore[misc]
    return [
        Measurement(
            "PostgreSQL",
            "tasks/s",
            [TASKS / run.wall_s for run in runs],
            peak_bytes=max(run.peak_bytes for run in runs),
            goal=10_000,
            note=f"{TASKS:,} no-op calls, queue and table in one server, {server.settings}",
        )
    ]


def _once(folder: Path, url: str) -> Run:
    write_csv(folder / "tasks.csv", TASKS)
    run_mtask(folder, "init", url)  # and mtask.toml
    return run_mtask(folder, "run", "tasks.csv", "--call", "benchmarks.tasks:noop", "-j", "2", "--quiet")


CASES = {"postgres": postgres}

"""Runs a command in a folder of its own and says how long it took and how much memory it had."""

from __future__ import annotations

import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mtask

__all__ = ["Measurement", "Run", "environment", "machine", "run_mtask", "sandbox", "write_csv"]

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One execution."""

    wall_s: float
    peak_bytes: int
    """Of the command's own process; its children are not in it."""


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found: `values` are in `unit`, one for each repetition."""

    name: str
    unit: str
    values: Sequence[float]
    peak_bytes: int = 0
    goal: float = 0.0
    at_most: bool = False
    """Less is better."""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, object]:
        return {**self.__dict__, "values": list(self.values), "median": self.median}


def write_csv(path: Path, rows: int) -> None:
    """Three columns: a number, a short text, a fraction."""
    with path.open("w", encoding="ascii") as file:
        file.write("number,name,weight\n")
        for start in range(0, rows, 10_000):
            stop = min(start + 10_000, rows)
            file.writelines(f"{i},sample-{i:07d},{i % 1000 / 1000:.3f}\n" for i in range(start, stop))


def sandbox(work: Callable[[Path], T]) -> T:
    """Run it in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory(prefix="mtask-bench-") as folder:
        return work(Path(folder))


def environment() -> dict[str, str]:
    """In which commands find mtask and what the benchmarks run; they keep its bytecode, as where it is installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"}


def run_mtask(folder: Path, *arguments: str) -> Run:
    """The real command, from start to exit. Raises RuntimeError when it fails."""
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mtask", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"mtask {' '.join(arguments)} ended with {process.returncode}: {said.decode()}")
    return Run(wall_s, _rss_bytes(usage))


def machine() -> dict[str, object]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "mtask": mtask.__version__,
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _rss_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024

"""How soon something happens, where the machine has nothing else to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mtask
from benchmarks.measure import Measurement, environment, sandbox
from benchmarks.tasks import noop

__all__ = ["idle", "latency", "sleeping"]

CALLS = 500
NAPS, SLOTS, NAP_S = 200, 24, 0.45
IDLE_S = 20


def latency(repeats: int) -> list[Measurement]:
    """From `submit` to the result, one call at a time on an idle worker; beside it ProcessPoolExecutor."""
    ours, pauses, theirs = [], [], []
    for _ in range(repeats):
        with mtask.Executor(1) as executor:
            ours.append(_median_ms(executor))
            pauses.append(_median_ms(executor, calls=100, pause_s=0.02))
        with ProcessPoolExecutor(1) as pool:
            theirs.append(_median_ms(pool))
    return [
        Measurement(
            "latency", "ms", ours, goal=0.5, at_most=True, note=f"p50 of {CALLS} calls of an Executor"
        ),
        Measurement("latency after a pause", "ms", pauses, note="the same, 20 ms after the last result each"),
        Measurement("latency of ProcessPoolExecutor", "ms", theirs, note="beside it; nothing is stored"),
    ]


def _median_ms(executor: Executor, *, calls: int = CALLS, pause_s: float = 0.0) -> float:
    executor.submit(noop, 0, "warm", 0.5).result()
    took_s = []
    for number in range(calls):
        time.sleep(pause_s)
        began_s = time.perf_counter()
        executor.submit(noop, number, "sample", 0.5).result()
        took_s.append(time.perf_counter() - began_s)
    return sorted(took_s)[calls // 2] * 1000


def sleeping(repeats: int) -> list[Measurement]:
    """Tasks that sleep, on many slots of a worker that has run some before; and the memory of all its processes."""
    took, memory, cold = [], [], []

    def once(folder: Path) -> None:
        with _worker(folder, SLOTS) as (manager, process):
            manager.submit([{"number": n} for n in range(2 * SLOTS)], call="benchmarks.tasks:nap").wait()
            began_s = time.perf_counter()
            bag = manager.submit([{"number": n} for n in range(NAPS)], call="benchmarks.tasks:nap")
            bag.wait()
            took.append(time.perf_counter() - began_s)
            memory.append(sum(map(_rss_bytes, _family(process.pid))) / 1e6)

    def alone(folder: Path) -> None:
        began_s = time.perf_counter()
        with _worker(folder, SLOTS) as (manager, _):
            manager.submit([{"number": n} for n in range(NAPS)], call="benchmarks.tasks:nap").wait()
            cold.append(time.perf_counter() - began_s)

    for _ in range(repeats):
        sandbox(once)
        sandbox(alone)
    rounds = -(-NAPS // SLOTS)
    what = f"{NAPS} tasks of {NAP_S * 1000:.0f} ms on {SLOTS} slots"
    return [
        Measurement(
            "sleeping tasks", "s", took, goal=4.1, at_most=True, note=f"{what}: {rounds * NAP_S:g} s of naps"
        ),
        Measurement("sleeping tasks, from nothing", "s", cold, note="the same, with the start of the worker"),
        Measurement("memory of the slots", "MB", memory, goal=600, at_most=True, note="RSS of all processes"),
    ]


def idle(repeats: int) -> list[Measurement]:
    """The CPU time of a worker that waits for work, as a part of one core."""
    parts = []

    def once(folder: Path) -> None:
        with _worker(folder, 2) as (manager, process):
            manager.submit([{"number": 1}], call="benchmarks.tasks:nap").wait()
            time.sleep(1)
            before = sum(map(_cpu_ns, _family(process.pid)))
            time.sleep(IDLE_S)
            parts.append((sum(map(_cpu_ns, _family(process.pid))) - before) / IDLE_S / 1e9 * 100)

    for _ in range(min(repeats, 3)):
        sandbox(once)
    return [Measurement("idle worker", "% of a core", parts, goal=0.5, at_most=True, note=f"over {IDLE_S} s")]


@contextmanager
def _worker(folder: Path, slots: int) -> Iterator[tuple[mtask.Manager, subprocess.Popen[bytes]]]:
    url = f"sqlite:///{folder}/mtask.db"
    command = [sys.executable, "-m", "mtask", "worker", "-j", str(slots), "--queue", url, "--table", url]
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    try:
        with mtask.connect(url, url) as manager:
            yield manager, process
    finally:
        process.terminate()
        process.wait()


def _family(pid: int) -> list[int]:
    """The process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_ns(pid: int) -> int:
    """Of all its threads."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    )


CASES: dict[str, Callable[[int], list[Measurement]]] = {
    "latency": latency,
    "sleeping": sleeping,
    "idle": idle,
}

"""What jobs of the tests run; copied to where they can read it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def double(x: int) -> int:
    return 2 * x


def slow_double(x: int, pause_s: float) -> int:
    time.sleep(pause_s)
    return 2 * x


def marked(x: int, folder: str, pause_s: float = 0.0) -> int:
    """Leaves a line for each time that it ran."""
    with Path(folder, str(x)).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(pause_s)
    return 2 * x


def twice(x: int, folder: str) -> int:
    """Fails the first time."""
    if not Path(folder, str(x)).exists():
        marked(x, folder)
        raise RuntimeError("not yet")
    return 2 * x


def kill_worker(x: int, victim: int) -> int:
    """Takes its worker along, as a lack of memory does."""
    if x == victim:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return 2 * x


def fail_twice(x: int, folder: str) -> int:
    marked(x, folder)
    if len(Path(folder, str(x)).read_text().splitlines()) < 3:
        raise RuntimeError("not yet")
    return 2 * x


def after(x: int, folder: str) -> int:
    """Fails until the gate is open."""
    if not Path(folder, "gate").exists():
        time.sleep(1)
        raise RuntimeError("not yet")
    return 2 * x


def gated(x: int, folder: str, gate: bool) -> int:
    """Waits until the gate is open, if it is to."""
    marked(x, folder)
    while gate and not Path(folder, "gate").exists():
        time.sleep(0.05)
    return 2 * x


def fill_disk(x: int, gate: str) -> str:
    """Leaves no room in its folder, unless the gate is open."""
    if not Path(gate).exists():
        try:
            with Path("large").open("wb", buffering=0) as file:
                for size in (65536, 4096, 1):
                    while file.write(bytes(size)) == size:
                        pass
        except OSError:
            pass
    return "x" * 10_000

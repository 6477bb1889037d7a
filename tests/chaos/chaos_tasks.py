"""What the workers run: each task leaves a line in a log when it begins, so that a test can count."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import mtask


def _begin(x: int, log: str) -> None:
    """One line, in one write: the task, its process, its worker."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x} {os.getpid()} {os.getppid()}\n".encode())
    os.close(fd)


def work(x: int, log: str, seconds: float = 0.0) -> int:
    _begin(x, log)
    time.sleep(seconds)
    return x


def wait(x: int, log: str, gate: str) -> int:
    """Until the file `gate` is there."""
    _begin(x, log)
    while not Path(gate).exists():
        time.sleep(0.01)
    return x


def wait_and_take(x: int, log: str, gate: str, seconds: float) -> int:
    """So long after the gate was opened."""
    wait(x, log, gate)
    time.sleep(seconds)
    return x


def wait_and_fail_once(x: int, log: str, gate: str, seconds: float) -> int:
    """The second time it takes so long, in which a third would begin, too."""
    wait(x, log, gate)
    first = Path(f"{log}-failed-{x}")
    if not first.exists():
        first.touch()
        raise ValueError("once")
    time.sleep(seconds)
    return x


def hold_the_lock(x: int, log: str, seconds: int) -> int:
    """No other thread of this process runs meanwhile: PyDLL keeps the interpreter lock."""
    _begin(x, log)
    ctypes.PyDLL(None).sleep(seconds)
    return x


def fail_once(x: int, log: str) -> int:
    first = Path(f"{log}-failed-{x}")
    _begin(x, log)
    if not first.exists():
        first.touch()
        raise ValueError("once")
    return x


def kill_the_worker(x: int, log: str, poison: int, seconds: float) -> int:
    _begin(x, log)
    if x == poison:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    time.sleep(seconds)
    return x


def total(results: Iterable[mtask.Result]) -> int:
    return sum(result.value for result in results)


def parent(x: int, log: str, seconds: float) -> int:
    """Submits three tasks, and takes its time before and after."""
    _begin(x, log)
    time.sleep(seconds)
    rows = [{"x": 1000 + 3 * x + n, "log": f"{log}-children"} for n in range(3)]
    mtask.submit(rows, call=work, bag="children", lease_s=5, then=f"{__file__}:total")
    time.sleep(seconds)
    return x

"""What runs in the tests of placement: each run leaves when and where it began and ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def work(x: int, folder: str, seconds: float = 0.0, **_: Any) -> dict[str, Any]:
    began_at = time.clock_gettime(time.CLOCK_MONOTONIC)
    time.sleep(seconds)
    ended_at = time.clock_gettime(time.CLOCK_MONOTONIC)
    fd = os.open(f"{folder}/runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x} {os.getppid()} {began_at} {ended_at}\n".encode())
    os.close(fd)
    return {name: os.environ.get(name) for name in ("MTASK_CPUS", "MTASK_GPUS", "CUDA_VISIBLE_DEVICES")}


def wait(x: int, folder: str) -> int:
    Path(folder, f"began-{x}-{os.getppid()}").touch()
    while not Path(folder, "gate").exists():
        time.sleep(0.01)
    return x


def fail_once(x: int, folder: str, who: str) -> int:
    """The second task of each fails at its first attempt."""
    work(x, folder, 0.02)
    first = Path(folder, f"failed-{x}")
    if x % 5 == 1 and not first.exists():
        first.touch()
        raise ValueError("once")
    return x

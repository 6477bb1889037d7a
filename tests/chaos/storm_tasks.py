"""What is run in a storm: each run leaves a line in a log, with the true time at which it began."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def _begin(x: int, folder: str) -> None:
    fd = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    now = time.clock_gettime(time.CLOCK_REALTIME)
    os.write(fd, f"{x} {os.getpid()} {os.getppid()} {now:.6f}\n".encode())
    os.close(fd)


def work(x: int, folder: str, seconds: float, kind: str) -> int:
    """`moody` fails the first time it is run, `sick` always; `poison` kills its worker."""
    _begin(x, folder)
    if kind == "poison":
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(seconds)
    first = Path(folder, f"failed-{x}")
    if kind == "sick" or (kind == "moody" and not first.exists()):
        first.touch()
        raise ValueError(kind)
    return x

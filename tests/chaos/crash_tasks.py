"""What runs while processes are killed: each attempt leaves its task's number in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import mtask

FOLDER = Path(os.environ["CRASH_FOLDER"])


def plain(x: int) -> int:
    fd = os.open(FOLDER / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x}\n".encode())
    os.close(fd)
    return x


def spawn(x: int) -> None:
    """The same submit at each attempt; the first one fails after it."""
    mtask.submit([{"x": n} for n in range(x)], call=f"{__file__}:plain", bag="b")
    first = FOLDER / "spawned"
    if not first.exists():
        first.touch()
        raise ValueError("once more")


def total(results: Iterable[mtask.Result]) -> int:
    return sum(result.value for result in results)


def slow(x: int) -> int:
    time.sleep(0.06)
    return plain(x)


def sick(x: int) -> int:
    """Fails until somebody has mended it."""
    plain(x)
    if not (FOLDER / "mended").exists():
        raise ValueError("sick")
    return x


def moody(x: int) -> int:
    """1 fails at its first attempt, 4 always."""
    plain(x)
    first = FOLDER / f"failed-{x}"
    if x == 4 or (x == 1 and not first.exists()):
        first.touch()
        raise ValueError("moody")
    return x

"""What a fleet's workers run; shipped to where they are."""

from __future__ import annotations

import os
import time
from pathlib import Path


def marked(x: int, folder: str, seconds: float = 0.0) -> int:
    """Leaves a line with its worker, each time that it begins."""
    with Path(folder, str(x)).open("a") as file:
        file.write(f"{os.environ['MTASK_WORKER']}\n")
    time.sleep(seconds)
    return 2 * x


def wait(x: int, folder: str) -> int:
    """Until the file `gate` is there."""
    marked(x, folder)
    while not Path(folder, "gate").exists():
        time.sleep(0.05)
    return 2 * x


def secret(x: int) -> str:
    return os.environ["FLEET_TEST_SECRET"]

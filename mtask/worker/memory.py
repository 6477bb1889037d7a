"""How much memory a task takes, with all that it has started, and how much a child holds between tasks."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["own_bytes", "resident_bytes"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Of the process and its descendants, from /proc; shared pages count for each."""
    total, todo = 0, [pid]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        try:
            total += int((process / "statm").read_text().split()[1]) * _PAGE_BYTES
            for thread in (process / "task").iterdir():
                todo += map(int, (thread / "children").read_text().split())
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    return total


def own_bytes() -> int:
    """Of this process alone; opened anew each time, because tasks may close any descriptor."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES

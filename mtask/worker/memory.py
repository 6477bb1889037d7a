"""How much memory a task takes, with all that it has started, and how much a child holds between tasks."""

from __future__ import annotations

import os

__all__ = ["own_bytes", "resident_bytes"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Of the process and its descendants, from /proc; shared pages count for each."""
    total, todo = 0, [pid]
    while todo:
        process = f"/proc/{todo.pop()}"
        try:
            total += int(_read(f"{process}/statm").split()[1]) * _PAGE_BYTES
            for thread in os.listdir(f"{process}/task"):
                todo += map(int, _read(f"{process}/task/{thread}/children").split())
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    return total


def own_bytes() -> int:
    """Of this process alone; opened anew each time, because tasks may close any descriptor."""
    return int(_read("/proc/self/statm").split()[1]) * _PAGE_BYTES


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()

"""How much memory a task takes: its process and all that it has started."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["resident_bytes"]

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

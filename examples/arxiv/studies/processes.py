"""The processes that a study starts, and what they find: mtask, the examples, and the backend slow://."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ROOT / "examples/arxiv/slow_table"
"""Stands for where pip puts packages."""


def find_packages() -> None:
    """Have this process find them."""
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))


def environment(folder: Path) -> dict[str, str]:
    """Models are looked for in `folder`. Compiled modules are kept there, where Python is to write none beside the
    modules: else each process would compile for seconds."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), str(PACKAGES)])
    made = os.environ | {"PYTHONPATH": path, "ARXIV_WORK": str(folder)}
    if made.pop("PYTHONDONTWRITEBYTECODE", ""):
        made.setdefault("PYTHONPYCACHEPREFIX", str(folder / "compiled"))
    return made


@contextmanager
def running(command: Sequence[str], folder: Path, log: Path) -> Iterator[None]:
    """Told to stop at the end. What it says goes into the file `log`."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(folder), stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait()

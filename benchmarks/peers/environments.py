"""The environments of the peers: one below the cache for each module, with the versions that it pins."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.peer import Module

__all__ = ["CACHE", "python_of"]

CACHE = Path.home() / ".cache" / "mtask-peers"
INSTALL_S = 1200.0


def python_of(name: str, module: Module, cache: Path) -> Path:
    """The interpreter of a module's environment, which is made if it isn't there or has other versions.
    Raises RuntimeError, in one line, when pip can't."""
    wanted = "\n".join(sorted({line for peer in module.PEERS for line in peer.requirements}))
    if not wanted:
        return Path(sys.executable)
    folder = cache / name
    python, stamp = folder / "bin" / "python", folder / "made-of.txt"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *wanted.splitlines(),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"pip takes more than {INSTALL_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"pip can't install {wanted.replace(chr(10), ', ')}: {said[-1]}")
    stamp.write_text(wanted)
    return python

"""A child that is a program started anew."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import msgspec

import mtask
from mtask.worker.child.loop import Kit

__all__ = ["started"]

_HOME = os.path.dirname(os.path.dirname(mtask.__file__))
_START = """
import sys
sys.path.append(sys.argv.pop())
from mtask.start import import_msgspec
import_msgspec()
from mtask.worker.child.loop import main
main()
"""
"""With `-P`, so that a user's random.py in the working directory isn't taken for Python's."""


def started(kit: Kit, outputs: tuple[int, int], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`outputs`: what becomes its stdout and stderr; `variables` are added to the environment. Raises OSError."""
    stdout, stderr = outputs
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, msgspec.json.encode(kit).decode(), _HOME],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=(kit.jobs_fd, kit.results_fd, kit.cell_fd),
        env={**os.environ, **variables},
        process_group=0,
    )

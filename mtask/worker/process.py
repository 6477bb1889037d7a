"""Starting a command in a process group of its own, and signalling the group."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping

__all__ = ["signal_group", "spawn"]

_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT]
"""Python, or a worker's child, ignores these; a command should not."""


def spawn(
    argv: list[str],
    environment: Mapping[str, str] | Mapping[bytes, bytes],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    more: Mapping[int, int] | None = None,
) -> int:
    """The pid, which is also the group's number; raises OSError and ValueError.

    `more`: further descriptors, from the number that the command sees to ours, which must be beyond all
    of these numbers.
    """
    descriptors = {0: stdin, 1: stdout, 2: stderr, **(more or {})}
    return os.posix_spawnp(
        argv[0],
        argv,
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()],
        setpgroup=0,
        setsigdef=_DEFAULT_SIGNALS,
    )


def signal_group(pid: int, number: int) -> None:
    """To the process and its group. The process must not have been waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:  # it has left its group
            os.kill(pid, number)
        if number == signal.SIGTERM:
            os.killpg(pid, signal.SIGCONT)

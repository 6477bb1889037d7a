"""Nothing outlives a killed worker: a small process beside it kills what it leaves behind.

All that a worker starts has the worker's name in its environment, and so has what that starts in its
turn, however it detaches itself. This file is also that process's program: it imports little, so that
it is up in some 15 ms and takes 9 MB.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

__all__ = ["MARK", "kill_all_with", "scratch_prefix", "watch_for_orphans"]

MARK = "MTASK_WORKER"
"""The variable that holds the worker's name, in the environment of all that it runs."""
QUIET_S = 1.0
"""Who is just being started may not have its environment yet: so long, nobody must be found."""

_SURVIVED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
"""Blocked for good in that process: batch systems send some to all of a job before they kill a part of it."""


@contextmanager
def watch_for_orphans(worker: str) -> Iterator[None]:
    """If this process dies within, all that runs for the worker of that name dies, too."""
    if not os.path.exists("/proc/self/environ"):
        yield
        return
    pid = 0
    with contextlib.suppress(OSError):  # if there are no processes to be had, the tasks will tell
        pid = _spawn(worker)
    try:
        yield
    finally:
        if pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # where SIGCHLD is ignored
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def scratch_prefix(worker: str) -> str:
    """How the names of its scratch folders begin, in the folder for temporary files."""
    return f"mtask-scratch-{worker}-"


def _spawn(worker: str) -> int:
    import tempfile

    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", __file__, worker, str(os.getpid()), tempfile.gettempdir()],
        # This worker may itself be a task of another one, whose orphans' end this process must survive.
        {name: value for name, value in os.environ.items() if name != MARK},
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)],
        setsid=True,
        setsigmask=_SURVIVED,
    )


def main(worker: str, supervisor: int, temporary: str) -> None:
    """Wait for the supervisor's death, then kill until nothing of the worker is left, and clean up behind it."""
    os.chdir("/")
    spared = {os.getpgrp()}
    with contextlib.suppress(ProcessLookupError):
        death = os.pidfd_open(supervisor)
        if os.getppid() == supervisor:
            spared.add(os.getpgid(supervisor))  # with a script in it, perhaps, that goes on without it
            select.select([death], [], [])
    began_s = quiet_since_s = time.monotonic()
    while time.monotonic() - quiet_since_s < QUIET_S:
        if kill_all_with(f"{MARK}={worker}\0", spared):
            quiet_since_s = time.monotonic()
        time.sleep(0.05 if quiet_since_s - began_s < 10 else 1)  # one may be stuck in a dead file system
    remove_scratch_of(worker, temporary)


def remove_scratch_of(worker: str, temporary: str) -> None:
    import shutil

    for name in os.listdir(temporary):
        if name.startswith(scratch_prefix(worker)):
            shutil.rmtree(os.path.join(temporary, name), ignore_errors=True)


def kill_all_with(variable: str, spared: Collection[int] = ()) -> bool:
    """The processes with a variable that begins so (NAME=value), and their groups but those spared. Was there any?"""
    found = False
    for name in os.listdir("/proc"):
        if name.isdecimal() and _has(variable, name):
            found = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                group = os.getpgid(int(name))
                os.kill(int(name), signal.SIGKILL)
                if group not in spared:
                    os.killpg(group, signal.SIGKILL)  # also who has another environment
    return found


def _has(variable: str, pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + os.fsencode(variable) in b"\0" + file.read()
    except OSError:
        return False  # it has ended, or is somebody else's


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

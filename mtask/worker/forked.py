"""A child that is a copy of the worker's process, instead of a program started anew: up in a tenth of the time.

That is right only while the process has one thread and nothing of a vendor's, as that of a worker which was just handed its
message; its first child alone is made so.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType

from mtask.worker.child.loop import Kit, serve

__all__ = ["Forked", "can_fork"]


def can_fork() -> bool:
    """Is this thread the only one?"""
    return threading.active_count() == 1


class Forked:
    """As much of `subprocess.Popen` as a slot asks for."""

    def __init__(self, kit: Kit, outputs: tuple[int, int], variables: Mapping[str, str]) -> None:
        """`outputs`: what becomes its stdout and stderr; `variables` are added to the environment."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            _be_child(kit, outputs, variables)
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)  # it does so, too: whoever comes first

    def wait(self) -> int:
        """The exit status; -N for signal N."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _be_child(kit: Kit, outputs: tuple[int, int], variables: Mapping[str, str]) -> None:
    """As a process that was started anew; doesn't return."""
    status = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, fd in enumerate((null, *outputs)):
            os.dup2(fd, number)
        _close_all_but(kit.jobs_fd, kit.results_fd, kit.cell_fd)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(variables)
        sys.argv[:] = ["-c"]
        sys.modules["__main__"] = ModuleType("__main__")  # or multiprocessing would import the worker's
        serve(kit)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _end(status)


def _close_all_but(*fds: int) -> None:
    # Not by SC_OPEN_MAX: it may be a thousand million, and not all systems close a range at once.
    for fd in {int(name) for name in os.listdir("/proc/self/fd")}.difference((0, 1, 2), fds):
        with suppress(OSError):  # that of the listing
            os.close(fd)


def _end(status: int) -> None:
    """As an interpreter ends, which would otherwise go on where the worker's own process is."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for a function's threads
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)

"""What commands leave running in a group or session of its own: it ends with its command, too.

This process adopts it when its parent ends (PR_SET_CHILD_SUBREAPER, prctl(2)), and knows by a variable in its environment
which command it comes from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
from collections.abc import Collection

from mtask.worker.process import signal_group

__all__ = ["Detached"]

MARK = "MTASK_COMMAND"
"""The variable that holds the command's key."""
_PR_SET_CHILD_SUBREAPER = 36


class Detached:
    """Ends what commands have left behind, as far as it has become a child of this process."""

    def __init__(self) -> None:
        self._own: set[int] = set()
        """Children that no command has started."""
        self._name = secrets.token_hex(4)  # this process may be another one's command
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def mark(self, key: int) -> dict[str, str]:
        """What the environment of the command of this key has more."""
        return {MARK: f"{self._name}.{key}"}

    def end(self, running: Collection[int], pids: Collection[int]) -> None:
        """`running`: keys of the commands that may go on; `pids`: theirs. What has just lost its parent, as that was
        killed only now, may be found by the next call."""
        while True:
            there = _children()
            self._own.intersection_update(there)
            found = [pid for pid in there if pid not in pids and pid not in self._own]
            ended = [self._ended(pid, running) for pid in found]
            if not any(ended):
                return

    def close(self) -> None:
        """No command runs any more."""
        self.end((), ())
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)

    def _ended(self, pid: int, running: Collection[int]) -> bool:
        """Is it gone, so that its own children may be here now?"""
        with contextlib.suppress(OSError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        key = self._key_of(pid)
        if key is None:
            self._own.add(pid)
        elif key not in running:
            signal_group(os.getpgid(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return True
        return False

    def _key_of(self, pid: int) -> int | None:
        """None: no command started it."""
        begin = f"{MARK}={self._name}.".encode()
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            return None
        return next((int(word[len(begin) :]) for word in words if word.startswith(begin)), None)


def _children() -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found

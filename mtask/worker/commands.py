"""A slot for command tasks: a child that starts them, one after the other, and waits for each.

It takes a process for each slot to start commands as fast as the machine can: who starts one sleeps until its program
is loaded, and a supervisor that slept would keep all slots waiting.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import time

import msgspec

from mtask.requirements import Capabilities
from mtask.worker.child.loop import ShareFrame
from mtask.worker.environment import environment_of
from mtask.worker.feeding import ChildRunner
from mtask.worker.held import Job
from mtask.worker.memory import resident_bytes
from mtask.worker.orphans import kill_all_with
from mtask.worker.process import signal_group
from mtask.worker.room import Share
from mtask.worker.runner import Cause, Host
from mtask.worker.wire import SHARE, Cell, frame

__all__ = ["CommandRunner"]

MOST_LOOKS, QUIET_LOOKS = 20, 3
"""For what a child that has died leaves. Who is just being started may have no environment for a moment."""
LOOK_S = 0.005
SCRATCH = "MTASK_SCRATCH"
OBEY_S = 2.0
"""A child that doesn't kill its command within this is killed itself."""


class CommandRunner(ChildRunner):
    """A command owns its process group and its scratch directory: when it ends, what it left in them goes.

    Signals go to the child, which hands them on as long as the command's pid is its own.
    """

    _calls = False

    def __init__(self, host: Host, *, machine: Capabilities | None = None, forks: bool = False) -> None:
        super().__init__(host, machine=machine, forks=forks)
        self._told: Share | None = None
        """The share that the child knows of."""
        self._killed_s = math.inf
        """When it was told to kill its command (monotonic clock)."""

    def taken_bytes(self) -> int:
        pid = self._cell.words[Cell.COMMAND]
        return resident_bytes(pid) if pid > 0 else 0

    def close(self) -> None:
        if self._process is not None and self._cell.words[Cell.COMMAND]:
            self._hold()
            self._signal(signal.SIGKILL)
        super().close()

    def _spawn(self, _share: Share | None) -> None:
        super()._spawn(None)
        self._told, self._killed_s = None, math.inf

    def _variables(self, _share: Share | None) -> dict[str, str]:
        # A command that is being started has the child's environment until its program is loaded.
        return {SCRATCH: f"{self._folder}/"}

    def _tell_share(self, share: Share | None) -> None:
        if share is None or share == self._told:
            return
        self._told = share
        found = ShareFrame(variables=environment_of(share, self._machine), cores=share.cores)
        self._write(frame(SHARE, 0, 0, msgspec.json.encode(found)))

    def _signal(self, number: int) -> None:
        if not self.pid:
            return
        if number == signal.SIGKILL:
            now_s = time.monotonic()
            self._killed_s = min(self._killed_s, now_s)
            if now_s - self._killed_s >= OBEY_S:
                signal_group(self.pid, signal.SIGKILL)
                return
        self._cell.words[Cell.TOLD] = 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1 if number == signal.SIGKILL else number)

    def _ended(self, job: Job) -> None:
        if self._cause in (None, Cause.RETIRED):
            super()._ended(job)
            return
        begun, _, _ = self._cell.task()
        if any(behind.serial == begun for behind in itertools.islice(self.jobs, 1, None)):
            self.jobs.popleft()  # it had ended before: what was stopped is of another one, which is yet to end
            if job.left:
                self.host.left_over([job.rest()])
            return
        # The command was stopped, and its child goes on: what it has skipped since then is left.
        rests = [each.rest() for each in self.jobs if each.left]
        self.jobs.clear()
        self._cause = self._meant = None
        self._killed_s = math.inf
        self._cell.words[Cell.TOLD] = 0
        self._resume()
        self.host.left_over(rests)

    def _end_its_rest(self) -> None:
        if not self._cell.words[Cell.COMMAND]:
            return
        quiet = 0
        for _ in range(MOST_LOOKS):
            quiet = 0 if kill_all_with(f"{SCRATCH}={self._folder}/") else quiet + 1
            if quiet == QUIET_LOOKS:
                break
            time.sleep(LOOK_S)

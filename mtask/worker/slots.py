"""Where a worker runs one task at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtask.worker.commands import CommandRunner
from mtask.worker.functions import FunctionRunner
from mtask.worker.held import Job
from mtask.worker.runner import Host, Runner

__all__ = ["Slot", "room_behind"]

QUEUED_S = 0.1
"""A slot is given so much work in advance, by the pace of late: enough that it never waits for the
next message, too little to be missed elsewhere."""
MOST_QUEUED = 32


def room_behind(message_s: float | None) -> int:
    """How many messages, which take so long each, may wait behind the one that a slot runs."""
    if not message_s or message_s > QUEUED_S / 2:
        return 0
    return min(MOST_QUEUED, int(QUEUED_S / message_s))


class Slot:
    """Runs one task at a time: a function in its child, or a command."""

    def __init__(self, host: Host, *, max_tasks_per_child: int | None = None) -> None:
        self.runner: Runner | None = None
        self._makers: dict[bool, Callable[[], Runner]] = {
            True: lambda: FunctionRunner(host, max_tasks_per_child=max_tasks_per_child),
            False: lambda: CommandRunner(host),
        }
        self._runners: dict[bool, Runner] = {}

    @property
    def jobs(self) -> Sequence[Job]:
        return self.runner.jobs if self.runner is not None else ()

    @property
    def retiring(self) -> bool:
        return self.runner is not None and self.runner.retiring

    def start(self, job: Job) -> None:
        kind = _is_function(job)
        if kind not in self._runners:
            self._runners[kind] = self._makers[kind]()
        self.runner = self._runners[kind]
        self.runner.start(job)

    def takes_behind(self, job: Job) -> bool:
        """Can this job wait behind those that run now?"""
        front = self.jobs[0] if self.jobs else None
        return front is not None and _is_function(front) and _is_function(job) and not self.retiring

    def tell_stopping(self) -> None:
        """A running function can see it by `mtask.stopping`."""
        for runner in self._runners.values():
            runner.tell_stopping()

    def retire(self) -> None:
        for runner in self._runners.values():
            runner.retire()

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def _is_function(job: Job) -> bool:
    return job.held.bag.spec.kind == "call"

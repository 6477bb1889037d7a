"""Where a worker runs one task at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtask.worker.commands import CommandRunner
from mtask.worker.functions import FunctionRunner
from mtask.worker.held import Job
from mtask.worker.runner import Host, Runner

__all__ = ["Slot"]


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

    def retire(self) -> None:
        for runner in self._runners.values():
            runner.retire()

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def _is_function(job: Job) -> bool:
    return job.held.bag.spec.kind == "call"

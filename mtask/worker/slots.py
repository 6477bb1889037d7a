"""Where a worker runs one task at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtask.requirements import Capabilities
from mtask.worker.commands import CommandRunner
from mtask.worker.functions import FunctionRunner
from mtask.worker.held import Job
from mtask.worker.room import Share
from mtask.worker.runner import Host, Runner

__all__ = ["Slot"]


class Slot:
    """Runs one task at a time: a function in its child, or a command."""

    def __init__(
        self,
        host: Host,
        *,
        machine: Capabilities | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child_bytes: int | None = None,
        forks: bool = False,
    ) -> None:
        """`machine`: what the shares are shares of."""
        self.runner: Runner | None = None
        self.share: Share | None = None
        """What its jobs have of the worker."""
        self._makers: dict[bool, Callable[[], Runner]] = {
            True: lambda: FunctionRunner(
                host,
                machine=machine,
                max_tasks_per_child=max_tasks_per_child,
                max_memory_per_child_bytes=max_memory_per_child_bytes,
                forks=forks,
            ),
            False: lambda: CommandRunner(host, machine=machine, forks=forks),
        }
        self._runners: dict[bool, Runner] = {}

    def warm(self, share: Share, functions: bool) -> None:
        """Have the process for functions, or commands, with this share there before there is one to run."""
        self._runner(functions).warm(share)

    @property
    def jobs(self) -> Sequence[Job]:
        return self.runner.jobs if self.runner is not None else ()

    @property
    def retiring(self) -> bool:
        """A process of it is about to go: nothing may be started until it has gone."""
        return any(runner.retiring for runner in self._runners.values())

    def suits(self, share: Share, job: Job | None = None) -> bool:
        """Can the job, or any function, be started with this share? If not: `retire`, and wait until it isn't
        `retiring`."""
        if job is not None and not _is_function(job):
            return not set(self.gpus()) & set(share.gpus)
        return all(runner.suits(share) for runner in self._runners.values())

    def gpus(self) -> tuple[str, ...]:
        """On which an idle child, or one that is about to go, may hold memory: no other task may get them yet."""
        return tuple(gpu for runner in self._runners.values() for gpu in runner.gpus())

    def start(self, job: Job) -> None:
        self.runner = self._runner(_is_function(job))
        job.share = self.share or job.share
        self.runner.start(job)

    def _runner(self, function: bool) -> Runner:
        if function not in self._runners:
            self._runners[function] = self._makers[function]()
        return self._runners[function]

    def takes_behind(self, job: Job) -> bool:
        """Can this job wait behind those that run now, and then have the same share?"""
        front = self.jobs[0] if self.jobs else None
        if front is None or self.retiring or _is_function(front) != _is_function(job):
            return False
        return front.held.lane.requires == job.held.lane.requires

    def check(self) -> None:
        """To be called now and then: ends what has run too long or doesn't obey."""
        for runner in self._runners.values():
            if runner.pid:
                runner.check()

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

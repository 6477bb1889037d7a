"""A slot for function tasks: a child interpreter that stays, and calls them."""

from __future__ import annotations

import msgspec

from mtask.model import Failure, Reason
from mtask.requirements import Capabilities
from mtask.retry import is_wanted
from mtask.worker.child.loop import Kit
from mtask.worker.feeding import ChildRunner
from mtask.worker.held import Job
from mtask.worker.room import Share
from mtask.worker.runner import Host

__all__ = ["FunctionRunner"]


class FunctionRunner(ChildRunner):
    """Its child is renewed when it has run enough tasks, holds too much memory, or doesn't suit the next share."""

    _calls = True

    def __init__(
        self,
        host: Host,
        *,
        machine: Capabilities | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child_bytes: int | None = None,
        forks: bool = False,
    ) -> None:
        super().__init__(host, machine=machine, forks=forks)
        self._max_tasks, self._max_memory_bytes = max_tasks_per_child, max_memory_per_child_bytes
        self._share: Share | None = None
        """With which the child was started: what libraries have read of it when they were loaded, stays."""

    def setup_s(self) -> float | None:
        return None if self._process is None else self._cell.setup_s()

    def suits(self, share: Share) -> bool:
        return self._process is None or share == self._share

    def gpus(self) -> tuple[str, ...]:
        if self._process is None or self.jobs or self._share is None:
            return ()
        return self._share.gpus

    def _kit(self, jobs_fd: int, results_fd: int, cell_fd: int) -> Kit:
        kit = super()._kit(jobs_fd, results_fd, cell_fd)
        kit.max_tasks, kit.max_memory_bytes = self._max_tasks, self._max_memory_bytes
        return kit

    def _spawn(self, share: Share | None) -> None:
        super()._spawn(share)
        self._share = share

    def _why_it_died(self, job: Job, status: int) -> Failure:
        died = super()._why_it_died(job, status)
        if self.setup_s() is None:
            return died
        names = {Reason.SETUP.value, died.reason.value, died.type}
        return msgspec.structs.replace(
            died,
            reason=Reason.SETUP,
            message=f"in a setup function: {died.message}",
            final=not is_wanted(job.held.bag.spec, names),
        )

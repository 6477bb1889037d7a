"""What becomes of what the slots tell: results on their way to the recorder, what is left over, what can't be read."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Sequence

from mtask.errors import BackendError
from mtask.model import UNKNOWN, DeadMessage, Result, State
from mtask.portion import Portion
from mtask.worker.bags import ELSEWHERE_S, Bags
from mtask.worker.dispatcher import Dispatcher
from mtask.worker.expenses import Expenses
from mtask.worker.gathered import Gathered
from mtask.worker.held import Job
from mtask.worker.inbox import Inbox
from mtask.worker.notes import Notes
from mtask.worker.options import Options
from mtask.worker.recorder import Recorder
from mtask.worker.submits import Submits

__all__ = ["Outcomes"]


class Outcomes:
    """The `Host` of all runners; lives in the worker's main thread."""

    dispatcher: Dispatcher
    """Set before anything runs: it is made of the slots, which are made with this."""

    def __init__(
        self,
        name: str,
        options: Options,
        selector: selectors.BaseSelector,
        notes: Notes,
        *,
        bags: Bags,
        expenses: Expenses,
        submits: Submits,
        recorder: Recorder,
        gathered: Gathered,
        inbox: Inbox,
        hands_on: bool,
        on_broken: Callable[[BackendError], None],
        on_done: Callable[[Portion], bool] = lambda _: False,
    ) -> None:
        """`hands_on`: can it send what it doesn't run itself? `on_broken`: it can run nothing at all. `on_done`: see
        `Worker`."""
        self.name, self.selector, self.notes = name, selector, notes
        self.path, self.checkpoints = options.path, options.checkpoints
        self.done = self.failed = 0
        self.over: dict[str, int] = {}
        """Bags that were cancelled or are gone, by uid: up to which generation."""
        self._bags, self._expenses, self._submits = bags, expenses, submits
        self._recorder, self._gathered, self._inbox = recorder, gathered, inbox
        self._hands_on = hands_on and not options.alone
        self._on_broken, self._on_done = on_broken, on_done

    @property
    def ended(self) -> int:
        """Attempts, done or failed."""
        return self.done + self.failed

    def attempts_ended(self, job: Job, results: list[Result], size_bytes: int = 0) -> None:
        if self._gives_back(job, results):
            return
        failed = sum(result.state is not State.DONE for result in results)
        self.failed += failed
        self.done += len(results) - failed
        self._expenses.ended(job.held.bag.uid, len(results))
        if not job.held.lost:
            self._gathered.add(job.held, results, size_bytes)

    def portion_done(self, job: Job, portion: Portion) -> None:
        self.done += portion.count
        self._expenses.ended(job.held.bag.uid, portion.count)
        if not job.held.lost:
            # What is held counts as running where that is limited.
            told = self._on_done(portion) and not job.held.lane.limited
            self._gathered.add_portion(job.held, portion, told=told)

    def _gives_back(self, job: Job, results: list[Result]) -> bool:
        """A function that isn't known here may be known to another worker, of a newer version of its program."""
        error = results[0].error if results else None
        if error is None or error.type != UNKNOWN or not self._hands_on:
            return False
        self._bags.give_back(job.held.bag, error.message)
        self.notes.once(
            f"bag {job.held.bag.name!r} is given back to other workers: {error.message.splitlines()[0]}"
        )
        first = results[0].index - job.held.message.first
        part = job.held.part(first, first + len(results))
        if not job.held.lost:
            self._recorder.hand_on(job.held, [part], delay_s=ELSEWHERE_S)
        return True

    def job_over(self, took_s: float) -> None:
        self.dispatcher.job_over(took_s)

    def left_over(self, jobs: Sequence[Job]) -> None:
        for job in reversed(jobs):
            if job.held.lost:
                continue
            if self.is_over(job):
                self._recorder.settle(job.held, job.left)
            else:
                self.dispatcher.ready.appendleft(job)

    def is_over(self, job: Job) -> bool:
        """Was it sent before its bag was cancelled?"""
        return job.held.message.generation <= self.over.get(job.held.bag.uid, -1)

    def bad_message(self, job: Job, problem: str) -> None:
        self.notes.once(f"a message can't be read and is set aside (see `mtask dead`): {problem}")
        dead = DeadMessage(body=job.held.delivery.body, reason=problem, worker=self.name, at=time.time())
        self._recorder.set_aside(job.held, dead)

    def submit(self, request: bytes, answer: Callable[[bytes], None]) -> None:
        self._submits.put(request, lambda text: self._inbox.post(lambda: answer(text)))

    def broken(self, problem: str) -> None:
        self._on_broken(BackendError(problem))

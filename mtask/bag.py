"""A bag as a Python program holds it: counts, results, waiting, retry."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from mtask.costs import Bill, Cost, cost_of, used_by
from mtask.errors import UnavailableError, UsageError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState, Counts, Result, State, Task
from mtask.queue import Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas

    from mtask.manager import Manager
    from mtask.table import Table

__all__ = ["BagHandle"]

POLL_S = (0.005, 1.0)
POLL_GROWTH = 0.003
"""`wait` asks the table again after this part of the time that it has waited, between those."""
COLLECT_S = (0.05, 0.5)
"""The shortest pause where results are collected: what is sent again meanwhile goes together. The first one only for who
hasn't waited long; it grows to the other."""
COLLECT_GROWTH = 0.05


class BagHandle:
    """A bag, wherever its tasks are."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager, self.name = manager, name
        self._complaint = ""
        self._poll_s: float = getattr(manager.table, "poll_s", 0.0)
        self._then: BagHandle | None = None
        self._counted: tuple[float, Counts] | None = None
        self._unfinished_s = -math.inf
        """When it was seen last not to be finished (monotonic clock)."""

    def __repr__(self) -> str:
        return f"<mtask bag {self.name!r}>"

    @property
    def table(self) -> Table:
        return self._manager.table

    @property
    def info(self) -> Bag:
        """Spec, columns, state and totals, as stored now."""
        return self._manager.info(self.name)

    def counts(self) -> Counts:
        return self._manager.table.counts(self.name)

    def standing(self) -> Standing | None:
        """How its messages stand with a vendor who runs them itself (HTCondor); None: workers do."""
        return self._manager.standing(self.name)

    def cost(self, workers: Iterable[WorkerStatus] | None = None) -> Cost | None:
        """What it has used so far of vendors who bill by use, and the price; None: nothing (as on SQLite).

        See `mtask.costs` for what is in it. `workers`: all that the table knows, if they were read just now.
        """
        manager, table = self._manager, self._manager.table
        if all(getattr(each, "meter", None) is None for each in (manager.queue.main, table)):
            return None
        used = used_by(table, self.info.uid, table.workers() if workers is None else workers)
        return cost_of(used, self.counts().ended, manager.prices)

    def counts_of_late(self) -> Counts:
        """The same for who asks again and again: as old as the table's `poll_s`, if it has one."""
        now_s = time.monotonic()
        if self._counted is None or now_s - self._counted[0] >= self._poll_s:
            self._counted = now_s, self.counts()
        return self._counted[1]

    def finished(self) -> bool:
        """Has each task ended, and can none be added? True for a cancelled bag as well.

        A table with a `poll_s` is asked no more often than that: the answer no may be so old."""
        now_s = time.monotonic()
        if now_s - self._unfinished_s < self._poll_s:
            return False
        state = self.info.state
        if state is BagState.CANCELLED or (state is BagState.SEALED and self.counts().left == 0):
            return True
        self._unfinished_s = now_s
        return False

    def then(self) -> BagHandle | None:
        """The bag of the task that runs when this one is done (`Spec.then`); None: there is none, or not yet.

        Who asks sends that task, if nobody has."""
        info = self.info
        if self._then is None and info.spec.then:
            from mtask.reducing import send_when_done, then_name

            manager = self._manager
            if send_when_done(manager.queue, manager.table, info):
                manager.flush()
                self._then = BagHandle(manager, then_name(self.name))
        return self._then

    def finished_all(self) -> bool:
        """Is it finished, with the task that comes after it, if one does? After a failure none does."""
        return self.finished() and ((then := self.then()) is None or then.finished())

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Counts:
        """Return when the bag is finished, and what comes after it (`then`). Workers elsewhere do the work; what HTCondor brings back is recorded.

        With `progress`, a bar is shown. Raises TimeoutError after `timeout_s`.
        """
        from mtask.progress import Progress

        with Progress(self, shown=progress) as bar:
            began_s = time.monotonic()
            while self._collected(bar.say) or not self.finished_all():
                waited_s = time.monotonic() - began_s
                if timeout_s is not None and waited_s > timeout_s:
                    raise TimeoutError(f"bag {self.name!r} is not finished after {timeout_s:g} s")
                bar.update()
                time.sleep(self._pause_s(waited_s))
        return self.counts()

    def _pause_s(self, waited_s: float) -> float:
        least_s = POLL_S[0]
        if self._manager.hands_out:
            least_s = min(max(COLLECT_S[0], COLLECT_GROWTH * waited_s), COLLECT_S[1])
        return min(max(least_s, POLL_GROWTH * waited_s), POLL_S[1])

    def _collected(self, say: Callable[[str], None]) -> int:
        """As `Manager.collect`; what a schedd that is away for a while keeps from being sent goes later."""
        try:
            return self._manager.collect()
        except UnavailableError as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                say(f"mtask: {error}")
            return 0

    def results(
        self, *, states: Collection[State] | None = None, indexes: Collection[int] | None = None
    ) -> Iterator[Result]:
        """The rows so far, in the order of the tasks; streams."""
        return self._manager.table.results(self.name, states=states, indexes=indexes)

    def follow(self, *, states: Collection[State] | None = None) -> Iterator[Result]:
        """The row of each task, those that are there and then each soon after its task has ended, until the bag is
        finished (an open one: sealed, and all have ended) or cancelled.

        A task that `retry` sends again comes again. The order is that of the tasks only by chance.
        """
        from mtask.follow import follow

        return follow(self, states, lambda: self._collected(lambda _: None))

    def attempts(self) -> Iterator[Result]:
        """The failed attempts that were followed by another, in the order of the tasks; streams."""
        return self._manager.table.attempts(self.name)

    def tasks(self) -> Iterator[Task]:
        """All tasks with their parameters, in order; streams."""
        info = self.info
        for block in self._manager.table.blocks(self.name):
            if info.endless and block.first >= info.total:
                return  # being added just now, or too late for that
            yield from block.tasks(info.columns)

    def to_pandas(self) -> pandas.DataFrame:
        """Parameters and results, one row a task that has ended; a dict's keys become columns."""
        from mtask.export import to_pandas

        return to_pandas(self)

    def retry(
        self,
        *,
        states: Collection[State] = (State.FAILED, State.EXPIRED),
        indexes: Collection[int] | None = None,
        where: str | None = None,
    ) -> int:
        """Send the tasks that ended so once more, with fresh attempts; returns how many.

        Their rows become a part of the history (`attempts`). Only those among `indexes`, if given, and
        for which the condition `where` holds (see `mtask.where`). A cancelled bag is taken up again, with
        all of its tasks that have not ended.
        """
        from mtask.resend import retry
        from mtask.where import parse_where

        holds = None if where is None else parse_where(where)
        manager = self._manager
        manager.collect()
        info = self.info
        with Bill(manager.queue, manager.table) as bill:
            bill.uid = info.uid
            sent = retry(manager.queue, manager.table, info, states=states, indexes=indexes, where=holds)
            if info.spec.then:
                self.then()
            manager.flush()
        return sent

    def repair(self) -> int:
        """Send every task again that has no row, as after the loss of a queue; returns how many.

        Raises UsageError for a bag that is still being submitted as a whole, or was cancelled.
        """
        from mtask.resend import repair

        info = self.info
        whole = (BagState.SEALED, BagState.RESENDING, *([BagState.OPEN] if info.endless else ()))
        if info.state not in whole:
            how = (
                "was cancelled; retry takes it up again"
                if info.state is BagState.CANCELLED
                else ("is not completely submitted; the same submit again goes on with it")
            )
            raise UsageError(f"the bag {self.name!r} {how}")
        self._manager.collect()
        with Bill(self._manager.queue, self._manager.table) as bill:
            bill.uid = info.uid
            sent = repair(self._manager.queue, self._manager.table, info)
            if info.spec.then:
                self.then()
            sent -= self._manager.flush()
        return sent

    def seal(self) -> None:
        """Nothing can be added to this open bag from now on: it is finished when its tasks have ended.

        Raises UsageError for a bag that never was open.
        """
        from mtask.append import seal

        manager, info = self._manager, self.info
        with Bill(manager.queue, manager.table) as bill:
            bill.uid = info.uid
            seal(manager.queue, manager.table, info)
            if info.spec.then:
                self.then()
            manager.flush()

    def cancel(self) -> None:
        """Run nothing more of this bag; workers stop what they run of it within seconds."""
        self._manager.cancel(self.name)

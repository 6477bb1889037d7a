"""The Python side of `mtask submit`, `status`, `results`, `retry` and `cancel`."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mtask.costs import Bill, Cost, cost_of, prices_of, used_by
from mtask.errors import BagNotFoundError, UnavailableError, UsageError
from mtask.lanes import Lanes
from mtask.meter import Prices
from mtask.model import Bag, BagState, Counts, Result, Spec, State, Task, WorkerStatus
from mtask.queue import HandsOut, Queue, Standing
from mtask.registry import open_queue, open_table
from mtask.settings import Urls, find_urls
from mtask.table import Table

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import pandas

    from mtask.sources import Source
    from mtask.submit import Prepared

__all__ = ["BagHandle", "Manager", "connect"]

POLL_S = (0.005, 1.0)
COLLECT_S = 0.5
"""What is sent again while results are collected goes together: not more often than so."""
POLL_GROWTH = 0.003
"""`wait` asks the table again after this part of the time that it has waited, between those."""


def connect(queue: str | None = None, table: str | None = None) -> Manager:
    """Open a queue and a table by their URLs.

    What isn't given comes from MTASK_QUEUE and MTASK_TABLE, from `mtask.toml`, or is the SQLite file
    `.mtask/mtask.db`. Raises UsageError for a URL that can't be used, BackendError when the vendor is
    out of reach.
    """
    urls = find_urls(queue, table)
    opened = open_table(urls.table)
    try:
        return Manager(open_queue(urls.queue), opened, place=urls.place, urls=urls)
    except BaseException:
        opened.close()
        raise


class Manager:
    """A queue and a table. Close it, or use it in a `with` statement."""

    def __init__(self, queue: Queue, table: Table, *, place: str = "", urls: Urls | None = None) -> None:
        """`place`: where they are, for people; `urls`: from where they were opened, which tells what they cost."""
        self.queue, self.table, self.place = Lanes.over(queue), table, place
        self._urls = urls
        main = self.queue.main
        self._hands_out = main if isinstance(main, HandsOut) else None
        if self._hands_out is not None:
            self._hands_out.attach(table, urls.table if urls else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.queue.close()
        self.table.close()

    @property
    def prices(self) -> list[Prices]:
        """Of the vendors of queue and table, if they bill by use."""
        return prices_of(self._urls) if self._urls else []

    def submit(
        self,
        tasks: str | os.PathLike[str] | Iterable[Any] | Source,
        *,
        call: str | Callable[..., Any] | None = None,
        run: str | None = None,
        shell: str | None = None,
        bag: str | None = None,
        columns: Sequence[str] | None = None,
        on_rows: Callable[[int], None] | None = None,
        on_checked: Callable[[Prepared], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
        row_needs: bool = True,
        **options: Any,
    ) -> BagHandle:
        """Check all tasks, then store and send them.

        `tasks`: a task file (CSV, JSON Lines, Parquet), or rows: mappings, dataclasses, or sequences
        with `columns`, or a pandas DataFrame. One of `call` ("module:function", or a function that
        can be imported), `run` (a command template) and `shell` (a script) says what to run; without
        any, the column `command` does. `options` are fields of `Spec`: retries, timeout_s, per_message, …;
        also as people write them: memory="8GB", tags="blast,eu", priority="high", rate="10/s". The columns
        cpus, memory, gpus, tags and priority say it of their row alone, unless `row_needs` is False.
        `on_checked` is called when all tasks are right and none is sent, and may raise.
        The same call again goes on with a submit that was interrupted.

        Raises InputError for a wrong task and UsageError for a wrong call, with nothing sent, and
        BagExistsError when `bag` names other tasks.
        """
        from mtask.resend import repair
        from mtask.submit import check_name, claim, prepare, send

        if bag is not None:
            check_name(bag)
        source, wish = _source(tasks, columns)
        spec = make_spec(call=call, run=run, shell=shell, columns=source.columns, **options)
        self._check_keep(spec)
        if self._hands_out is not None:
            self._hands_out.check(spec)
        prepared = prepare(source, spec, on_rows=on_rows, row_needs=row_needs)
        try:
            if on_checked is not None:
                on_checked(prepared)
            with Bill(self.queue, self.table) as bill:
                claimed = claim(self.table, prepared, wish if bag is None else bag, explicit=bag is not None)
                bill.uid = claimed.uid
                if claimed.state is BagState.RESENDING:
                    repair(self.queue, self.table, claimed)
                send(self.queue, self.table, claimed, prepared, on_sent=on_sent)
                self.flush()
        finally:
            prepared.spool.close()
        return BagHandle(self, claimed.name)

    @property
    def hands_out(self) -> bool:
        """Does the queue's vendor run the messages itself, without workers of ours?"""
        return self._hands_out is not None

    def flush(self) -> None:
        """Where the vendor runs the messages itself: all that was sent is with it when this returns."""
        if self._hands_out is not None:
            self._hands_out.flush()

    def collect(self) -> int:
        """Where the vendor runs the messages itself (HTCondor): record what has come back; how many rows.

        Elsewhere workers record by themselves, and there is nothing to collect.
        """
        return self._hands_out.collect() if self._hands_out is not None else 0

    def standing(self, name: str) -> Standing | None:
        """How the bag's messages stand with a vendor who runs them itself; None: workers do."""
        return self._hands_out.standing(self.info(name)) if self._hands_out is not None else None

    def cancel(self, name: str) -> None:
        self.table.update_bag(name, state=BagState.CANCELLED)
        if self._hands_out is not None:
            self._hands_out.cancelled(self.info(name))

    def _check_keep(self, spec: Spec) -> None:
        """Raises UsageError for results that are to expire in a table where they can't."""
        if spec.keep_s is not None and not getattr(self.table, "keeps", False):
            where = f"the table {self._urls.table_place}" if self._urls else "this table"
            raise UsageError(
                f"--keep: {where} keeps results for ever; leave it out, or take a table in which they can expire "
                "(DynamoDB)"
            )

    def bag(self, name: str) -> BagHandle:
        """Raises BagNotFoundError."""
        self.info(name)
        return BagHandle(self, name)

    def info(self, name: str) -> Bag:
        """What is stored of a bag. Raises BagNotFoundError, which names the bags there are."""
        try:
            return self.table.bag(name)
        except BagNotFoundError:
            names = [bag.name for bag in self.table.bags()]
            near = difflib.get_close_matches(name, names, 1)
            where = f" in {self.place}" if self.place else ""
            if near:
                hint = f"did you mean {near[0]!r}?"
            else:
                hint = f"there are {', '.join(names[-20:])}" if names else "there is none at all"
            raise BagNotFoundError(f"there is no bag {name!r}{where}; {hint}") from None

    def bags(self) -> list[BagHandle]:
        """All, oldest first."""
        return [BagHandle(self, bag.name) for bag in self.table.bags()]


class BagHandle:
    """A bag, wherever its tasks are."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager, self.name = manager, name
        self._complaint = ""
        self._poll_s: float = getattr(manager.table, "poll_s", 0.0)
        self._counted: tuple[float, Counts] | None = None
        self._unfinished_s = -math.inf
        """When it was seen last not to be finished (monotonic clock)."""

    def __repr__(self) -> str:
        return f"<mtask bag {self.name!r}>"

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
        if state is BagState.CANCELLED or (state is BagState.SEALED and self.counts_of_late().left == 0):
            return True
        self._unfinished_s = now_s
        return False

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Counts:
        """Return when the bag is finished. Workers elsewhere do the work; what HTCondor brings back is recorded.

        With `progress`, a bar is shown. Raises TimeoutError after `timeout_s`.
        """
        from mtask.progress import Progress

        with Progress(self, shown=progress) as bar:
            began_s = time.monotonic()
            while self._collected(bar.say) or not self.finished():
                waited_s = time.monotonic() - began_s
                if timeout_s is not None and waited_s > timeout_s:
                    raise TimeoutError(f"bag {self.name!r} is not finished after {timeout_s:g} s")
                bar.update()
                least_s = COLLECT_S if self._manager.hands_out else POLL_S[0]
                time.sleep(min(max(least_s, POLL_GROWTH * waited_s), POLL_S[1]))
        return self.counts()

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

    def attempts(self) -> Iterator[Result]:
        """The failed attempts that were followed by another, in the order of the tasks; streams."""
        return self._manager.table.attempts(self.name)

    def tasks(self) -> Iterator[Task]:
        """All tasks with their parameters, in order; streams."""
        columns = self.info.columns
        for block in self._manager.table.blocks(self.name):
            yield from block.tasks(columns)

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
        info = self.info
        with Bill(manager.queue, manager.table) as bill:
            bill.uid = info.uid
            sent = retry(manager.queue, manager.table, info, states=states, indexes=indexes, where=holds)
            manager.flush()
        return sent

    def repair(self) -> int:
        """Send every task again that has no row, as after the loss of a queue; returns how many.

        Raises UsageError for a bag that is still being submitted, or was cancelled.
        """
        from mtask.resend import repair

        info = self.info
        if info.state not in (BagState.SEALED, BagState.RESENDING):
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
            self._manager.flush()
        return sent

    def cancel(self) -> None:
        """Run nothing more of this bag; workers stop what they run of it within seconds."""
        self._manager.cancel(self.name)


def make_spec(
    *,
    call: str | Callable[..., Any] | None = None,
    run: str | None = None,
    shell: str | None = None,
    columns: Collection[str],
    **options: Any,
) -> Spec:
    """The spec of a call, a command template, a shell script or, with none of them, a column `command`.

    `options` as `placing.spec_fields` takes them. Raises UsageError.
    """
    from mtask.placing import spec_fields
    from mtask.template import Template

    given = [name for name, value in (("call", call), ("run", run), ("shell", shell)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"say one of --call, --run and --shell, not {' and '.join('--' + g for g in given)}")
    try:
        options = spec_fields(options)
        if call is not None:
            return Spec(kind="call", target=(call if isinstance(call, str) else _name_of(call),), **options)
        if run is not None:
            return Spec(kind="run", target=Template.parse(run, tuple(columns)).words, **options)
        if shell is not None:
            return Spec(kind="shell", target=(shell,), **options)
        return Spec(kind="command", **options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _name_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<lambda>")
    if module in (None, "__main__") or "<" in name:
        raise UsageError(
            f"workers are other processes and import what they run: {name!r} must be a function at the top of a "
            "module (a .py file), not of a notebook or the main script; mtask.map takes those, too"
        )
    return f"{module}:{name}"


def _source(tasks: Any, columns: Sequence[str] | None) -> tuple[Source, str]:
    """The source, and a name for the bag if none is given."""
    import os

    from mtask.sources import RowsSource, open_source

    if isinstance(tasks, str | os.PathLike):
        tasks = open_source(tasks)
    elif not hasattr(tasks, "chunks"):
        return RowsSource(tasks, columns), "tasks"
    name = os.path.basename(tasks.name)
    if name == "standard input":
        return tasks, "stdin"
    return tasks, re.sub(r"[^\w.-]+", "-", name.split(".")[0])[:80].strip("-_.") or "tasks"

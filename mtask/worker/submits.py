"""Tasks that submit tasks: `mtask.submit` in a child, and what its worker does about it.

The child checks and packs the tasks, as any submit does, and sends them to its supervisor as a `Submission`, by the pipe
on which results go. So it needs no vendor's library, no connection and no password. The supervisor adds them to the open bag
over its own queue and table, in a thread that is started for the first of them, and sends back an `Answer`.

The task that runs over all results of a bag (`mtask.reducing`) gets those in the same way, page by page, and the same thread
sends it when the bag is done.
"""

from __future__ import annotations

import queue as stdlib_queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import mtask.errors
from mtask import task
from mtask.errors import MtaskError, SendError, UnavailableError, UsageError
from mtask.lanes import Lanes
from mtask.model import Bag, BagState, Block, Result
from mtask.requirements import Requirements
from mtask.spec import Spec
from mtask.table import Table
from mtask.worker.notes import Notes
from mtask.worker.service import Service

if TYPE_CHECKING:
    from mtask.append import Known

__all__ = ["Submits", "asked", "next_results"]

MOST_BYTES = 64 * 1024 * 1024
LONGEST_PAUSE_S = 10.0
LOOK_S = 0.5
"""Between two looks at which bags are done, if the table has no longer `poll_s`: they may cost something, and take a while."""


Request = tuple[bytes, Callable[[bytes], None]]
"""And who gets the answer."""
_WAKE: Request = (b"", lambda _: None)


class Page(msgspec.Struct, frozen=True, tag="page"):
    """Asks for the results of a bag behind the task `after`."""

    bag: str
    after: int


class Submission(msgspec.Struct, frozen=True, kw_only=True, tag="submission"):
    """What a task submits at a time."""

    submit: str
    """Its name, under which it is done once."""
    bag: str
    spec: Spec
    columns: tuple[str, ...]
    source: str
    digest: str
    kinds: tuple[tuple[int, Requirements], ...]
    """Priorities and needs."""
    blocks: tuple[tuple[int, int, msgspec.Raw], ...]
    """(number of its kind, count, rows)."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """To a submission, or for a page."""

    error: str = ""
    """The name of an exception; empty: all is stored and sent."""
    text: str = ""
    results: tuple[Result, ...] = ()


def next_results(bag: str, after: int) -> tuple[Result, ...]:
    """In the child that runs the task behind a bag: a page of its results."""
    return _answered(task.asks(), Page(bag, after)).results


def asked(
    ask: Callable[[bytes], bytes],
    submit: str,
    bag: str,
    tasks: Any,
    columns: Sequence[str] | None,
    *,
    row_needs: bool,
    **options: Any,
) -> None:
    """In the child: check the tasks, and have the worker submit them. Raises what `Manager.submit` raises."""
    from mtask.manager import make_spec, source_of
    from mtask.submitting import check_name, prepare

    check_name(bag)
    source, _ = source_of(tasks, columns)
    spec = make_spec(columns=source.columns, **options)
    prepared = prepare(source, spec, row_needs=row_needs)
    try:
        numbers = [str(number) for number in range(len(prepared.placing.kinds))]
        blocks = prepared.spool.blocks(bag, numbers)
        submission = Submission(
            submit=submit,
            bag=bag,
            spec=spec,
            columns=prepared.columns,
            source=prepared.source,
            digest=prepared.digest,
            kinds=tuple(prepared.placing.kinds),
            blocks=tuple((int(each.lane), each.count, msgspec.Raw(each.rows)) for each in blocks),
        )
    finally:
        prepared.spool.close()
    _answered(ask, submission)


def _answered(ask: Callable[[bytes], bytes], what: Submission | Page) -> Answer:
    request = msgspec.json.encode(what)
    if len(request) > MOST_BYTES:
        raise UsageError(
            f"a task can submit {MOST_BYTES >> 20} MiB of tasks at a time, and this is {len(request) >> 20}: submit less, "
            "several times"
        )
    answer = msgspec.json.decode(ask(request), type=Answer)
    if answer.error:
        kind = getattr(mtask.errors, answer.error, MtaskError)
        raise kind(answer.text)
    return answer


class Submits(Service):
    """In the worker: adds what its tasks submit, one after the other."""

    def __init__(self, queue: Lanes, table: Table, notes: Notes, *, allowed: bool) -> None:
        super().__init__("submits")
        self._queue, self._table, self._notes, self._allowed = queue, table, notes, allowed
        self._known: dict[str, Known] = {}
        self._requests: stdlib_queue.SimpleQueue[Request | None] = stdlib_queue.SimpleQueue()
        self._due: dict[str, Bag] = {}
        """By uid: those that are to be looked at."""
        self._look_s: float = max(LOOK_S, getattr(table, "poll_s", 0.0))
        self._stopped, self._changing = threading.Event(), threading.Lock()
        self._over: set[str] = set()
        """The bags, by uid, whose last task was sent."""

    def put(self, request: bytes, answer: Callable[[bytes], None]) -> None:
        """`answer` is called by another thread."""
        self._start_once()
        self._requests.put((request, answer))

    def look_whether_done(self, bag: Bag) -> None:
        """Tasks of it have ended: send the one that comes after all, if it is time."""
        if bag.spec.then and bag.uid not in self._over and self._queue.limits.workers_send:
            self._start_once()
            with self._changing:
                first, self._due[bag.uid] = not self._due, bag
            if first:
                self._requests.put(_WAKE)

    def look_whether_any_is_done(self, bags: Sequence[Bag]) -> None:
        """The same for all bags that there are, as at the start of a worker: those before it may all have died."""
        waiting = [bag for bag in bags if bag.spec.then]
        if not waiting:
            return
        from mtask.reducing import then_name

        states = {bag.name: bag.state for bag in bags}
        for bag in waiting:
            if states.get(then_name(bag.name)) is not BagState.SEALED:
                self.look_whether_done(bag)

    def _start_once(self) -> None:
        with self._changing:
            if not self.ident:
                self.start()

    def abandon(self) -> None:
        """Of those who wait for an answer, nobody is there any more."""
        self._stopped.set()

    def stop(self) -> None:
        self._requests.put(None)

    def join(self, timeout: float | None = None) -> None:
        if self.ident:
            super().join(timeout)

    def work(self) -> None:
        """Requests of tasks go first, for they wait."""
        now: list[Bag] = []
        again_s = 0.0  # then there may be another look
        while True:
            if not now and self._due and time.monotonic() >= again_s:
                now = self._take_due()
                again_s = time.monotonic() + self._look_s
            wait_s = 0.0 if now else max(0.0, again_s - time.monotonic()) if self._due else None
            try:
                item = self._requests.get(timeout=wait_s)
            except stdlib_queue.Empty:
                if now:
                    self._send_when_done(now.pop())
                continue
            if item is None:
                break
            if item is not _WAKE and not self._stopped.is_set():
                self._answer(*item)
        for bag in {bag.uid: bag for bag in (*now, *self._take_due())}.values():
            self._send_when_done(bag)

    def _take_due(self) -> list[Bag]:
        with self._changing:
            due, self._due = self._due, {}
        return list(due.values())

    def _answer(self, request: bytes, answer: Callable[[bytes], None]) -> None:
        try:
            said = self._patiently(msgspec.json.decode(request, type=Submission | Page))
        except MtaskError as error:
            said = Answer(type(error).__name__, str(error))
        except Exception as error:  # whatever a task sends, it ends no worker
            said = Answer("MtaskError", f"the worker can't do this: {type(error).__name__}: {error}"[:4096])
        answer(msgspec.json.encode(said))

    def _send_when_done(self, bag: Bag) -> None:
        from mtask.reducing import send_when_done

        try:
            if bag.uid not in self._over and send_when_done(self._queue, self._table, bag):
                self._over.add(bag.uid)
        except MtaskError as error:  # whoever looks next tries again, and whoever waits says it
            self._notes.once(f"what comes after bag {bag.name!r} can't be sent: {error}")

    def _patiently(self, request: Submission | Page) -> Answer:
        """A queue or table that is away for a while costs the task no attempt."""
        from mtask.reducing import pages_of

        pause_s = 0.1
        while True:
            try:
                if isinstance(request, Page):
                    answer = Answer(results=tuple(pages_of(self._table, request.bag, request.after)))
                else:
                    self._add(request)
                    answer = Answer()
            except (UnavailableError, SendError) as error:
                self._notes.trouble("submits", error)
                if self._stopped.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._notes.well("submits")
                return answer

    def _add(self, submission: Submission) -> None:
        from mtask.append import Known, add, open_bag, rows_of

        spec = msgspec.structs.replace(submission.spec, growth=self._queue.limits.growth)
        if not self._allowed:
            raise UsageError(
                "tasks of mtask.map and mtask.Executor can't submit tasks: their queue ends with them"
            )
        if not self._queue.limits.workers_send:
            raise UsageError(
                "a task can't submit tasks here: workers can't send to this queue; have the task return them, and submit them "
                "where its results are read"
            )
        if spec.keep_s is not None and not getattr(self._table, "keeps", False):
            raise UsageError("keep_s: this table keeps results for ever; leave it out")
        bag, lanes = open_bag(
            self._table,
            submission.bag,
            spec,
            submission.columns,
            submission.kinds,
            source=submission.source,
        )
        add(
            self._queue,
            self._table,
            bag,
            rows_of(_blocks(bag.name, submission.blocks, lanes)),
            submit=submission.submit,
            digest=submission.digest,
            known=self._known.setdefault(bag.uid, Known()) if spec.key else None,
        )


def _blocks(
    bag: str, blocks: Iterable[tuple[int, int, msgspec.Raw]], lanes: Sequence[str]
) -> Iterable[Block]:
    for number, (kind, count, rows) in enumerate(blocks):
        yield Block(bag=bag, number=number, first=0, count=count, rows=bytes(rows), lane=lanes[kind])

"""Results and attempts in a Firestore database: writing.

What a row costs. Firestore bills each document that is written, whatever its size, and takes about one write a second of
the same document for long. So the rows of 32 tasks share a document, the page (`mtask_gcp.pages`): results of quick
functions, which come by the hundred, take 0.03 to 0.05 writes each; a result that comes alone takes one, as a
document of its own would, and there are at most a few writes of a page before it is full. A page of 64, or rows in
documents of their own beside a page, would have more workers wait for each other, or cost two writes a result.

A worker mostly writes on in pages that it wrote itself, so it remembers how it left them, and needn't read first.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from mtask.errors import UnavailableError
from mtask.model import Counts, Result, State
from mtask.paged import Rows, gathered
from mtask.portion import Portion, line_of
from mtask_gcp import pages as pages_
from mtask_gcp.bags import Bags, Known
from mtask_gcp.blobs import Blobs
from mtask_gcp.database import Database
from mtask_gcp.documents import (
    MOST,
    PAGE,
    Value,
    Write,
    attempt_id,
    checked,
    digest_of,
    page_id,
    page_of,
    put,
)
from mtask_gcp.pages import DONE, EMPTY, Change, Failed, Page, letter_of

__all__ = ["NEAR_BYTES", "Writer", "counts", "page_name", "pages_with"]

NEAR_BYTES = 16 * 1024
"""A longer row is a document of its own, or an object: 32 that are not must fit in 1 MiB."""
PATIENCE_S = 30.0
"""So long others may change a page, again and again, before this could."""
PAUSE_S = 0.03
REMEMBERED = 2000
"""Pages."""
PAGES_AT_A_TIME = 300
STATES = ("body.s",)
FAILURES = (*STATES, *(f"body.f{offset}" for offset in range(PAGE)))


class Work(NamedTuple):
    """What is to be written to one page."""

    known: Known
    number: int
    rows: Rows
    packed: dict[int, Value]
    """The lines that don't share a field, by offset."""

    @property
    def name(self) -> str:
        return page_name(self.known, self.number)


def page_name(known: Known, number: int) -> str:
    return f"{known.parent}/mtask-pages/{page_id(number)}"


class Writer:
    """Writes rows and attempts."""

    def __init__(self, db: Database, blobs: Blobs, bags: Bags) -> None:
        self._db, self._blobs, self._bags = db, blobs, bags
        self._lock = threading.Lock()
        self._pages: OrderedDict[str, Page] = OrderedDict()
        """By name, as this client left them."""

    def record(self, results: Sequence[Result | Portion]) -> None:
        """Raises UnavailableError when others changed the same pages all the time."""
        by_bag = gathered(results, PAGE, checked)
        bags = {name: self._bags.known(name) for name in by_bag}  # before anything is written
        left = self._packed(
            [
                Work(bags[name], page, rows, {})
                for name, pages in by_bag.items()
                for page, rows in pages.items()
            ]
        )
        waits, guess = _waits(self._db), True
        while left:
            changes = [
                (work, change)
                for work, page in self._with_pages(left, guess=guess)
                if (change := self._change(work, page)) is not None
            ]
            left, guess = self._write(changes), False
            if left:
                next(waits)

    def keep_attempts(self, results: Sequence[Result]) -> None:
        """The same attempt has the same name: after a fault it is kept once, however often it is told."""
        bags = {result.bag: self._bags.known(result.bag) for result in results}

        def attempt(result: Result) -> Write:
            known = bags[result.bag]
            line = self._pack(known, line_of(result))
            return self._attempt(known, checked(result.index), result.attempt, line)

        large = any(len(line_of(result)) > NEAR_BYTES for result in results)
        made = self._db.parallel(attempt, results) if large else [attempt(result) for result in results]
        self._db.write(list({write.update.name: write for write in made}.values()))

    def retract(self, known: Known, indexes: Collection[int]) -> set[int]:
        """Attempts first, under names that a second try has again; then the pages."""
        wanted: dict[int, set[int]] = {}
        for index in indexes:
            if 0 <= index <= MOST:
                wanted.setdefault(page_of(index), set()).add(index)
        numbers, taken = sorted(wanted), set[int]()
        for at in range(0, len(numbers), PAGES_AT_A_TIME):
            some = {number: wanted[number] for number in numbers[at : at + PAGES_AT_A_TIME]}
            taken |= self._retract(known, some)
        return taken

    # -- inside -------------------------------------------------------------------------------------

    def _packed(self, works: list[Work]) -> list[Work]:
        """With the lines packed that have a field of their own; those that are too big for it are stored now."""
        alone = [
            (work, offset, row.line)
            for work in works
            for offset, row in work.rows.items()
            if row.state is not State.DONE or len(row.line) > NEAR_BYTES
        ]

        def pack(each: tuple[Work, int, bytes]) -> Value:
            work, _, line = each
            return self._pack(work.known, line)

        far = any(len(line) > NEAR_BYTES for _, _, line in alone)
        values = self._db.parallel(pack, alone) if far else [pack(each) for each in alone]
        for (work, offset, _), value in zip(alone, values, strict=True):
            work.packed[offset] = value
        return works

    def _pack(self, known: Known, line: bytes) -> Value:
        return self._blobs.pack(line, known.parent, near=NEAR_BYTES, expires_at=known.expires_at)

    def _change(self, work: Work, page: Page) -> Change | None:
        """None: whatever there is stays."""
        rows = {offset: row for offset, row in sorted(work.rows.items()) if page.states[offset] != DONE}
        if not rows:
            return None
        change = Change(page)
        together = [o for o, row in rows.items() if row.state is State.DONE and o not in work.packed]
        if together:
            lines = b"\n".join(rows[offset].line for offset in together)
            change.done(together, self._blobs.pack(lines, work.known.parent, near=PAGE * (NEAR_BYTES + 1)))
        for offset, row in rows.items():
            if offset in work.packed:
                value = work.packed[offset]
                if row.state is State.DONE:
                    change.done([offset], value)
                else:
                    change.ended(offset, letter_of(row.state), row.attempt, value)
        return change

    def _with_pages(self, works: list[Work], *, guess: bool) -> Iterator[tuple[Work, Page]]:
        """As they are remembered, or are. `guess`: a page of which most is to be written now is taken to be new."""
        found: dict[str, Page] = {}
        with self._lock:
            for work in works:
                if page := self._pages.get(work.name):
                    self._pages.move_to_end(work.name)
                    found[work.name] = page
                elif guess and len(work.rows) >= PAGE // 2:
                    found[work.name] = Page(work.number, EMPTY, None)
        unknown = [work.name for work in works if work.name not in found]
        found |= {each.name: pages_.read(each) for each in self._db.get_all(unknown, STATES)}
        for work in works:
            yield work, found.get(work.name, Page(work.number, EMPTY, None))

    def _write(self, changes: list[tuple[Work, Change]]) -> list[Work]:
        """What is left, because others changed its page first."""
        outcomes = self._db.write([change.write(work.name, work.known.ttl) for work, change in changes])
        left: list[Work] = []
        with self._lock:
            for (work, change), at in zip(changes, outcomes, strict=True):
                self._pages.pop(work.name, None)
                if at is None:
                    left.append(work)
                else:
                    self._pages[work.name] = Page(work.number, change.states, at)
            while len(self._pages) > REMEMBERED:
                self._pages.popitem(last=False)
        return left

    def _attempt(self, known: Known, index: int, number: int, line: Value) -> Write:
        name = attempt_id(index, number, digest_of(line))
        return put(f"{known.parent}/mtask-attempts/{name}", {"body": line, **known.ttl})

    def _retract(self, known: Known, wanted: dict[int, set[int]]) -> set[int]:
        """`wanted`: the indexes by page. What became of them."""
        taken, tried = set[int](), set[int]()
        waits = _waits(self._db)
        while True:
            recorded: set[int] = set()
            found: list[tuple[Page, dict[int, Failed]]] = []
            for there in self._db.get_all([page_name(known, number) for number in wanted], FAILURES):
                page = pages_.read(there)
                recorded.update(page.recorded())
                failed = pages_.failures(there)
                failed = {o: row for o, row in failed.items() if page.task(o) in wanted[page.number]}
                if failed:
                    found.append((page, failed))
            taken |= tried - recorded  # by us, with the answer lost, or by somebody who did the same
            self._db.write(
                [
                    self._attempt(known, page.task(offset), row.attempt, Value.wrap(row.line))
                    for page, failed in found
                    for offset, row in failed.items()
                ]
            )
            refused = self._take_out(known, found)
            tried = {page.task(o) for page, failed in found if page.number in refused for o in failed}
            taken |= {page.task(o) for page, failed in found for o in failed} - tried
            wanted = {number: indexes for number, indexes in wanted.items() if indexes & tried}
            if not wanted:
                return taken
            next(waits)

    def _take_out(self, known: Known, found: list[tuple[Page, dict[int, Failed]]]) -> set[int]:
        """The numbers of those that others changed first."""
        works, changes = [], []
        for page, failed in found:
            change = Change(page)
            for offset in failed:
                change.out(offset)
            works.append(Work(known, page.number, {}, {}))
            changes.append((works[-1], change))
        return {work.number for work in self._write(changes)}


def _waits(db: Database) -> Iterator[None]:
    """A pause each, longer and longer, until others have had `PATIENCE_S`."""
    began_s, pause_s = time.monotonic(), PAUSE_S
    while time.monotonic() - began_s < PATIENCE_S:
        time.sleep(random.uniform(0, pause_s))
        pause_s = min(pause_s * 1.5, 1.0)
        yield
    raise UnavailableError(
        f"{db.place.url}: others changed the same pages again and again, for {PATIENCE_S:g} s"
    )


# -- reading pages --------------------------------------------------------------------------------------


def pages_with(db: Database, known: Known, indexes: Collection[int]) -> Iterator[Page]:
    """The pages of these tasks, as far as there are any, in no order."""
    numbers = sorted({page_of(index) for index in indexes if 0 <= index <= MOST})
    return map(pages_.read, db.get_all([page_name(known, number) for number in numbers], STATES))


def counts(db: Database, known: Known, total: int) -> Counts:
    """By sums over the index, at one moment: a read for every 32,000 tasks."""
    done, failed, expired = db.sums(known.parent, "mtask-pages", ["done", "failed", "expired"])
    return Counts(total=total, done=done, failed=failed, expired=expired)

"""Results and attempts in an Azure table: writing.

Azure bills a request, however many operations are in it, and takes 2,000 entities a second in a partition and 20,000 in an
account. So rows that are recorded together lie together, up to 64 of a page in one compressed entity, and whoever writes
them changes the page (`mtask_azure.pages`) in the same transaction. A thousand quick tasks take two requests, one
to read their pages and one to write 16 pages and 16 entities with rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

from mtask.errors import UnavailableError
from mtask.model import Counts, Result, State
from mtask.paged import Gathered, Row, Rows, Tally, gathered, groups
from mtask.portion import Portion, line_of
from mtask.stored_bag import TRIES, pause
from mtask_azure import keys
from mtask_azure import pages as pages_
from mtask_azure.bags import Bags, Known
from mtask_azure.blobs import Blobs
from mtask_azure.keys import PAGE, checked, page_of, run_of, shard_of
from mtask_azure.pages import Page, bits
from mtask_azure.store import (
    MOST_BYTES,
    MOST_OPERATIONS,
    Entity,
    Operation,
    Store,
    Unit,
    delete,
    insert,
    put,
    replace,
    row_of,
    size_of,
)

__all__ = ["Writer", "counts", "pages_with"]

GROUP_BYTES = 256 * 1024
"""Rows whose JSON is longer than that together go into several entities; a longer one has its own."""
MANY_RUNS = 32
"""More runs than that are read by queries over all between them."""


class _Change:
    """What one transaction does to a page: as much as fits, and the page as it is then."""

    def __init__(self, partition: str, number: int, page: Page) -> None:
        self.partition, self.number, self.before = partition, number, page
        self.after = page._replace(by=keys.new_token())
        self._operations: list[Operation] = []
        self._bytes = 2000  # of the page itself

    def add(self, operations: Sequence[Operation]) -> bool:
        """False: there is no room for them."""
        size = sum(map(size_of, operations))
        too_many = len(self._operations) + len(operations) >= MOST_OPERATIONS
        if self._operations and (too_many or self._bytes + size > MOST_BYTES):
            return False
        self._operations += operations
        self._bytes += size
        return True

    def unit(self) -> Unit | None:
        """None: there is nothing to do."""
        if not self._operations:
            return None
        key = self.partition, keys.page_key(self.number)
        values = self.after.values()
        etag = self.before.etag
        guard = replace(key, values, etag) if etag else insert(key, values)
        return Unit([guard, *self._operations], self)


class Writer:
    """Writes rows and attempts."""

    def __init__(self, store: Store, blobs: Blobs, bags: Bags) -> None:
        self._store, self._blobs, self._bags = store, blobs, bags

    def record(self, results: Sequence[Result | Portion]) -> None:
        by_bag = gathered(results, PAGE, checked)
        bags = {name: self._bags.known(name) for name in by_bag}  # before anything is written
        work: dict[tuple[str, int], Gathered] = {}
        for name, pages in by_bag.items():
            for page, rows in pages.items():
                self._bags.widen(bags[name], run_of(page))
                work.setdefault((name, run_of(page)), {})[page] = rows
        self._store.parallel(
            lambda each: self._record_run(bags[each[0][0]], each[0][1], each[1]), list(work.items())
        )

    def keep_attempts(self, results: Sequence[Result]) -> None:
        """The same attempt has the same key: after a fault it is kept once, however often it is told."""
        work: dict[str, dict[str, Unit]] = {}
        for result in results:
            known = self._bags.known(result.bag)
            run = run_of(page_of(checked(result.index)))
            self._bags.widen(known, run)
            line = line_of(result)
            digest = hashlib.blake2b(line, digest_size=9).hexdigest()
            key = known.partition(shard_of(run)), keys.attempt_key(result.index, result.attempt, digest)
            entity = self._row(known, Row(result.state, result.attempt, line))
            work.setdefault(key[0], {})[key[1]] = Unit([put(key, entity)])
        self._store.parallel(
            lambda each: self._store.commit(each[0], list(each[1].values())), list(work.items())
        )

    def retract(self, known: Known, indexes: Collection[int]) -> set[int]:
        """The rows become attempts in the transaction in which the pages lose them."""
        wanted = set(indexes)
        runs: dict[int, set[int]] = {}
        for number, page in pages_with(self._store, known, wanted):
            ended = {number * PAGE + offset for offset in bits(page.failed | page.expired)}
            if ended & wanted:
                runs.setdefault(run_of(number), set()).update(ended & wanted)
        taken = self._store.parallel(lambda each: self._retract_run(known, *each), list(runs.items()))
        return set().union(*taken)

    # -- rows of a run --------------------------------------------------------------------------------

    def _record_run(self, known: Known, run: int, left: Gathered) -> None:
        partition = known.partition(shard_of(run))
        refused: dict[int, tuple[str, Rows]] = {}
        for attempt in range(TRIES):
            pages = run_pages(self._store, partition, sorted(left))
            for number, (token, rest) in refused.items():
                if number in pages and pages[number].by == token:  # it was done, and the answer was lost
                    left[number] = rest
            changes = [
                self._change(known, _Change(partition, number, pages.get(number, Page())), left[number])
                for number in sorted(left)
            ]
            units = [unit for change, _ in changes if (unit := change.unit())]
            numbers = {unit.about.number for unit in self._store.commit(partition, units)}
            refused = {c.number: (c.after.by, rest) for c, rest in changes if c.number in numbers}
            left = {c.number: left[c.number] if c.number in numbers else rest for c, rest in changes}
            left = {number: rows for number, rows in left.items() if rows}
            if not left:
                return
            if refused:
                pause(attempt)
        raise UnavailableError(
            f"the bag {known.name!r} was changed by others again and again while rows were recorded"
        )

    def _change(self, known: Known, change: _Change, rows: Rows) -> tuple[_Change, Rows]:
        """What is to be done to a page, and the rows that must wait for the next transaction."""
        base, page = change.number * PAGE, change.before
        waiting = {offset: row for offset, row in rows.items() if not page.done >> offset & 1}
        ended = {offset: row for offset, row in waiting.items() if row.state is not State.DONE}
        for group in groups(waiting, GROUP_BYTES):
            key = change.partition, keys.group_key(change.number, min(group))
            body = b"\n".join(group.values())
            before = set(bits(page.failed | page.expired)) & group.keys()
            outdated = [delete((change.partition, keys.row_key(base + offset))) for offset in sorted(before)]
            if not change.add([insert(key, self._blobs.pack(body, known.uid)), *outdated]):
                return change, waiting
            for offset in group:
                change.after = change.after.with_row(offset, State.DONE)
                del waiting[offset]
        for offset, row in ended.items():
            key = change.partition, keys.row_key(base + offset)
            if not change.add([put(key, self._row(known, row))]):
                return change, waiting
            change.after = change.after.with_row(offset, row.state)
            del waiting[offset]
        return change, waiting

    def _row(self, known: Known, row: Row) -> Entity:
        return self._blobs.pack(row.line, known.uid) | {"n": row.attempt}

    # -- retract ------------------------------------------------------------------------------------

    def _retract_run(self, known: Known, run: int, left: set[int]) -> set[int]:
        partition = known.partition(shard_of(run))
        taken: set[int] = set()
        tried: set[int] = set()
        for attempt in range(TRIES):
            numbers = sorted({page_of(index) for index in left})
            pages = run_pages(self._store, partition, numbers)
            there = {n * PAGE + offset for n, page in pages.items() for offset in bits(page.ended)}
            taken |= tried - there  # by us, with the answer lost, or by somebody who did the same
            rows = {row_of(e): e for e in run_entities(self._store, partition, "f", numbers)}
            changes = [
                self._take_out(_Change(partition, n, pages[n]), left, rows) for n in numbers if n in pages
            ]
            units = [unit for change, _, _ in changes if (unit := change.unit())]
            refused = {unit.about.number for unit in self._store.commit(partition, units)}
            left, tried = set(), set()
            for change, out, rest in changes:
                if change.number in refused:
                    tried |= out
                    left |= out | rest
                else:
                    taken |= out
                    left |= rest
            if not left:
                return taken
            if refused:
                pause(attempt)
        raise UnavailableError(
            f"the bag {known.name!r} was changed by others again and again while rows were taken out of it"
        )

    def _take_out(
        self, change: _Change, wanted: set[int], rows: dict[str, Entity]
    ) -> tuple[_Change, set[int], set[int]]:
        """The rows of a page that this transaction takes out, and those that must wait."""
        out: set[int] = set()
        rest: set[int] = set()
        for offset in bits(change.before.failed | change.before.expired):
            index = change.number * PAGE + offset
            if index not in wanted:
                continue
            row = rows.get(keys.row_key(index))
            if row is None:  # the page has changed since it was read: so says its ETag, too
                rest.add(index)
                continue
            copy = {name: value for name, value in row.items() if name not in ("PartitionKey", "RowKey")}
            key = change.partition, keys.attempt_key(index, int(row["n"]), keys.new_token())
            if rest or not change.add([insert(key, copy), delete((change.partition, keys.row_key(index)))]):
                rest.add(index)
                continue
            change.after = change.after.without_row(offset)
            out.add(index)
        return change, out, rest


# -- reading pages --------------------------------------------------------------------------------------


def run_entities(store: Store, partition: str, kind: str, numbers: Sequence[int]) -> Iterator[Entity]:
    """All of this kind of the pages from the first of these to the last, of one run."""
    if numbers:
        between = keys.range_of(kind, numbers[0], numbers[-1])
        for answer in store.query(partition, between, ahead=False):
            yield from answer


def run_pages(store: Store, partition: str, numbers: Sequence[int]) -> dict[int, Page]:
    """Those of these pages that there are, as the last writes left them."""
    wanted = set(numbers)
    found = run_entities(store, partition, "p", numbers)
    return {n: pages_.read(entity) for entity in found if (n := pages_.page_number(entity)) in wanted}


def pages_with(store: Store, known: Known, indexes: Collection[int]) -> list[tuple[int, Page]]:
    """The pages of these tasks, as far as there are any, in no order."""
    numbers = sorted({page_of(index) for index in indexes if 0 <= index <= keys.MOST})
    runs: dict[int, list[int]] = {}
    for number in numbers:
        runs.setdefault(run_of(number), []).append(number)
    if len(runs) <= MANY_RUNS:
        found = store.parallel(
            lambda run: run_pages(store, known.partition(shard_of(run)), runs[run]), list(runs)
        )
    else:
        found = store.parallel(
            lambda shard: run_pages(store, known.partition(shard), numbers), range(keys.SHARDS)
        )
    return [each for part in found for each in part.items()]


def counts(store: Store, known: Known, total: int) -> Counts:
    """By reading the pages that can have changed since this client counted last."""

    def count(shard: int) -> Tally:
        frontier, partition = known.frontiers[shard], known.partition(shard)
        select = ("RowKey", *pages_.PROPERTIES)
        with frontier.lock:
            ranges = [(run * keys.RUN, run * keys.RUN + keys.RUN - 1) for run in sorted(frontier.open)]
            between = [keys.range_of("p", *each) for each in ranges]
            between.append(keys.range_of("p", frontier.next * keys.RUN))
            return frontier.count(
                entity
                for each in between
                for answer in store.query(partition, each, select=select, ahead=False)
                for entity in answer
            )

    found = Tally()
    for part in store.parallel(count, known.shards):
        found = found.plus(part)
    return Counts(total=total, done=found.done, failed=found.failed, expired=found.expired)

"""Results and attempts in a DynamoDB table: reading, as streams.

A page says which items hold the rows that count; whatever else lies there (a row that came second, what a crash
left behind) is skipped. Pages are read before the items, so those that a page names are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import msgspec

from mtask.errors import BackendError
from mtask.model import Result, State
from mtask.portion import results_of
from mtask_aws import keys
from mtask_aws import pages as pages_
from mtask_aws.bags import Known
from mtask_aws.blobs import Blobs, is_far
from mtask_aws.dynamo import Dynamo, Item
from mtask_aws.keys import LAST_PAGE, PAGE, page_of
from mtask_aws.pages import Page
from mtask_aws.rows import pages_with

__all__ = ["Reader"]

FIRST_PAGES = 16
"""Read by the first request of a stream; the others bring 1 MB each."""
PAGES_AT_A_TIME = 25
"""Of tasks that are named one by one."""

Wants = Callable[[int, State], bool]
"""Is the row of the task with this index, of this state, wanted?"""


class Found(NamedTuple):
    """A page in which some rows are wanted."""

    number: int
    wanted: dict[keys.Key, list[int]]
    """The items that hold these, with the indexes of the tasks."""
    items: dict[str, Item]
    """Those of the items that have been read already, by sort key, and others."""


class Reader:
    """Reads rows and attempts."""

    def __init__(self, db: Dynamo, blobs: Blobs) -> None:
        self._db, self._blobs = db, blobs

    def results(
        self,
        known: Known,
        *,
        states: Collection[State] | None,
        after: int | None,
        indexes: Collection[int] | None,
    ) -> Iterator[Result]:
        """See `Table.results`."""
        chosen = set(State if states is None else states)
        low = 0 if after is None else max(after + 1, 0)
        among = None if indexes is None else set(indexes)

        def wants(index: int, state: State) -> bool:
            return state in chosen and index >= low and (among is None or index in among)

        if not chosen or low > keys.MOST:
            return
        for found in self._found(known, chosen, low, among, wants):
            yield from self._rows(known, found)

    def attempts(self, known: Known, *, after: int | None) -> Iterator[Result]:
        """See `Table.attempts`."""
        low = 0 if after is None else max(after + 1, 0)
        if low > keys.MOST:
            return
        between = keys.attempts_from(low)
        streams = (_flat(self._db.query(keys.partition(known.uid, s), between)) for s in known.shards)
        for item in heapq.merge(*streams, key=_sort_key):
            yield from self._decoded(known, _sort_key(item), self._blobs.unpack(item))

    # -- pages with their items -----------------------------------------------------------------------

    def _found(
        self, known: Known, chosen: set[State], low: int, among: set[int] | None, wants: Wants
    ) -> Iterator[Found]:
        """In order."""
        if among is not None:
            return self._named(known, sorted(index for index in among if index >= low), wants)
        if State.DONE in chosen:
            streams = [self._streamed(known, shard, page_of(low), wants) for shard in known.shards]
        else:
            streams = [self._ended(known, shard, page_of(low), wants) for shard in known.shards]
        return heapq.merge(*streams, key=lambda found: found.number)

    def _streamed(self, known: Known, shard: int, first: int, wants: Wants) -> Iterator[Found]:
        """All pages of a shard, with their items, which are read in the same order beside them."""
        partition = keys.partition(known.uid, shard)
        for items in self._db.query(partition, keys.range_of("p", first, LAST_PAGE), first=FIRST_PAGES):
            pages = [(page.number, _wanted(known, page, wants)) for page in map(pages_.read, items)]
            pages = [page for page in pages if page[1]]
            if not pages:
                continue
            span = pages[0][0], pages[-1][0]
            kinds = sorted({sort[0] for _, wanted in pages for _, sort in wanted})
            beside = [_Beside(self._db.query(partition, keys.range_of(kind, *span))) for kind in kinds]
            for number, wanted in pages:
                yield Found(number, wanted, {k: v for each in beside for k, v in each.take(number).items()})

    def _ended(self, known: Known, shard: int, first: int, wants: Wants) -> Iterator[Found]:
        """The pages of a shard in which something failed or expired: those rows are read first, then
        the pages that say which of them count."""
        partition = keys.partition(known.uid, shard)
        waiting: dict[int, dict[str, Item]] = {}
        for items in self._db.query(partition, keys.range_of("f", first, LAST_PAGE)):
            for item in items:
                waiting.setdefault(_page_of(item), {})[_sort_key(item)] = item
            last = max(waiting, default=0)
            rest = {last: waiting.pop(last)} if waiting else {}  # it may go on in the next response
            yield from self._with_pages(known, waiting, wants)
            waiting = rest
        yield from self._with_pages(known, waiting, wants)

    def _with_pages(self, known: Known, waiting: dict[int, dict[str, Item]], wants: Wants) -> Iterator[Found]:
        found = self._db.get_all(keys.page_key(known.uid, number) for number in waiting)
        for page in sorted(map(pages_.read, found)):
            yield Found(page.number, _wanted(known, page, wants), waiting[page.number])

    def _named(self, known: Known, indexes: list[int], wants: Wants) -> Iterator[Found]:
        """The pages of these tasks, some at a time, with their items."""
        numbers = list(dict.fromkeys(map(page_of, indexes)))
        for at in range(0, len(numbers), PAGES_AT_A_TIME):
            some = [number * PAGE for number in numbers[at : at + PAGES_AT_A_TIME]]
            pages = sorted(pages_with(self._db, known, some))
            wanted = [(page.number, _wanted(known, page, wants)) for page in pages]
            read = self._db.get_all(key for _, those in wanted for key in those)
            items = {_sort_key(item): item for item in read}
            yield from (Found(number, those, items) for number, those in wanted)

    # -- rows ---------------------------------------------------------------------------------------

    def _rows(self, known: Known, found: Found) -> Iterator[Result]:
        items = {sort: found.items[sort] for _, sort in found.wanted if sort in found.items}
        missing = [key for key in found.wanted if key[1] not in items]
        if missing:
            items |= {_sort_key(item): item for item in self._db.get_all(missing)}
        far = [item for item in items.values() if is_far(item)]
        fetched = dict(zip(map(_sort_key, far), self._db.parallel(self._blobs.unpack, far), strict=True))
        rows: dict[int, Result] = {}
        for (_, sort), indexes in found.wanted.items():
            if sort not in items:
                self._lost(known, indexes, sort)
                continue
            body = fetched[sort] if sort in fetched else self._blobs.unpack(items[sort])
            held = {result.index: result for result in self._decoded(known, sort, body)}
            rows |= {index: held[index] for index in indexes if index in held}
        for index in sorted(rows):
            yield rows[index]

    def _lost(self, known: Known, indexes: list[int], sort: str) -> None:
        """Of a bag that has expired, DynamoDB removes one item after the other."""
        if known.ttl is None or known.ttl > self._db.clock.now():
            raise BackendError(
                f"the rows of the tasks {indexes} of the bag {known.name!r} are gone: somebody removed the item {sort!r} "
                f"from {self._db.address.url}"
            )

    def _decoded(self, known: Known, sort: str, body: bytes) -> list[Result]:
        try:
            return results_of(known.name, body)
        except msgspec.DecodeError as error:
            raise BackendError(f"the rows in {sort!r} of {known.name!r} can't be read: {error}") from None


class _Beside:
    """Items of one kind, read on as their pages are asked for, in order."""

    def __init__(self, responses: Iterable[list[Item]]) -> None:
        self._items = _flat(responses)
        self._next: Item | None = next(self._items, None)

    def take(self, page: int) -> dict[str, Item]:
        """Those of this page, by sort key."""
        found: dict[str, Item] = {}
        while self._next is not None and (number := _page_of(self._next)) <= page:
            if number == page:
                found[_sort_key(self._next)] = self._next
            self._next = next(self._items, None)
        return found


def _wanted(known: Known, page: Page, wants: Wants) -> dict[keys.Key, list[int]]:
    """The items of a page that hold wanted rows, with the indexes of these."""
    found: dict[keys.Key, list[int]] = {}
    for offset, token in page.done.items():
        if wants(index := page.task(offset), State.DONE):
            found.setdefault(keys.group_key(known.uid, page.number, token), []).append(index)
    for offset, (state, token) in page.ended.items():
        if wants(index := page.task(offset), state):
            found[keys.failure_key(known.uid, index, token)] = [index]
    return found


def _flat(responses: Iterable[list[Item]]) -> Iterator[Item]:
    for items in responses:
        yield from items


def _sort_key(item: Item) -> str:
    text: str = item["sk"]["S"]
    return text


def _page_of(item: Item) -> int:
    """Of an item of rows."""
    sort = _sort_key(item)
    return page_of(int(sort[1:15], 16)) if sort[0] == "f" else int(sort[1:13], 16)

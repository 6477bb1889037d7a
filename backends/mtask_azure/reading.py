"""Results and attempts in an Azure table: reading, as streams.

Each row that is there counts (`mtask_azure.pages`), so pages needn't be read. A task's row moves only one way, from those
that failed to those that are done. So of any part of a bag the failed ones are read first: a task that moves
meanwhile is then seen twice, where the later one counts, and never missed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, groupby

import msgspec

from mtask.errors import BackendError
from mtask.model import Result, State
from mtask.portion import results_of
from mtask_azure import keys
from mtask_azure.bags import Known
from mtask_azure.blobs import Blobs, is_far
from mtask_azure.keys import PAGE, page_of, run_of, shard_of
from mtask_azure.rows import run_entities
from mtask_azure.store import Entity, Store, row_of

__all__ = ["Reader"]

RUNS_AT_A_TIME = 8
"""Of tasks that are named one by one."""

Wants = Callable[[Result], bool]
Found = tuple[int, list[Entity]]
"""A page, with the entities that hold rows of it, failed ones first."""


class Reader:
    """Reads rows and attempts."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs

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
        if not chosen or low > keys.MOST:
            return
        kinds = ("f" if chosen != {State.DONE} else "") + ("r" if State.DONE in chosen else "")
        among = None if indexes is None else {index for index in indexes if low <= index <= keys.MOST}
        if among is None:
            streams = [self._streamed(known, shard, kinds, page_of(low)) for shard in known.shards]
            found: Iterable[Found] = heapq.merge(*streams, key=lambda each: each[0])
        else:
            found = self._named(known, kinds, sorted(among))

        def wants(result: Result) -> bool:
            return result.state in chosen and result.index >= low and (among is None or result.index in among)

        for _, entities in found:
            yield from self._rows(known, entities, wants)

    def attempts(self, known: Known, *, after: int | None) -> Iterator[Result]:
        """See `Table.attempts`."""
        low = 0 if after is None else max(after + 1, 0)
        if low > keys.MOST:
            return
        between = keys.attempts_from(low)
        streams = (
            chain.from_iterable(self._store.query(known.partition(shard), between)) for shard in known.shards
        )
        for entity in heapq.merge(*streams, key=row_of):
            yield from self._decoded(known, entity, self._blobs.unpack(entity))

    # -- entities, page by page -------------------------------------------------------------------------

    def _streamed(self, known: Known, shard: int, kinds: str, first: int) -> Iterator[Found]:
        """All pages of a shard in which there is something, in order."""
        partition, page = known.partition(shard), first
        if "f" not in kinds:
            yield from _by_page(chain.from_iterable(self._store.query(partition, keys.range_of("r", page))))
            return
        waiting: list[Entity] = []
        for failed in self._store.query(partition, keys.range_of("f", page)):
            waiting += failed
            if not waiting:
                continue
            last = _page_of(waiting[-1])  # it may go on in the next answer
            whole = [entity for entity in waiting if _page_of(entity) < last]
            waiting = waiting[len(whole) :]
            yield from self._with_done(partition, kinds, whole, (page, last - 1))
            page = last
        yield from self._with_done(partition, kinds, waiting, (page, None))

    def _with_done(
        self, partition: str, kinds: str, failed: list[Entity], span: tuple[int, int | None]
    ) -> Iterator[Found]:
        """Those that failed, and the done ones of all pages of the span, which are read now."""
        done: Iterator[Entity] = iter(())
        if "r" in kinds and (span[1] is None or span[0] <= span[1]):
            done = chain.from_iterable(self._store.query(partition, keys.range_of("r", *span)))
        return _by_page(heapq.merge(failed, done, key=_page_of))  # stable: failed ones first

    def _named(self, known: Known, kinds: str, indexes: Sequence[int]) -> Iterator[Found]:
        """The pages between the first and the last of these tasks of each run, some runs at a time."""

        def read(numbers: list[int]) -> list[Entity]:
            partition, wanted = known.partition(shard_of(run_of(numbers[0]))), set(numbers)
            found = (run_entities(self._store, partition, kind, numbers) for kind in kinds)
            return [entity for entity in chain.from_iterable(found) if _page_of(entity) in wanted]

        pages = list(dict.fromkeys(map(page_of, indexes)))
        runs = [list(numbers) for _, numbers in groupby(pages, run_of)]
        for at in range(0, len(runs), RUNS_AT_A_TIME):
            for entities in self._store.parallel(read, runs[at : at + RUNS_AT_A_TIME]):
                yield from _by_page(sorted(entities, key=_page_of))

    # -- rows ---------------------------------------------------------------------------------------

    def _rows(self, known: Known, entities: list[Entity], wants: Wants) -> Iterator[Result]:
        """The wanted rows of a page."""
        far = any(map(is_far, entities))
        bodies = (
            self._store.parallel(self._blobs.unpack, entities)
            if far
            else list(map(self._blobs.unpack, entities))
        )
        rows: dict[int, Result] = {}
        for entity, body in zip(entities, bodies, strict=True):
            for result in self._decoded(known, entity, body):
                if result.index not in rows or rows[result.index].state is not State.DONE:
                    rows[result.index] = result
        for index in sorted(rows):
            if wants(rows[index]):
                yield rows[index]

    def _decoded(self, known: Known, entity: Entity, body: bytes) -> list[Result]:
        try:
            return results_of(known.name, body)
        except msgspec.DecodeError as error:
            raise BackendError(
                f"the rows in {row_of(entity)!r} of {known.name!r} can't be read: {error}"
            ) from None


def _by_page(entities: Iterable[Entity]) -> Iterator[Found]:
    for page, each in groupby(entities, _page_of):
        yield page, list(each)


def _page_of(entity: Entity) -> int:
    """Of an entity of rows."""
    row = row_of(entity)
    return int(row[1:15], 16) // PAGE if row[0] == "f" else int(row[1:13], 16)

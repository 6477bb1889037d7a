"""Results and attempts in a Firestore database: reading, as streams, a shard beside the other."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from mtask.errors import BackendError
from mtask.model import Result, State
from mtask.portion import results_of
from mtask_gcp import pages as pages_
from mtask_gcp.bags import Known
from mtask_gcp.blobs import Blobs, is_far
from mtask_gcp.database import Database, Snapshot
from mtask_gcp.documents import MOST, SHARDS, page_of
from mtask_gcp.rows import page_name

__all__ = ["Reader", "in_order"]

PAGES_AT_A_TIME = 50
"""Of tasks that are named one by one."""


def in_order(
    db: Database, parent: str, collection: str, *, first: int = 0, only: str = ""
) -> Iterator[Snapshot]:
    """All documents of a bag's collection from this number on, in order of their numbers."""
    streams = [
        db.stream(parent, collection, first=f"{shard}{first:014x}", end=f"{shard + 1}", only=only)
        for shard in range(SHARDS)
    ]
    return heapq.merge(*streams, key=lambda there: there.id[1:])


class Reader:
    """Reads rows and attempts."""

    def __init__(self, db: Database, blobs: Blobs) -> None:
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
        among = None if indexes is None else {index for index in indexes if low <= index <= MOST}
        if not chosen or low > MOST or among == set():
            return
        found: Iterable[Snapshot]
        if among is not None:
            found = self._named(known, among)
        else:
            only = "" if State.DONE in chosen else "bad"
            found = in_order(self._db, known.parent, "mtask-pages", first=page_of(low), only=only)
        for there in found:
            page = pages_.read(there)
            wanted = {
                index
                for offset, letter in enumerate(page.states)
                if pages_.state_of(letter) in chosen
                and (index := page.task(offset)) >= low
                and (among is None or index in among)
            }
            if wanted:
                yield from self._rows(known, there, page, wanted)

    def attempts(self, known: Known, *, after: int | None) -> Iterator[Result]:
        """See `Table.attempts`."""
        low = 0 if after is None else max(after + 1, 0)
        if low <= MOST:
            for there in in_order(self._db, known.parent, "mtask-attempts", first=low):
                content = self._blobs.unpack(there.fields["body"], known.parent)
                yield from self._decoded(known, there.id, content)

    # -- inside -------------------------------------------------------------------------------------

    def _named(self, known: Known, indexes: set[int]) -> Iterator[Snapshot]:
        numbers = sorted({page_of(index) for index in indexes})
        for at in range(0, len(numbers), PAGES_AT_A_TIME):
            names = [page_name(known, number) for number in numbers[at : at + PAGES_AT_A_TIME]]
            yield from sorted(self._db.get_all(names), key=lambda there: there.id[1:])

    def _rows(self, known: Known, there: Snapshot, page: pages_.Page, wanted: set[int]) -> Iterator[Result]:
        lines = [
            (offset, value)
            for offset, value in pages_.lines(there)
            # A field that begins with a done row may have others, too.
            if page.states[offset] == pages_.DONE or page.task(offset) in wanted
        ]
        far = [value for _, value in lines if is_far(value)]
        fetched = iter(self._db.parallel(lambda value: self._unpacked(known, value), far))
        rows: dict[int, Result] = {}
        for _, value in lines:
            content = next(fetched) if is_far(value) else self._unpacked(known, value)
            for row in self._decoded(known, there.id, content):
                rows[row.index] = row
        try:
            yield from [rows[index] for index in sorted(wanted)]
        except KeyError as error:
            raise BackendError(f"{there.name} has no row of the task {error}, which it counts") from None

    def _unpacked(self, known: Known, value: Any) -> bytes:
        return self._blobs.unpack(value, known.parent)

    def _decoded(self, known: Known, name: str, content: bytes) -> list[Result]:
        try:
            return results_of(known.name, content)
        except msgspec.DecodeError as error:
            raise BackendError(f"the rows in {name!r} of {known.name!r} can't be read: {error}") from None

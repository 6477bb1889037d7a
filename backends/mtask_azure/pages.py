"""A page: which of 64 tasks have ended, and how. The one place that decides what counts.

    done, failed, expired   a bit for each task, in hexadecimal; no task has two
    by                      by chance, of the last change: whoever got no answer sees whether it was his

A page is changed by its ETag alone: whoever writes rows reads it, and writes rows and page in one transaction that
is refused if the page is no longer the one that was read. So a row is there if and only if its page says so, nobody's
`done` row is ever replaced, and there is nothing that a crash could leave between them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mtask.model import State
from mtask.paged import Tally
from mtask_azure.keys import RUN_TASKS, SHARDS, run_of
from mtask_azure.store import Entity, row_of

__all__ = ["PROPERTIES", "Frontier", "Page", "bits", "page_number", "read"]

PROPERTIES = ("done", "failed", "expired")

MOST_OPEN = 4
"""Runs that aren't complete and that a count reads one by one, of each shard."""
SEEN_FOR_ONE = 16
"""Runs that must be read with it for one of them to be worth that."""


class Page(NamedTuple):
    """What a page says, a bit for each of its tasks."""

    done: int = 0
    failed: int = 0
    expired: int = 0
    by: str = ""
    """The token of the change that was made last."""
    etag: str = ""
    """Empty: there is no such page yet."""

    @property
    def ended(self) -> int:
        return self.done | self.failed | self.expired

    def with_row(self, offset: int, state: State) -> Page:
        """After this task ended so."""
        bit = 1 << offset
        page = self.without_row(offset)
        if state is State.DONE:
            return page._replace(done=page.done | bit)
        if state is State.FAILED:
            return page._replace(failed=page.failed | bit)
        return page._replace(expired=page.expired | bit)

    def without_row(self, offset: int) -> Page:
        """Of a task that failed or expired."""
        bit = 1 << offset
        return self._replace(failed=self.failed & ~bit, expired=self.expired & ~bit)

    def values(self) -> Entity:
        """As an entity's properties."""
        masks = {name: f"{getattr(self, name):x}" for name in PROPERTIES if getattr(self, name)}
        return {**masks, "by": self.by}


def read(entity: Entity) -> Page:
    done, failed, expired = (int(entity.get(name, "0"), 16) for name in PROPERTIES)
    return Page(done, failed, expired, entity.get("by", ""), entity.metadata["etag"])  # type: ignore[attr-defined]


def page_number(entity: Entity) -> int:
    return int(row_of(entity)[1:], 16)


def bits(mask: int) -> Iterator[int]:
    """The offsets of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


# -- counting -------------------------------------------------------------------------------------------


def tally(entity: Entity) -> Tally:
    return Tally(*(int(entity.get(name, "0"), 16).bit_count() for name in PROPERTIES))


class Frontier:
    """What a reader of counts remembers of one shard, so that it needn't read it all each time.

    A run all of whose tasks are done never changes again. Of the runs before `next`, all are complete but
    those in `open`, which are read one by one.
    """

    def __init__(self, shard: int) -> None:
        self.shard = self.next = shard
        self.complete = 0
        self.open: set[int] = set()
        self.lock = threading.Lock()

    def count(self, entities: Iterable[Entity]) -> Tally:
        """Take in the pages that were read now: those of the open runs, and all from `next` on."""
        runs: dict[int, Tally] = {}
        for entity in entities:
            run = run_of(page_number(entity))
            runs[run] = runs.get(run, Tally()).plus(tally(entity))
        total = Tally(done=self.complete * RUN_TASKS)
        for part in runs.values():
            total = total.plus(part)
        self._advance(runs)
        return total

    def _advance(self, runs: dict[int, Tally]) -> None:
        whole = {run for run, part in runs.items() if part.done == RUN_TASKS}
        self.complete += len(self.open & whole)
        self.open -= whole
        most_open = min(MOST_OPEN, len(runs) // SEEN_FOR_ONE)
        last = max(runs, default=-1)
        while self.next <= last:
            if self.next in whole:
                self.complete += 1
            elif len(self.open) < most_open:
                self.open.add(self.next)
            else:
                break
            self.next += SHARDS

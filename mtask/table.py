"""The interface of a table: the other of the two things that a backend supplies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from mtask.errors import SchemaError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane

__all__ = ["Skipped", "Table", "leave_out"]

Skipped = Callable[[SchemaError], object]
"""What is told of each bag that a list of bags is without."""


def leave_out(error: SchemaError) -> None:
    """For `Table.bags`, where nothing is to be said of bags that can't be read."""


@runtime_checkable
class Table(Protocol):
    """Holds the truth: bags, their blocks, one row a task, and the workers' heartbeats.

    All methods block, may be called from any thread, and raise UnavailableError when the vendor is
    out of reach and BackendError when it refuses. What a method wrote is durable when it returns.
    """

    # -- bags ---------------------------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        """Store a new bag; raises BagExistsError when the name is taken."""
        ...

    def bag(self, name: str) -> Bag:
        """Raises BagNotFoundError."""
        ...

    def bags(self, *, skipped: Skipped | None = None) -> list[Bag]:
        """All, oldest first.

        Raises SchemaError for one that this version can't read; where `skipped` is given, that is called with the
        error, and the others are listed.
        """
        ...

    def update_bag(
        self,
        name: str,
        *,
        state: BagState | None = None,
        total: int | None = None,
        sent: int | None = None,
        digest: str | None = None,
        generation: int | None = None,
    ) -> None:
        """Set what is given; `total`, `sent` and `generation` never go down, and a cancelled bag
        can't be sealed (a submit may end after the cancel). Raises BagNotFoundError."""
        ...

    # -- blocks -------------------------------------------------------------------------------------

    def put_blocks(self, blocks: Sequence[Block]) -> None:
        """Store blocks of one bag; one that is there already (same bag and number) is left as it is."""
        ...

    def block(self, bag: str, number: int) -> Block:
        """Raises KeyError."""
        ...

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        """In order, from block number `first` on; streams."""
        ...

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        """Store rows, one a task: a failure never replaces a `done` row, a `done` row is never
        replaced at all, and anything else is replaced by what comes later.

        A portion stands for the rows of all its tasks; see `mtask.portion.expanded`."""
        ...

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        """Which of these tasks have a row."""
        ...

    def results(
        self,
        bag: str,
        *,
        states: Collection[State] | None = None,
        after: int | None = None,
        indexes: Collection[int] | None = None,
    ) -> Iterator[Result]:
        """The rows in order of index, from behind index `after`; streams, in pages inside.

        As for the other readers, a bag that isn't there has none.
        """
        ...

    def counts(self, bag: str) -> Counts:
        """Cheap, however large the bag. Raises BagNotFoundError."""
        ...

    def retract(self, bag: str, indexes: Collection[int]) -> set[int]:
        """Take the rows of these tasks out, `done` ones excepted, and keep them as attempts.

        Returns the indexes that had such a row.
        """
        ...

    def keep_attempts(self, results: Sequence[Result]) -> None:
        """Keep failed attempts that are tried again, beside the rows; they count nowhere. After a fault
        the same may come twice: it is kept once, where that costs nothing, else twice."""
        ...

    def attempts(self, bag: str, *, after: int | None = None) -> Iterator[Result]:
        """The attempts kept, in order of index and attempt; streams."""
        ...

    # -- lanes, and what workers agree on -----------------------------------------------------------

    def put_lanes(self, lanes: Sequence[Lane]) -> None:
        """Enter them in the list of lanes that workers read; one that is there already is as if new."""
        ...

    def lanes(self) -> list[tuple[Lane, float]]:
        """The list, in no order; with each lane, how many seconds ago it was entered last."""
        ...

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        """Take it from the list, if it was entered last so long ago. False: it wasn't, or isn't there."""
        ...

    def shared(self, key: str) -> tuple[bytes, int]:
        """A small document that workers change together, and its version; (b"", 0) when there is none."""
        ...

    def swap(self, key: str, value: bytes, version: int) -> bool:
        """Replace the document, if it still has this version (0: if there is none), by a new version of
        at most 64 KiB. False: somebody else was quicker."""
        ...

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        """Store a worker's heartbeat in place of its last, stamped with the table's clock if it has one."""
        ...

    def workers(self) -> list[WorkerStatus]:
        """The last heartbeat of each worker of the last day, oldest worker first."""
        ...

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        """Keep messages that nobody can read."""
        ...

    def dead(self) -> Iterator[DeadMessage]:
        """Those set aside, oldest first."""
        ...

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:
        """Within it, what this thread does to this table, to `queue` and to its lanes happens together or not at
        all where one database holds both. Elsewhere each call takes effect by itself, in order, and this is a
        `contextlib.nullcontext`, by which a worker knows."""
        ...

    def close(self) -> None: ...

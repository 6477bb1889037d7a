"""The table of a worker that can't reach one: results go into the file that HTCondor brings back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from mtask.errors import BagNotFoundError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Message, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane
from mtask.table import Skipped
from mtask_condor.outcome import Writer

__all__ = ["NodeTable"]


class NodeTable:
    """Knows one bag, and of its tasks only those of one message."""

    def __init__(self, bag: Bag, message: Message, writer: Writer, ended: Collection[int]) -> None:
        """`ended`: tasks whose rows were written by starts of the job before this one."""
        total = max(bag.total, message.first + message.count)  # it may have grown since it was stored
        self._bag = msgspec.structs.replace(bag, total=total, state=BagState.OPEN)
        self._writer, self._ended = writer, set(ended)

    def bag(self, name: str) -> Bag:
        if name != self._bag.name:
            raise BagNotFoundError(f"there is no bag {name!r} on this node")
        return self._bag

    def bags(self, *, skipped: Skipped | None = None) -> list[Bag]:  # noqa: ARG002
        return [self._bag]

    def record(self, results: Sequence[Result | Portion]) -> None:
        self._writer.rows(results)
        for each in results:
            if isinstance(each, Portion):
                self._ended.update(range(each.first, each.first + each.count))
            else:
                self._ended.add(each.index)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:  # noqa: ARG002
        return self._ended & set(indexes)

    def keep_attempts(self, results: Sequence[Result]) -> None:
        self._writer.attempts(results)

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        self._writer.dead(messages)

    def block(self, bag: str, number: int) -> Block:
        """There is none here; whoever collects the results sends what comes after a task."""
        raise KeyError((bag, number))

    def counts(self, bag: str) -> Counts:
        return Counts(total=self.bag(bag).total)

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def lanes(self) -> list[tuple[Lane, float]]:
        return []

    def workers(self) -> list[WorkerStatus]:
        return []

    def shared(self, key: str) -> tuple[bytes, int]:  # noqa: ARG002
        return b"", 0

    def swap(self, key: str, value: bytes, version: int) -> bool:  # noqa: ARG002
        return True

    def put_lanes(self, lanes: Sequence[Lane]) -> None:
        pass

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:  # noqa: ARG002
        return False

    def beat(self, status: WorkerStatus) -> None:
        pass

    def close(self) -> None:
        pass

    # -- of no use to a worker ----------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        raise NotImplementedError

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
        raise NotImplementedError

    def put_blocks(self, blocks: Sequence[Block]) -> None:
        raise NotImplementedError

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        raise NotImplementedError

    def results(
        self,
        bag: str,
        *,
        states: Collection[State] | None = None,
        after: int | None = None,
        indexes: Collection[int] | None = None,
    ) -> Iterator[Result]:
        raise NotImplementedError

    def retract(self, bag: str, indexes: Collection[int]) -> set[int]:
        raise NotImplementedError

    def attempts(self, bag: str, *, after: int | None = None) -> Iterator[Result]:
        raise NotImplementedError

    def dead(self) -> Iterator[DeadMessage]:
        raise NotImplementedError

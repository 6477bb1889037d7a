"""Who adds to an open bag so slowly that others take him for dead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mtask
from mtask import append
from mtask.bag import BagHandle
from mtask.errors import UsageError
from mtask.manager import connect
from tests.unit.worker_kit import Wrapper


def submit(manager: mtask.Manager, number: int) -> BagHandle:
    return manager.submit([{"x": number}], run="echo {x}", bag="feed", open=True)


class Slow:
    """Two that submit, over a queue and a table without a transaction for both; something happens while the first one
    stores its block."""

    def __init__(self, slow: mtask.Manager, other: mtask.Manager) -> None:
        self.manager, self.other = slow, other
        self.table = Wrapper(slow.table)
        self.table.faults["transaction"] = lambda _method, _queue: contextlib.nullcontext()
        slow.table = self.table
        self.bag = submit(other, 0)

    def meanwhile(self, *, before: Callable[[], Any] = int, after: Callable[[], Any] = int) -> None:
        """Of the next block."""

        def put_blocks(method: Callable[..., Any], blocks: Any) -> None:
            del self.table.faults["put_blocks"]
            before()
            method(blocks)
            after()

        self.table.faults["put_blocks"] = put_blocks

    def rows(self) -> list[Any]:
        return [append._VALUES.decode(block.rows) for block in self.other.table.blocks("feed")]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    monkeypatch.setattr(append, "PATIENCE_S", 0.0)
    place = f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db"
    with connect(*place) as first, connect(*place) as other:
        yield Slow(first, other)


def test_a_block_that_another_took_meanwhile_is_added_behind_it(slow: Slow) -> None:
    slow.meanwhile(before=lambda: submit(slow.other, 2))
    submit(slow.manager, 1)
    assert slow.rows() == [[[0]], [[2]], [[1]]]
    assert slow.bag.counts().total == 3
    assert sum(slow.other.queue.depth()) == 3


def test_a_block_that_another_settled_meanwhile_is_not_sent_again(slow: Slow) -> None:
    slow.meanwhile(after=lambda: submit(slow.other, 2))
    submit(slow.manager, 1)
    assert slow.rows() == [[[0]], [[1]], [[2]]]
    assert slow.bag.counts().total == 3
    assert sum(slow.other.queue.depth()) == 3


def test_who_stores_a_block_after_the_bag_was_sealed_comes_too_late(slow: Slow) -> None:
    slow.meanwhile(before=slow.bag.seal)
    with pytest.raises(UsageError, match="the bag 'feed' is sealed: nothing can be added to it"):
        submit(slow.manager, 1)
    assert slow.bag.counts().total == 1
    assert [task.index for task in slow.bag.tasks()] == [0]
    assert sum(slow.other.queue.depth()) == 1


def test_a_block_that_is_stored_when_the_bag_is_sealed_is_in_it(slow: Slow) -> None:
    slow.meanwhile(after=slow.bag.seal)
    submit(slow.manager, 1)
    assert slow.rows() == [[[0]], [[1]]]
    assert slow.bag.counts().total == 2
    assert sum(slow.other.queue.depth()) == 2

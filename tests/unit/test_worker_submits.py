"""What a worker does about its tasks' submits, and about what comes after a bag."""

from __future__ import annotations

import queue as stdlib_queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.manager import connect
from mtask.testing.samples import a_done
from mtask.worker.notes import Notes
from mtask.worker.submits import Answer, Page, Submits
from tests.unit.worker_kit import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


@contextmanager
def submits(place: Place, table: Any = None) -> Iterator[Submits]:
    made = Submits(place.queue, table or place.table, Notes(place.said.append), allowed=True)
    failures: list[BaseException] = []
    made.on_failure = failures.append
    try:
        yield made
    finally:
        made.stop()
        made.join(20)
    assert not failures


def asked(submits: Submits, request: bytes) -> Answer:
    answers: stdlib_queue.SimpleQueue[bytes] = stdlib_queue.SimpleQueue()
    submits.put(request, answers.put)
    return msgspec.json.decode(answers.get(timeout=20), type=Answer)


_SUBMISSION = (
    b'{"type":"submission","submit":"s","bag":"kids","spec":{"kind":"shell","target":["x"],"retries":%s},'
    b'"columns":["x"],"source":"","digest":"d","kinds":[[0,{}]],"blocks":[[%d,1,[[1]]]]}'
)


@pytest.mark.parametrize(
    "request_",
    [b"", b"{", b'{"type":"other"}', _SUBMISSION % (b"null", 0), _SUBMISSION % (b"1", 7)],
    ids=["empty", "half", "other", "null", "no such lane"],
)
def test_whatever_a_task_asks_for_it_gets_an_answer(place: Place, request_: bytes) -> None:
    bag = place.submit("double", [{"x": 1}])
    place.table.record([a_done(0, bag="bag")])
    with submits(place) as made:
        refused = asked(made, request_)
        assert refused.error == "MtaskError"
        assert "the worker can't do this" in refused.text
        assert [result.index for result in asked(made, msgspec.json.encode(Page(bag.name, -1))).results] == [
            0
        ]

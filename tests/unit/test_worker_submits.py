"""What a worker does about its tasks' submits, and about what comes after a bag."""

from __future__ import annotations

import queue as stdlib_queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.manager import connect
from mtask.testing.samples import a_done
from mtask.worker import submits as module
from mtask.worker.notes import Notes
from mtask.worker.submits import Answer, Page, Submits
from tests.unit.worker_kit import Place, Wrapper, wait_until


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


def test_many_that_ended_at_once_are_one_look_and_no_task_waits_for_it(place: Place) -> None:
    bag = place.submit("double", [{"x": x} for x in range(2)], then="math:sqrt")
    table, looks, go_on = Wrapper(place.table), threading.Semaphore(0), threading.Semaphore(1)

    def counts(method: Callable[..., Any], name: str) -> Any:
        looks.release()
        assert go_on.acquire(timeout=20)
        return method(name)

    table.faults["counts"] = counts
    with submits(place, table) as made:
        made.look_whether_done(bag.info)
        for _ in range(500):
            made.look_whether_done(bag.info)
        assert asked(made, msgspec.json.encode(Page("bag", -1))) == Answer()
        assert looks.acquire(timeout=20)
        place.table.record([a_done(index, bag="bag") for index in range(2)])
        for _ in range(500):
            made.look_whether_done(bag.info)
        for _ in range(9):
            go_on.release()
    assert len(table.called("counts")) <= 3
    assert place.manager.bag("bag.then").info.state == "sealed"


def test_what_is_done_is_looked_at_again_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    bag = place.submit("double", [{"x": 1}], then="math:sqrt")
    table = Wrapper(place.table)
    with submits(place, table) as made:
        made.look_whether_done(bag.info)
        wait_until(lambda: table.called("counts"))
        place.table.record([a_done(0, bag="bag")])
        made.look_whether_done(bag.info)
        wait_until(lambda: "bag.then" in [each.name for each in place.table.bags()])


def test_no_table_is_asked_more_often_than_it_wants(place: Place) -> None:
    table = Wrapper(place.table)
    table.poll_s = 7.0  # type: ignore[attr-defined]
    with submits(place, table) as made:
        assert made._look_s == 7.0

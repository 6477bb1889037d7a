"""Deliveries that are handed to a process: worked off by the ordinary worker, and told what became of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import BackendError
from mtask.manager import connect
from mtask.model import Delivery, Message, State
from mtask.oneshot import OneShotQueue
from mtask.queue import Queue
from tests.unit.worker_kit import Place, Wrapper, wait_until, watchdog


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


def taken(place: Place, count: int) -> list[Delivery]:
    """From the queue itself, as whoever hands them over does."""
    found: list[Delivery] = []
    while len(found) < count:
        found += place.queue.main.receive(max_messages=count - len(found), lease_s=60, wait_s=5)
    return found


def work_off(place: Place, queue: OneShotQueue, table: object = None, **options: object) -> None:
    made = place.worker(queue=queue, table=table, **({"lanes": False} | options))
    with watchdog():
        made.run(until=queue.settled)
    queue.give_back_rest()


def counting_releases(place: Place) -> Wrapper:
    """The queue as one whose every receipt counts, as SQS."""
    queue = Wrapper(place.queue.main)
    queue.limits = msgspec.structs.replace(place.queue.limits, counts_releases=True)
    return queue


def test_it_is_a_queue():
    assert isinstance(OneShotQueue([]), Queue)
    assert isinstance(OneShotQueue([]).lane("x"), Queue)


def test_a_worker_runs_what_it_was_handed_and_nothing_else(place):
    bag = place.submit("double", [{"x": x} for x in range(3)], per_message=1)
    queue = OneShotQueue(taken(place, 2), place.queue.main)
    work_off(place, queue)
    assert (queue.undone(), queue.settled()) == ([], True)
    assert sorted(result.value for result in bag.results()) == [0, 2]
    assert place.queue.main.depth().ready == 1


def test_in_a_thread_that_is_not_the_main_one(place):
    bag = place.submit("double", [{"x": x} for x in range(3)])
    queue = OneShotQueue(taken(place, 3), place.queue.main)
    thread = threading.Thread(target=work_off, args=(place, queue))
    thread.start()
    thread.join(30)
    assert [result.value for result in bag.results()] == [0, 2, 4]
    assert queue.undone() == []


def test_a_failed_attempt_goes_to_the_queue_behind(place):
    bag = place.submit("raise_it", [{"x": "value"}], retries=1, backoff_s=0.0)
    queue = OneShotQueue(taken(place, 1), place.queue.main)
    work_off(place, queue)
    assert (queue.undone(), list(bag.results())) == ([], [])
    again = OneShotQueue(taken(place, 1), place.queue.main)
    work_off(place, again)
    assert [(result.state, result.attempt) for result in bag.results()] == [(State.FAILED, 2)]


def test_without_a_queue_behind_a_failed_attempt_is_the_last(place):
    bag = place.submit("raise_it", [{"x": "value"}], retries=3)
    queue = OneShotQueue(taken(place, 1))
    work_off(place, queue)
    assert queue.undone() == []
    assert [(result.state, result.attempt) for result in bag.results()] == [(State.FAILED, 1)]


def test_what_there_is_no_time_for_goes_back(place, tmp_path):
    gate = tmp_path / "gate"
    bag = place.submit("wait_for", [{"x": x, "path": str(gate)} for x in range(3)], per_message=1)
    queue = OneShotQueue(taken(place, 3), place.queue.main)
    work_off(place, queue, max_runtime_s=0.5, grace_s=0.0)
    assert queue.undone() == [0, 1, 2]
    assert queue.settled()
    gate.touch()
    # They are here again at once, not when their leases run out.
    assert [each.deliveries for each in taken(place, 3)] == [1, 1, 1]
    assert list(bag.results()) == []


def test_an_interruption_counts_as_no_delivery(place, tmp_path):
    gate = tmp_path / "gate"
    place.submit("wait_for", [{"x": x, "path": str(gate)} for x in range(3)], per_message=1)
    queue = OneShotQueue(taken(place, 3), counting_releases(place))
    work_off(place, queue, max_runtime_s=0.5, grace_s=0.0)
    assert queue.undone() == []  # copies were sent in their place
    again = taken(place, 3)
    assert sorted(Message.decode(each.body).first for each in again) == [0, 1, 2]
    assert [(each.deliveries, Message.decode(each.body).deaths) for each in again] == [(1, 0)] * 3


def test_a_copy_forgets_no_death(place):
    place.submit("double", [{"x": 1}])
    [delivery] = taken(place, 1)
    dead_twice = msgspec.structs.replace(delivery, deliveries=3)
    queue = OneShotQueue([dead_twice], counting_releases(place))
    queue.give_back_rest()
    assert [Message.decode(each.body).deaths for each in taken(place, 1)] == [2]
    assert queue.undone() == []


def test_what_is_no_message_is_released_as_it_is():
    released: list[Delivery] = []
    behind = Wrapper(OneShotQueue([]))
    behind.limits = msgspec.structs.replace(behind.limits, counts_releases=True, workers_send=True)
    behind.faults["release"] = lambda _true, deliveries, **_: released.extend(deliveries)
    foreign = Delivery(body=b"hello", token="receipt")
    queue = OneShotQueue([foreign], behind)
    queue.give_back_rest()
    assert (released, queue.undone()) == ([foreign], [0])


def test_a_task_longer_than_the_process_fails_instead_of_going_round_for_ever(place, tmp_path):
    bag = place.submit("wait_for", [{"x": 0, "path": str(tmp_path / "never")}])
    queue = OneShotQueue(taken(place, 1), place.queue.main)
    work_off(place, queue, timeout_s=0.5, max_runtime_s=0.6, grace_s=10.0)
    [result] = bag.results()
    assert (result.state, result.error.reason) == (State.FAILED, "timeout")
    assert queue.undone() == []


def test_the_shorter_timeout_counts(place, tmp_path):
    bag = place.submit("wait_for", [{"x": 0, "path": str(tmp_path / "never")}], timeout_s=0.2)
    began_s = time.monotonic()
    work_off(place, OneShotQueue(taken(place, 1), place.queue.main), timeout_s=50.0)
    [result] = bag.results()
    assert (result.state, result.error.message) == (State.FAILED, "ran longer than 0.2 s")
    assert time.monotonic() - began_s < 40


def test_it_asks_for_no_lanes_and_sends_to_none_in_front(place, tmp_path):
    gate = tmp_path / "gate"
    place.submit("wait_for", [{"x": x, "path": str(gate)} for x in range(4)], per_message=2)
    table = Wrapper(place.table)
    queue = OneShotQueue(taken(place, 2), counting_releases(place))
    work_off(place, queue, table, max_runtime_s=0.5, grace_s=0.0)
    assert "put_lanes" not in [name for name, _ in table.calls]
    again = taken(place, place.queue.main.depth().ready)
    assert {Message.decode(each.body).lane for each in again} == {""}
    assert sum(Message.decode(each.body).count for each in again) == 4


def test_leases_last_as_long_as_the_process(place):
    place.submit("double", [{"x": 1}])
    queue = OneShotQueue(taken(place, 1), place.queue.main)
    [held] = queue.receive(max_messages=9, lease_s=1, wait_s=0)
    assert queue.extend([held], lease_s=1) == ([(held, held)], [])
    queue.delete([held])
    assert queue.extend([held], lease_s=1) == ([], [held])


def test_nothing_can_be_sent_without_a_queue_behind(place):
    place.submit("double", [{"x": 1}])
    [delivery] = taken(place, 1)
    message = Message.decode(delivery.body)
    for queue in (OneShotQueue([delivery]), OneShotQueue([delivery]).lane("x")):
        with pytest.raises(BackendError, match="was handed its messages"):
            queue.send([message])
        assert not queue.limits.workers_send


@pytest.mark.parametrize("lane", ["", "x"])
def test_a_receive_that_waits_can_be_woken(lane):
    queue: Queue = OneShotQueue([])
    queue = queue.lane(lane) if lane else queue
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(queue.receive(max_messages=1, lease_s=1, wait_s=60)))
    thread.start()
    wait_until(lambda: queue.wake() or not thread.is_alive())
    assert got == [[]]


@given(st.integers(0, 12), st.lists(st.tuples(st.sampled_from("rdgx"), st.integers(0, 12)), max_size=30))
def test_each_delivery_is_handed_out_once_and_ends_once(count, steps):
    queue = OneShotQueue([Delivery(body=b"%d" % n, token=object()) for n in range(count)])
    held: list[Delivery] = []
    seen: list[bytes] = []
    deleted: set[bytes] = set()
    ended: set[bytes] = set()
    for step, number in steps:
        if step == "r":
            got = queue.receive(max_messages=number or 1, lease_s=1, wait_s=0)
            held += got
            seen += [each.body for each in got]
        elif step == "x":
            waiting = {b"%d" % n for n in range(count)} - set(seen)
            queue.give_back_rest()
            seen += waiting
            ended |= waiting
        elif number < len(held):
            each = held[number]
            deleted |= {each.body} - ended if step == "d" else set()
            queue.delete([each]) if step == "d" else queue.release([each])
            ended.add(each.body)
    assert len(seen) == len(set(seen))
    assert {b"%d" % n for n in queue.undone()} == {b"%d" % n for n in range(count)} - deleted
    assert queue.settled() == (len(ended) == count)

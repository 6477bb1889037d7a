"""The receiver: what it hands on, what it looks up first, what it sets aside."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.manager import connect
from mtask.model import NO_ROWS, BagState, Delivery, Failure, Message, Reason, Result, State
from mtask.requirements import DEFAULT_LANE, Capabilities, Lane, Requirements, front_of
from mtask.worker import inspection
from mtask.worker.bags import Bags
from mtask.worker.held import Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.receiver import Receiver, Wish
from mtask.worker.recorder import Recorder
from mtask.worker.room import Space
from mtask.worker.served import FRONT_S, ServedLanes
from tests.unit.worker_kit import Place, Wrapper, failing, unavailable, wait_until


def wish(messages: int) -> Wish:
    return Wish(Space(slots=messages, cpus=messages, memory_bytes=0, gpus=0))


class Bench:
    """A receiver with what it works with, on a real queue and table behind wrappers."""

    def __init__(self, place: Place, *, lease_s: float | None = None) -> None:
        self.place = place
        self.queue, self.table = Wrapper(place.queue), Wrapper(place.table)
        self.said: list[str] = []
        self.jobs: list[Job] = []
        self.rounds = 0
        notes = Notes(self.said.append)
        self.keeper = LeaseKeeper(self.queue, lambda held: None, notes)  # type: ignore[arg-type]
        self.recorder = Recorder(self.queue, self.table, self.keeper, notes, lambda _: None)  # type: ignore[arg-type]
        self.bags = Bags(self.table)  # type: ignore[arg-type]
        self.receiver = Receiver(
            self.queue,  # type: ignore[arg-type]
            self.table,  # type: ignore[arg-type]
            bags=self.bags,
            keeper=self.keeper,
            recorder=self.recorder,
            notes=notes,
            on_job=self.jobs.append,
            on_round=self.on_round,
            worker="me",
            lease_s=lease_s,
        )
        self.errors: list[BaseException] = []
        self.services = [self.keeper, self.recorder, self.receiver]
        for service in self.services:
            service.on_failure = self.errors.append

    def on_round(self) -> None:
        self.rounds += 1

    def start(self) -> None:
        for service in self.services:
            service.start()

    def receive(self, messages: int = 1, *, rounds: int = 1) -> None:
        """Ask for so many messages, until so many requests have brought some."""
        end = self.rounds + rounds
        self.receiver.want(wish(messages), self.rounds)
        wait_until(lambda: self.errors or self.rounds >= end, what="a message")
        assert not self.errors

    def finish(self) -> None:
        self.receiver.stop()
        self.receiver.join(20)
        self.recorder.stop()
        self.recorder.join(20)
        self.keeper.stop()
        self.keeper.join(20)
        assert not any(service.is_alive() for service in self.services)

    def send(self, **changes: Any) -> Message:
        """The message of the bag's only block, changed."""
        bag, block = self.place.table.bag("bag"), self.place.table.block("bag", 0)
        message = msgspec.structs.replace(Message.of(bag, block), **changes)
        self.place.queue.send([message])
        return message

    def die_with_it(self, times: int = 1) -> None:
        """As a worker does that receives a message and is killed."""
        for _ in range(times):
            (_,) = self.place.queue.receive(max_messages=1, lease_s=0.01, wait_s=1)
            time.sleep(0.02)

    def messages(self) -> list[Message]:
        found = []
        while deliveries := self.place.queue.receive(max_messages=100, lease_s=5, wait_s=0):
            found += [Message.decode(delivery.body) for delivery in deliveries]
        return sorted(found, key=lambda message: message.first)

    def rows(self) -> dict[int, Result]:
        return {result.index: result for result in self.place.table.results("bag")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


@pytest.fixture
def bench(place: Place) -> Iterator[Bench]:
    bench = Bench(place)
    yield bench
    if bench.receiver.is_alive():
        bench.queue.faults.clear()
        bench.table.faults.clear()
        bench.finish()


# -- what is handed on ------------------------------------------------------------------------------


def test_a_message_becomes_a_job_whose_lease_is_kept(bench: Bench) -> None:
    bench.place.put_bag([[0], [1], [2]])
    bench.send()
    bench.start()
    bench.receive()
    (job,) = bench.jobs
    assert (job.start, job.stop, job.whole) == (0, 3, True)
    assert bench.keeper.held() == [job.held]
    assert "recorded" not in dict(bench.table.calls), "on the fast path nothing is looked up"


def test_what_is_handed_over_becomes_a_job_or_comes_again(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send()
    bench.table.faults["bag"] = failing(1)
    for jobs in (0, 1):
        (delivery,) = bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=0)
        bench.receiver.hand(delivery, lease_s=60, asked_s=time.monotonic())
        assert len(bench.jobs) == jobs
    assert bench.keeper.held() == [bench.jobs[0].held]
    assert bench.jobs[0].held.deaths == 0


def test_no_more_is_received_than_was_asked_for(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    for _ in range(5):
        bench.send()
    bench.start()
    bench.receive(2)
    assert len(bench.jobs) == 2
    # An answer from before those two arrived is void: they are what was wanted.
    bench.receiver.want(wish(2), 0)
    time.sleep(0.2)
    assert len(bench.jobs) == 2
    bench.receive(3)
    assert len(bench.jobs) == 5


def test_rows_that_were_too_big_are_read_from_the_block(bench: Bench) -> None:
    bench.place.put_bag([["a"], ["b"], ["c"]])
    bench.send(first=1, count=2, rows=NO_ROWS)
    bench.start()
    bench.receive()
    assert msgspec.json.decode(Message.decode(bench.jobs[0].held.body).rows) == [["b"], ["c"]]


@pytest.mark.parametrize(
    ("bag_s", "worker_s", "wanted_s"), [(3.0, None, 3.0), (3.0, 7.0, 7.0), (600.0, None, 600.0)]
)
def test_the_lease_is_the_bags_or_the_workers(
    place: Place, bag_s: float, worker_s: float | None, wanted_s: float
) -> None:
    bench = Bench(place, lease_s=worker_s)
    place.put_bag([[0]], lease_s=bag_s)
    bench.send()
    bench.send()
    bench.start()
    bench.receive()
    held = bench.jobs[0].held
    wait_until(lambda: abs(held.expires_s - time.monotonic() - wanted_s) < 1, what="the right lease")
    bench.receive()
    assert bench.jobs[1].held.lease_s == wanted_s
    bench.finish()


def test_a_queue_whose_longest_lease_is_shorter_decides(bench: Bench) -> None:
    bench.place.put_bag([[0]], lease_s=600.0)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, lease_s=5.0)
    bench.send()
    bench.start()
    bench.receive()
    assert bench.jobs[0].held.lease_s == 5


def test_the_wait_for_a_message_is_short_beside_its_lease(place: Place) -> None:
    """A lease may begin with the request: a long wait would use it up."""
    bench = Bench(place, lease_s=4)
    bench.queue.limits = msgspec.structs.replace(place.queue.limits, wait_s=20.0)
    waits: list[float] = []

    def receive(
        method: Any, *, max_messages: int, lease_s: float, wait_s: float, lane: str
    ) -> list[Delivery]:
        waits.append(wait_s)
        return method(max_messages=max_messages, lease_s=lease_s, wait_s=0.05)  # type: ignore[no-any-return]

    bench.queue.faults["receive"] = receive
    bench.start()
    bench.receiver.want(wish(1), 0)
    wait_until(lambda: waits)
    assert waits[0] == 1
    bench.finish()


# -- what is not run --------------------------------------------------------------------------------


def test_a_message_before_its_time_is_given_back_until_then(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send(not_before=time.time() + 0.4)
    bench.start()
    bench.receive()
    assert not bench.jobs
    wait_until(lambda: bench.place.queue.depth().delayed == 1)
    bench.receive()
    assert bench.jobs[0].held.message.not_before <= time.time()  # type: ignore[operator]
    assert bench.jobs[0].held.deaths == 0


def test_a_message_before_its_time_is_given_back_for_as_long_as_the_queue_can(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, delay_s=900.0)
    delays: list[float] = []

    def release(method: Any, deliveries: Any, *, delay_s: float) -> None:
        delays.append(delay_s)
        method(deliveries, delay_s=delay_s)

    bench.queue.faults["release"] = release
    bench.send(not_before=time.time() + 3600)
    bench.start()
    bench.receive()
    bench.finish()
    assert delays == [900]


def test_waiting_for_its_time_is_no_death_where_releases_are_counted(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    limits = msgspec.structs.replace(bench.place.queue.limits, counts_releases=True, delay_s=0.1)
    bench.queue.limits = limits
    bench.send(not_before=time.time() + 0.5)
    bench.start()
    while not bench.jobs:
        bench.receive()
    assert len(bench.queue.called("send")) >= 3
    assert bench.jobs[0].held.deaths == 0


def test_messages_of_a_cancelled_bag_are_dropped(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.place.table.update_bag("bag", state=BagState.CANCELLED)
    bench.send()
    bench.start()
    bench.receive()
    wait_until(lambda: bench.place.queue.depth() == (0, 0, 0))
    assert not bench.jobs


# -- the careful path -------------------------------------------------------------------------------


def test_of_a_redelivered_message_what_has_no_row_goes_on_one_task_a_message(bench: Bench) -> None:
    bench.place.put_bag([[x] for x in range(5)])
    bench.place.table.record([Result.done("bag", 1), Result.done("bag", 3)])
    bench.send()
    bench.die_with_it()
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.jobs
    messages = bench.messages()
    assert [(m.first, m.count, m.deaths, m.check) for m in messages] == [(at, 1, 1, True) for at in (0, 2, 4)]
    assert bench.place.queue.depth().leased == 3, "the message itself is deleted"


def test_a_redelivered_message_of_which_nothing_is_known_is_taken_apart_too(bench: Bench) -> None:
    bench.place.put_bag([[0], [1], [2]])
    bench.send()
    bench.die_with_it()
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.jobs
    assert [(m.first, m.count, m.deaths) for m in bench.messages()] == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]


def test_of_a_message_that_has_expired_only_what_has_no_row_gets_one(bench: Bench) -> None:
    bench.place.put_bag([[0], [1], [2]], expires_s=60.0)
    error = Failure(reason=Reason.RAISED, type="ValueError", message="no")
    bench.place.table.record([Result.failed("bag", 0, error), Result.done("bag", 1)])
    bench.send(expires_at=1.0)
    bench.start()
    bench.receive()
    bench.finish()
    states = {index: result.state for index, result in bench.rows().items()}
    assert states == {0: State.FAILED, 1: State.DONE, 2: State.EXPIRED}
    assert bench.place.queue.depth() == (0, 0, 0)


def test_a_redelivered_task_runs_again_until_too_many_workers_died_with_it(bench: Bench) -> None:
    bench.place.put_bag([["x"]], columns=("id",), max_deliveries=3)
    bench.send(deaths=1, columns=("id",))
    bench.die_with_it()
    bench.start()
    bench.receive()
    (job,) = bench.jobs
    assert job.held.deaths == 2
    bench.finish()

    again = Bench(bench.place)
    again.send(deaths=2, columns=("id",))
    (_,) = again.place.queue.receive(max_messages=1, lease_s=0.01, wait_s=1)
    time.sleep(0.02)
    again.start()
    again.receive()
    again.finish()
    assert not again.jobs
    result = again.rows()[0]
    assert result.error is not None
    assert (result.state, result.error.reason, result.id) == (State.FAILED, Reason.LOST, "x")
    assert result.error.message == "3 workers died with this task (max_deliveries)"


def test_a_redelivered_task_with_a_row_is_not_run_again(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.place.table.record([Result.done("bag", 0)])
    bench.send()
    bench.die_with_it()
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.jobs
    assert bench.place.queue.depth() == (0, 0, 0)


def test_a_message_to_be_checked_runs_as_it_is_when_nothing_of_it_was_done(bench: Bench) -> None:
    bench.place.put_bag([[0], [1]])
    bench.send(check=True)
    bench.start()
    bench.receive()
    assert [(job.start, job.stop) for job in bench.jobs] == [(0, 2)]


def test_a_message_to_be_checked_is_taken_apart_when_some_of_it_was_done(bench: Bench) -> None:
    bench.place.put_bag([[0], [1], [2]])
    bench.place.table.record([Result.done("bag", 1)])
    bench.send(check=True)
    bench.start()
    bench.receive()
    bench.finish()
    assert [(m.first, m.count, m.deaths) for m in bench.messages()] == [(0, 1, 0), (2, 1, 0)]


def test_a_worker_that_gave_a_message_back_did_not_die(bench: Bench) -> None:
    bench.place.put_bag([[0], [1]])
    bench.send()
    for _ in range(20):
        bench.place.queue.release(bench.place.queue.receive(max_messages=1, lease_s=9, wait_s=1))
    bench.start()
    bench.receive()
    assert bench.jobs[0].held.deaths == 0


def test_it_is_quiet_when_nothing_is_on_its_way(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    assert bench.receiver.quiet(0)
    bench.start()
    bench.receiver.want(wish(1), 0)
    assert not bench.receiver.quiet(0), "it asks"
    bench.receiver.want(None, 0)
    wait_until(lambda: bench.receiver.quiet(0))
    bench.send()
    bench.receive()
    assert not bench.receiver.quiet(0), "not to one who hasn't seen that message"
    wait_until(lambda: bench.receiver.quiet(1))


# -- what can't be read -----------------------------------------------------------------------------

GOOD = {
    "v": 1,
    "bag": "bag",
    "uid": "uid",
    "block": 0,
    "first": 0,
    "count": 2,
    "columns": ["x"],
    "rows": [[1], [2]],
}


def changed(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not a message"),
        (b"\xff\x00", "not a message"),
        (b"[" * 1_000_000, "not a message"),
        (changed(v=99, uid="another"), "upgrade"),
        (changed(count=0), "not a message"),
        (changed(bag="other"), "no bag 'other'"),
        (changed(uid="another"), "no bag 'bag' with the uid"),
        (changed(rows={"a": 1}), "rows"),
        (changed(rows="text"), "rows"),
        (changed(rows=[[1]]), "1 rows and a count of 2"),
        (changed(rows=[[1], [2], [3]]), "3 rows and a count of 2"),
        (changed(rows=[]), "0 rows"),
        (changed(first=1), "has 2 tasks, and the message more"),
        (changed(count=10**15), "has 2 tasks, and the message more"),
        (changed(first=2**50), "has 2 tasks, and the message more"),
        (changed(block=7, rows=None), "no block 7"),
        (changed(v=0), "not a message"),
        (changed(generation=-1), "not a message"),
        (changed(attempt=2**63), "not a message"),
        (changed(deaths=2**63), "not a message"),
        (changed(sent_at=1e300), "a time is out of range"),
        (changed(sent_at=-1.0), "a time is out of range"),
        (changed(not_before=1e300), "a time is out of range"),
        (changed(columns=["y"]), "columns are not those of bag 'bag'"),
        (changed(columns=["x", "x"]), "columns are not those of bag 'bag'"),
        (changed(expires_at=1.0), "it expires, and bag 'bag' doesn't"),
        (changed(bag="b" * 10_000_000), "no bag 'bbbb"),
    ],
)
@pytest.mark.parametrize("careful", [False, True])
def test_what_cant_be_read_is_set_aside_once_with_its_body(
    bench: Bench, body: bytes, reason: str, careful: bool
) -> None:
    bag = bench.place.put_bag([[1], [2]])
    body = body.replace(b'"uid"', f'"{bag.uid}"'.encode()).replace(f'"{bag.uid}":'.encode(), b'"uid":')
    bench.queue.faults["receive"] = planting(body, deliveries=2 if careful else 1)
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.jobs
    (dead,) = bench.place.table.dead()
    assert (dead.body, dead.worker) == (body, "me")
    assert reason in dead.reason
    assert len(dead.reason) < 1000
    assert len(bench.said) == 1
    assert "mtask dead" in bench.said[0]
    assert bench.place.queue.depth() == (0, 0, 0)


def newer_than_this(body: bytes) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(body) | {"v": 99, "rows": "of another form"})


def test_a_message_that_a_newer_version_can_read_is_left_to_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While workers are upgraded one by one, those of before do no harm; when its bag is over, it goes."""
    monkeypatch.setattr(inspection, "NEWER_S", 1.0)
    bag = bench.place.put_bag([[1]])
    queue = bench.place.queue
    bench.send()
    (delivery,) = bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=1)
    newer = newer_than_this(delivery.body)
    bench.queue.faults["receive"] = lambda method, **_: [msgspec.structs.replace(delivery, body=newer)]
    bench.start()
    bench.receive()
    del bench.queue.faults["receive"]
    assert queue.depth() == (0, 0, 1), "for a while"
    assert not list(bench.place.table.dead())
    assert len([text for text in bench.said if "upgrade" in text]) == 1

    bench.place.table.record([Result.done(bag.name, 0)])
    (delivery,) = bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=10)
    bench.queue.faults["receive"] = lambda method, **_: [msgspec.structs.replace(delivery, body=newer)]
    bench.receive()
    bench.finish()
    assert [dead.body for dead in bench.place.table.dead()] == [newer]
    assert queue.depth() == (0, 0, 0)


def planting(body: bytes, *, deliveries: int) -> Any:
    """The next message is received with another body."""
    planted = []

    def receive(method: Any, **arguments: Any) -> list[Delivery]:
        if not planted:
            planted.append(body)
            return [Delivery(body=body, token=(0, 0), deliveries=deliveries)]
        return []

    return receive


@pytest.mark.parametrize(("deliveries", "deaths"), [(1, 2), (4, 5)])
def test_where_releases_are_counted_a_copy_of_what_only_a_newer_one_can_read_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, deliveries: int, deaths: int
) -> None:
    """Or the tasks would end as lost after some of these, though none ever ran. A copy forgets no death."""
    monkeypatch.setattr(inspection, "NEWER_S", 0.0)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, counts_releases=True)
    bench.place.put_bag([[1]])
    bench.send(deaths=2)
    (delivery,) = bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=1)
    delivery = msgspec.structs.replace(delivery, body=newer_than_this(delivery.body), deliveries=deliveries)
    bench.queue.faults["receive"] = lambda method, **_: [delivery]
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.queue.called("release")
    (copy,) = bench.place.queue.receive(max_messages=9, lease_s=60, wait_s=1)
    assert msgspec.json.decode(copy.body) == msgspec.json.decode(delivery.body) | {"deaths": deaths}
    assert copy.deliveries == 1
    if deliveries == 1:
        assert copy.body == delivery.body, "as it came"
    assert bench.place.queue.depth() == (0, 1, 0), "the message itself is gone"


def test_a_bag_that_is_known_doesnt_vouch_for_another_name(bench: Bench) -> None:
    """Its results would go to the other bag, or nowhere."""
    bench.place.put_bag([[1]])
    bench.send()
    bench.start()
    bench.receive()
    bench.send(bag="other")
    bench.receive()
    bench.finish()
    assert len(bench.jobs) == 1
    (dead,) = bench.place.table.dead()
    assert "there is no bag 'other'" in dead.reason


@pytest.mark.parametrize("rows", [b"[[1],[2,3]]", b'[[1],["\\ud800"]]', b'[[1],["\xff"]]'])
@pytest.mark.parametrize("changes", [{"check": True}, {"deaths": 1}, {"expires_at": 1.0}])
def test_what_is_cut_up_or_recorded_unread_is_read_first(
    bench: Bench, rows: bytes, changes: dict[str, Any]
) -> None:
    """Else its pieces would be set aside, not what was received, and what can be read of it would run."""
    bench.place.put_bag([[1], [2]], expires_s=60.0)
    bench.place.table.record([Result.done("bag", 0)])
    body = bench.send(rows=msgspec.Raw(rows), **changes).encode()
    bench.start()
    bench.receive()
    bench.finish()
    assert not bench.jobs
    assert [dead.body for dead in bench.place.table.dead()] == [body]
    assert set(bench.rows()) == {0}
    assert bench.place.queue.depth() == (0, 0, 0)


# -- outages ----------------------------------------------------------------------------------------


def test_while_the_table_is_away_a_message_waits_for_it(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send()
    bench.table.faults["bag"] = failing(2)
    bench.start()
    bench.receive()
    assert len(bench.jobs) == 1
    assert [text.split()[2] for text in bench.said] == ["doesn't", "answers"]


def test_while_the_table_is_away_the_leases_are_kept_for_longer_than_they_last(place: Place) -> None:
    """Else an outage would look like the death of one worker after the other."""
    bench = Bench(place, lease_s=0.6)
    place.put_bag([[0]])
    place.queue.send([Message.of(place.table.bag("bag"), place.table.block("bag", 0))] * 3)
    began_s = time.monotonic()
    bench.table.faults["bag"] = lambda method, *a, **k: (
        method(*a, **k) if time.monotonic() > began_s + 2 else unavailable(method)
    )
    bench.start()
    try:
        bench.receive(3)
        assert [job.held.delivery.deliveries for job in bench.jobs] == [1, 1, 1]
        assert place.queue.depth() == (0, 3, 0)
    finally:
        bench.finish()


def test_while_the_table_is_away_what_cant_be_read_stays_held_and_is_set_aside_once(place: Place) -> None:
    bench = Bench(place, lease_s=0.6)
    place.put_bag([[0]])
    bench.send(uid="of another bag")
    began_s = time.monotonic()
    bench.table.faults["set_aside"] = lambda method, *a, **k: (
        method(*a, **k) if time.monotonic() > began_s + 2 else unavailable(method)
    )
    bench.start()
    bench.receive(1)
    bench.finish()
    assert len(list(place.table.dead())) == 1
    assert place.queue.depth() == (0, 0, 0)
    assert len([text for text in bench.said if "doesn't answer" in text]) == 1


def test_while_the_table_is_away_a_careful_look_waits_and_the_message_is_held_once(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send(check=True)
    bench.table.faults["recorded"] = failing(2)
    bench.start()
    bench.receive()
    assert [job.held for job in bench.jobs] == bench.keeper.held()


def test_who_stops_meanwhile_gives_the_message_back(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send()
    bench.table.faults["bag"] = unavailable
    bench.start()
    bench.receiver.want(wish(1), 0)
    wait_until(lambda: bench.said)
    bench.finish()
    assert bench.place.queue.depth() == (1, 0, 0)


def test_who_stops_meanwhile_sends_a_copy_where_a_release_would_look_like_a_death(bench: Bench) -> None:
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, counts_releases=True)
    bench.place.put_bag([[0]])
    bench.send(deaths=1)
    bench.table.faults["bag"] = unavailable
    bench.start()
    bench.receiver.want(wish(1), 0)
    wait_until(lambda: bench.said)
    bench.finish()
    assert not bench.queue.called("release")
    assert [message.deaths for message in bench.messages()] == [1]
    assert bench.place.queue.depth() == (0, 1, 0)


def test_a_queue_that_is_away_is_asked_again_and_a_stop_doesnt_wait_for_it(bench: Bench) -> None:
    bench.place.put_bag([[0]])
    bench.send()
    bench.queue.faults["receive"] = failing(2)
    bench.start()
    bench.receive()
    assert len(bench.jobs) == 1
    bench.queue.faults["receive"] = failing(10**6)
    bench.receiver.want(wish(1), 1)
    time.sleep(1.2)  # by now it pauses for longer
    began_s = time.monotonic()
    bench.finish()
    assert time.monotonic() - began_s < 0.5
    assert sum("doesn't answer" in text for text in bench.said) == 2


def test_an_error_that_nobody_foresaw_is_told(bench: Bench) -> None:
    bench.queue.faults["receive"] = failing(math.inf, ZeroDivisionError("a bug"))  # type: ignore[arg-type]
    bench.start()
    bench.receiver.want(wish(1), 0)
    wait_until(lambda: bench.errors)
    bench.receiver.join(5)
    assert not bench.receiver.is_alive()


# -- bags -------------------------------------------------------------------------------------------


def test_a_bag_is_read_once_and_again_when_it_has_grown(bench: Bench) -> None:
    bag = bench.place.put_bag([[0]])
    one = Message.of(bag, bench.place.block([[0]]))
    two = msgspec.structs.replace(one, first=1)
    for _ in range(3):
        assert bench.bags.of(one) == bag
    assert len(bench.table.called("bag")) == 1
    bench.place.table.update_bag("bag", total=2)
    found = bench.bags.of(two)
    assert found is not None
    assert found.total == 2


def test_a_bag_in_use_is_asked_after_however_long_its_task_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = bench.place.put_bag([[0]])
    bench.bags.of(Message.of(bag, bench.place.block([[0]])))
    monkeypatch.setattr("mtask.worker.bags.KEEP_S", -1)
    assert bench.bags.refresh({bag.uid}) == {}
    bench.place.table.update_bag("bag", state=BagState.CANCELLED)
    assert bench.bags.refresh({bag.uid}) == {bag.uid: bag.generation}
    assert bench.bags.refresh({bag.uid}) == {bag.uid: bag.generation}
    assert bench.bags.refresh(set()) == {bag.uid: bag.generation}
    assert bench.bags.refresh(set()) == {}, "nobody uses it any more"


def test_a_bag_that_was_taken_up_again_unseen_is_over_for_what_was_sent_before(bench: Bench) -> None:
    bag = bench.place.put_bag([[0]])
    bench.bags.of(Message.of(bag, bench.place.block([[0]])))
    bench.place.table.update_bag("bag", state=BagState.CANCELLED)
    bench.place.table.update_bag("bag", state=BagState.RESENDING, generation=1)
    assert bench.bags.refresh({bag.uid}) == {bag.uid: 0}


# -- lanes and limits -------------------------------------------------------------------------------


def test_what_may_wait_behind_others_needs_the_same_and_has_no_limit() -> None:
    big = Requirements(cpus=2)
    wish = Wish(Space(slots=2, cpus=1, memory_bytes=0, gpus=0), {big: 5})
    assert wish.messages(Lane.of(0, big)) == wish.messages(Lane.of(1, big)) == 5
    assert wish.messages(Lane.of(0, big, uid="a", max_running=9)) == 0
    assert wish.messages(DEFAULT_LANE) == 1


def test_a_table_that_is_away_when_a_limit_is_to_be_told_ends_no_worker(bench: Bench) -> None:
    bench.place.submit("double", [{"x": 1}], max_running=3)
    swaps = iter([True])

    def swap(method: Any, *args: Any) -> Any:
        return method(*args) if next(swaps, False) else unavailable()

    bench.table.faults["swap"] = swap
    bench.start()
    bench.receive(3)
    assert len(bench.jobs) == 1
    assert len(bench.table.called("swap")) == 2


def test_where_a_limit_says_no_the_other_lanes_are_not_waited_at_for_long(bench: Bench) -> None:
    bench.place.submit("double", [{"x": x} for x in range(10)], rate=10, priority=1)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, wait_s=20.0)
    bench.start()
    began_s = time.monotonic()
    while len(bench.jobs) < 8:
        bench.receive()
    assert time.monotonic() - began_s < 2


def test_what_is_not_run_uses_nothing_of_a_rate(bench: Bench) -> None:
    bag = bench.place.submit("double", [{"x": x} for x in range(5)], rate=1)
    bag.cancel()
    bag.retry()  # those of before are in the queue, too
    bench.start()
    began_s = time.monotonic()
    while len(bench.jobs) < 3:
        bench.receive()
    assert time.monotonic() - began_s < 4


FRONT = front_of(DEFAULT_LANE)


def test_what_was_given_back_is_received_from_its_lane(bench: Bench) -> None:
    """It isn't one of the bag's own."""
    bench.place.put_bag([[1]])
    bench.place.table.put_lanes([FRONT])
    bench.send(lane=FRONT.name)
    bench.start()
    bench.receive()
    assert bench.jobs[0].held.lane == FRONT
    assert bench.said == []


@pytest.mark.parametrize("rows", [[[1]], [[1], [2]]], ids=["one task", "two"])
def test_what_a_worker_died_with_loses_its_place_in_front(bench: Bench, rows: list[list[int]]) -> None:
    """Else it would be received first again and again, and die with one young worker after the other."""
    bench.place.put_bag(rows)
    bench.place.table.put_lanes([FRONT])
    bench.send(lane=FRONT.name, deaths=1)
    bench.start()
    bench.receive()
    wait_until(lambda: bench.place.queue.depth(["", FRONT.name]) == (len(rows), 0, 0))
    deliveries = bench.place.queue.receive(max_messages=9, lease_s=60, wait_s=0)
    sent = [Message.decode(delivery.body) for delivery in deliveries]
    assert [(message.first, message.lane, message.deaths, message.check) for message in sent] == [
        (at, "", 1, True) for at in range(len(rows))
    ]
    assert not bench.jobs


class Served:
    """The lanes that a worker serves, with a clock of their own."""

    def __init__(self, place: Place, *lanes: Lane) -> None:
        self.now_s = 1000.0
        place.table.put_lanes(lanes)
        self.lanes = ServedLanes(place.table, Capabilities(), Notes(), clock=lambda: self.now_s)

    def round(self, **messages: int) -> list[Lane]:
        """In which order they come, until one gives so many messages: `main`, `front`."""
        order = self.lanes.in_turn()
        for lane in order:
            came = messages.get("front" if lane.front else "main", 0)
            self.lanes.answered(lane, came)
            if came:
                break
        return order


def test_a_front_lane_comes_first_and_then_every_other_time(place: Place) -> None:
    served = Served(place, FRONT)
    assert served.round(main=1, front=1) == [FRONT, DEFAULT_LANE]
    assert served.round(main=1, front=1) == [DEFAULT_LANE, FRONT, DEFAULT_LANE]
    assert served.round(main=1, front=1) == [FRONT, DEFAULT_LANE]


def test_a_front_lane_that_was_empty_is_rarely_looked_into_while_others_are_not(place: Place) -> None:
    served = Served(place, FRONT)
    assert served.round(main=1) == [FRONT, DEFAULT_LANE]
    served.now_s += FRONT_S - 1
    assert served.round(main=1) == [DEFAULT_LANE]
    served.now_s += 2
    assert served.round(main=1) == [FRONT, DEFAULT_LANE]
    assert served.round() == [DEFAULT_LANE]
    assert served.round() == [FRONT, DEFAULT_LANE], "nothing came: it may be that there is something there"


def test_a_front_lane_comes_before_others_of_its_priority_only(place: Place) -> None:
    high = Lane.of(1, DEFAULT_LANE.requires)
    served = Served(place, FRONT, high)
    order = served.round(main=1)
    assert (order[0], order[1:3]) == (high, [FRONT, DEFAULT_LANE])


def test_one_waits_for_long_where_only_a_front_lane_is_beside(bench: Bench) -> None:
    bench.place.table.put_lanes([FRONT])
    asked: list[tuple[str, float]] = []

    def receive(
        method: Any, *, max_messages: int, lease_s: float, wait_s: float, lane: str
    ) -> list[Delivery]:
        asked.append((lane, wait_s))
        time.sleep(0.01)
        return []

    bench.queue.faults["receive"] = receive
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, wait_s=20.0)
    bench.start()
    bench.receiver.want(wish(1), 0)
    wait_until(lambda: len(asked) >= 4)
    assert asked[:2] == [(FRONT.name, 0.0), ("", 15.0)]


def test_the_lane_that_had_something_last_is_the_one_to_be_waited_at(place: Place) -> None:
    lanes = [Lane.of(priority, Requirements(cpus=cpus)) for priority in (0, 1) for cpus in (0.2, 0.3, 0.4)]
    place.table.put_lanes(lanes)
    served = ServedLanes(place.table, Capabilities(), Notes())
    for lane in lanes:
        served.in_turn()
        served.answered(lane, 1)
        for each in served.in_turn():
            served.answered(each, 0)
        assert served.in_turn()[-1] == lane
        assert set(served.in_turn()) == {DEFAULT_LANE, *lanes}

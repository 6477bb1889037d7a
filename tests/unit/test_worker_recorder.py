"""The recorder, whose queue and table fail: nothing is lost, and nothing acknowledged that isn't stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.errors import BackendError, SendError, UnavailableError
from mtask.manager import connect
from mtask.model import Bag, DeadMessage, Delivery, Failure, Message, Reason, Result, State
from mtask.worker import recorder
from mtask.worker.bags import Bags
from mtask.worker.held import Held
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.recorder import MOST_RESULTS, Recorder
from tests.unit.worker_kit import Place, Wrapper, failing, unavailable, wait_until

RAISED = Failure(reason=Reason.RAISED, type="ValueError", message="no")


class Bench:
    """A recorder on a real queue and table, mostly apart from each other as in a cloud, behind wrappers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.queue, self.table = Wrapper(place.queue), Wrapper(place.table)
        self.table.faults["transaction"] = lambda method, _: method(place.queue)
        self.said: list[str] = []
        self.lost: list[Held] = []
        notes = Notes(self.said.append)
        self.keeper = LeaseKeeper(self.queue, self.lost.append, notes)  # type: ignore[arg-type]
        self.recorder = Recorder(
            self.queue,  # type: ignore[arg-type]
            self.table,  # type: ignore[arg-type]
            self.keeper,
            notes,
            lambda _: None,
            is_gone=Bags(self.table).is_gone,  # type: ignore[arg-type]
        )
        self.errors: list[BaseException] = []
        self.recorder.on_failure = self.errors.append

    def start(self) -> None:
        self.keeper.start()
        self.recorder.start()

    def finish_recorder(self) -> None:
        self.recorder.stop()
        self.recorder.join(20)
        assert not self.recorder.is_alive()

    def finish(self) -> None:
        self.finish_recorder()
        self.keeper.stop()
        self.keeper.join(20)

    def receive(self, bag: Bag, *, lease_s: float = 60) -> Held:
        asked_s = time.monotonic()
        (delivery,) = self.place.queue.receive(max_messages=1, lease_s=lease_s, wait_s=1)
        message = Message.decode(delivery.body)
        held = Held(delivery, message, bag, body=delivery.body, lease_s=lease_s, asked_s=asked_s)
        self.keeper.add([held])
        return held

    def states(self) -> dict[int, State]:
        return {result.index: result.state for result in self.place.table.results("bag")}

    def messages(self) -> list[Message]:
        """What anybody could receive now."""
        deliveries = self.place.queue.receive(max_messages=100, lease_s=1, wait_s=0)
        return [Message.decode(delivery.body) for delivery in deliveries]


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    queue = "table" if getattr(request, "param", "apart") == "together" else "queue"
    with connect(f"sqlite:///{tmp_path}/{queue}.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


@pytest.fixture
def bench(place: Place) -> Iterator[Bench]:
    bench = Bench(place)
    yield bench
    if bench.recorder.is_alive():
        bench.queue.faults.clear()
        bench.table.faults.clear()
        bench.finish()


def done(*indexes: int) -> list[Result]:
    return [Result.done("bag", index, value=index) for index in indexes]


def failed(index: int, attempt: int = 1) -> Result:
    return Result.failed("bag", index, RAISED, attempt=attempt)


def submitted(bench: Bench, count: int = 4, *, lease_s: float = 60, **spec: Any) -> tuple[Bag, Held]:
    bag = bench.place.put_bag([[x] for x in range(count)], **spec)
    bench.place.queue.send([Message.of(bag, bench.place.block([[x] for x in range(count)]))])
    return bag, bench.receive(bag, lease_s=lease_s)


# -- together ---------------------------------------------------------------------------------------


def test_where_writes_are_slow_a_result_waits_a_little_for_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "COMPANY", 1e6)
    monkeypatch.setattr(recorder, "MOST_COMPANY_S", 60.0)

    def slow(record: Callable[..., None], results: Sequence[Result]) -> None:
        time.sleep(2 * recorder.SLOW_S)
        record(results)

    bench.table.faults["record"] = slow
    _, held = submitted(bench)
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    wait_until(bench.recorder.quiet)
    bench.recorder.attempts_ended(held, done(1))
    wait_until(bench.recorder._items.empty, what="the thread has it")
    bench.recorder.attempts_ended(held, done(2, 3))
    bench.finish()  # which nothing waits for
    written = [[result.index for result in results] for (results,) in bench.table.called("record")]
    assert written == [[0], [1, 2, 3]]


def test_where_writes_are_quick_it_waits_for_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_COMPANY_S", 60.0)
    monkeypatch.setattr(recorder, "COMPANY", 1e6)
    monkeypatch.setattr(recorder, "SLOW_S", 10.0)
    _, held = submitted(bench)
    bench.start()
    for index in range(4):
        bench.recorder.attempts_ended(held, done(index))
        wait_until(bench.recorder.quiet)
    assert len(bench.table.called("record")) == 4
    bench.finish()


# -- the order --------------------------------------------------------------------------------------


def test_a_message_is_deleted_when_all_its_tasks_have_rows_and_not_before(bench: Bench) -> None:
    _, held = submitted(bench)
    bench.start()
    bench.recorder.attempts_ended(held, done(0, 1))
    wait_until(lambda: len(bench.states()) == 2)
    assert bench.queue.called("delete") == []
    bench.recorder.attempts_ended(held, done(3))
    bench.recorder.attempts_ended(held, done(2))
    bench.finish()
    assert set(bench.states()) == {0, 1, 2, 3}
    assert bench.place.queue.depth() == (0, 0, 0)
    names = [name for name, _ in bench.table.calls + bench.queue.calls if name in ("record", "delete")]
    assert names.count("delete") == 1


def test_rows_are_written_before_anything_is_sent_and_that_before_anything_is_deleted(bench: Bench) -> None:
    _, held = submitted(bench, 2, retries=1, backoff_s=0.0)
    order: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        def fault(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            order.append(name)
            return method(*args, **kwargs)

        return fault

    for name in ("record", "keep_attempts"):
        bench.table.faults[name] = noting(name)
    for name in ("send", "delete"):
        bench.queue.faults[name] = noting(name)
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.start()
    bench.finish()
    assert order == ["record", "keep_attempts", "send", "delete"]


@pytest.mark.parametrize("broken", ["record", "keep_attempts", "set_aside", "send", "delete", "release"])
def test_an_outage_loses_nothing_acknowledges_nothing_and_is_said_once(bench: Bench, broken: str) -> None:
    _, held = submitted(bench, 3, retries=1, backoff_s=0.0)
    _, given_back = submitted_again(bench)
    _, bad = submitted_again(bench)
    bench.queue.faults[broken] = bench.table.faults[broken] = unavailable
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.recorder.settle(held, 1)
    bench.recorder.release(given_back)
    bench.recorder.set_aside(bad, DeadMessage(body=b"?", reason="no", worker="w"))
    bench.start()
    wait_until(lambda: bench.said)
    settled = 2 if broken == "release" else 0  # that comes last
    assert bench.place.queue.depth().leased == 3 - settled, "the rest is still held"
    bench.queue.faults.clear()
    bench.table.faults.clear()
    bench.finish()

    assert bench.states() == {0: State.DONE}
    sent = {(message.first, message.count, message.attempt) for message in bench.messages()}
    assert sent == {(1, 1, 1), (0, 2, 0)}, "the retry, and what was given back"
    assert {dead.body for dead in bench.place.table.dead()} == {b"?"}
    assert [text.split()[4] for text in bench.said] == ["doesn't", "answers"]
    assert not bench.lost


def submitted_again(bench: Bench) -> tuple[Bag, Held]:
    bag = bench.place.table.bag("bag")
    bench.place.queue.send([Message.of(bag, bench.place.block([[7], [8]], number=5))])
    return bag, bench.receive(bag)


def test_leases_are_kept_while_the_table_is_away(bench: Bench) -> None:
    _, held = submitted(bench, 1, lease_s=1)
    bench.table.faults["record"] = unavailable
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    time.sleep(1.5)
    assert bench.place.queue.receive(max_messages=1, lease_s=1, wait_s=0) == [], "it is still ours"
    bench.table.faults.clear()
    bench.finish()
    assert bench.states() == {0: State.DONE}
    assert bench.place.queue.depth() == (0, 0, 0)
    assert not bench.lost


def test_leases_are_kept_while_the_table_takes_longer_than_they_last(bench: Bench) -> None:
    """Who received the message meanwhile would find no rows, and run its tasks again."""
    _, held = submitted(bench, 1, lease_s=1)
    over_s = held.expires_s + 0.1
    others: list[Delivery] = []

    def record(method: Callable[..., Any], results: Sequence[Result]) -> None:
        wait_until(lambda: time.monotonic() >= over_s)
        others.extend(bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=0))
        method(results)

    bench.table.faults["record"] = record
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    bench.finish()
    assert others == []
    assert bench.states() == {0: State.DONE}
    assert bench.place.queue.depth() == (0, 0, 0)
    assert not bench.lost


def test_what_a_lease_was_lost_for_while_its_rows_were_written_is_sent_by_its_next_holder(
    bench: Bench,
) -> None:
    """This process stood still meanwhile, so that its LeaseKeeper doesn't know."""
    _, held = submitted(bench, 3, retries=1, backoff_s=0.0, lease_s=1)
    over_s = held.expires_s

    def record(method: Callable[..., Any], results: Sequence[Result]) -> None:
        method(results)
        wait_until(lambda: time.monotonic() >= over_s)
        assert bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=10)

    bench.table.faults["record"] = record
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.recorder.hand_on(held, [held.single(2)])
    bench.recorder.start()  # and not the keeper
    bench.finish_recorder()
    assert (bench.states(), bench.lost) == ({0: State.DONE}, [held])
    assert bench.place.queue.depth() == (0, 1, 0), "what the other one holds"


@pytest.mark.parametrize("over", [True, False])
def test_a_message_whose_lease_was_given_up_while_its_rows_were_written_isnt_deleted(
    bench: Bench, over: bool
) -> None:
    """What is left of it wasn't sent; and nobody else need hold it, so that the queue would delete it."""
    _, held = submitted(bench, 2, retries=1, backoff_s=0.0, lease_s=1)

    def record(method: Callable[..., Any], results: Sequence[Result]) -> None:
        method(results)
        wait_until(lambda: held.lost)

    bench.table.faults["record"] = record
    bench.queue.faults["extend"] = unavailable
    if over:
        bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    else:
        bench.recorder.attempts_ended(held, done(0))
        bench.recorder.hand_over(held, [held.guarded(1, 2, "me")], delay_s=0.0)
    bench.start()
    bench.finish()
    assert bench.lost == [held]
    assert bench.queue.called("delete") == bench.keeper.running_on() == []
    (message,) = bench.messages()
    assert (message.first, message.count) == (0, 2)


@pytest.mark.parametrize("error", [UnavailableError("away"), BackendError("odd")])
def test_what_is_sent_again_after_an_outage_is_looked_up_before_it_runs(
    bench: Bench, error: BackendError
) -> None:
    """The first send may have arrived: whoever receives either looks for the row."""
    _, held = submitted(bench, 1, retries=1, backoff_s=0.0)
    bench.queue.faults["delete"] = failing(1, error)
    bench.recorder.attempts_ended(held, [failed(0)])
    bench.start()
    bench.finish()
    first, second = sorted(bench.messages(), key=lambda message: message.check)
    assert (first.first, first.attempt, first.check) == (0, 1, False)
    assert (second.first, second.attempt, second.check) == (0, 1, True)


def test_nothing_is_written_for_a_lost_lease(bench: Bench) -> None:
    _, held = submitted(bench, 2, retries=3)
    held.lost = True
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.recorder.hand_on(held, [held.single(1)])
    bench.start()
    bench.finish()
    assert bench.states() == {}
    assert bench.queue.called("send") == bench.queue.called("delete") == []


def test_who_stood_still_for_longer_than_its_lease_sends_nothing_on(bench: Bench) -> None:
    """Before its LeaseKeeper has found out: somebody else holds the message, and would run the tasks, too."""
    bag = bench.place.put_bag([[0], [1], [2]])
    bench.place.queue.send([Message.of(bag, bench.place.table.block("bag", 0))])
    held = bench.receive(bag, lease_s=0.5)
    wait_until(lambda: time.monotonic() >= held.expires_s)
    (other,) = bench.place.queue.receive(max_messages=1, lease_s=60, wait_s=10)
    bench.recorder.hand_on(held, [held.part(1, 3)])
    bench.recorder.final(held, done(0))
    bench.recorder.start()  # and not the keeper
    bench.finish_recorder()
    assert (bench.lost, held.lost) == ([held], True)
    assert bench.states() == {}
    assert bench.place.queue.depth() == (0, 1, 0), "what the other one holds"
    assert other.deliveries == 2


def test_a_lease_that_is_lost_while_its_results_wait_ends_the_wait_for_them_only(bench: Bench) -> None:
    _, held = submitted(bench, 1)
    _, other = submitted_again(bench)
    bench.table.faults["record"] = unavailable
    bench.recorder.attempts_ended(held, done(0))
    bench.recorder.attempts_ended(other, done(0 + 7, 8))
    bench.start()
    wait_until(lambda: bench.said)
    held.lost = True
    bench.table.faults.clear()
    bench.finish()
    assert set(bench.states()) == {7, 8}


def test_a_message_isnt_deleted_by_a_token_that_is_just_being_replaced(bench: Bench) -> None:
    bag = bench.place.put_bag([[0]])
    bench.place.queue.send([Message.of(bag, bench.place.block([[0]]))])
    under_way, answered = threading.Event(), threading.Event()

    def extend(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        extension = method(*args, **kwargs)
        under_way.set()
        answered.wait(10)
        return extension

    bench.queue.faults["extend"] = extend
    held = bench.receive(bag, lease_s=2)
    bench.start()
    assert under_way.wait(10)
    bench.recorder.attempts_ended(held, done(0))
    threading.Timer(0.2, answered.set).start()
    bench.finish()
    assert bench.place.queue.depth() == (0, 0, 0)
    assert not bench.lost


def test_what_is_set_aside_is_deleted_by_its_newest_token_and_held_no_more(bench: Bench) -> None:
    _, held = submitted(bench, 1)
    old = held.delivery
    ((_, held.delivery),) = bench.place.queue.extend([old], lease_s=60).extended
    bench.recorder.set_aside(held, DeadMessage(body=b"?", reason="no", worker="w"))
    bench.start()
    bench.finish()
    assert bench.place.queue.depth() == (0, 0, 0)
    assert bench.keeper.held() == []


# -- failures and retries ---------------------------------------------------------------------------


def test_failed_attempts_are_sent_again_alone_and_the_last_one_is_a_row(bench: Bench) -> None:
    _, held = submitted(bench, 4, retries=2, backoff_s=0.0)
    bench.recorder.attempts_ended(held, [*done(0), failed(1), failed(2, attempt=3), *done(3)])
    bench.start()
    bench.finish()
    assert bench.states() == {0: State.DONE, 2: State.FAILED, 3: State.DONE}
    (again,) = bench.messages()
    assert (again.first, again.count, again.attempt) == (1, 1, 1)
    assert msgspec.json.decode(again.rows) == [[1]]
    assert [attempt.index for attempt in bench.place.table.attempts("bag")] == [1]


def test_a_pause_longer_than_the_queue_can_is_carried_by_the_message(bench: Bench) -> None:
    _, held = submitted(bench, 1)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, delay_s=0.0)
    bench.recorder.hand_on(held, [held.single(0)], delay_s=100)
    bench.start()
    bench.finish()
    (message,) = bench.messages()
    assert message.not_before is not None
    assert 95 < message.not_before - time.time() <= 100


def test_what_is_too_big_for_the_queue_is_sent_without_its_rows(bench: Bench) -> None:
    _, held = submitted(bench, 1)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, message_bytes=50)
    bench.recorder.hand_on(held, [held.single(0)])
    bench.start()
    bench.finish()
    (message,) = bench.messages()
    assert not message.has_rows


def test_deaths_are_not_forgotten_by_what_is_cut_from_a_message(bench: Bench) -> None:
    bag = bench.place.put_bag([[0], [1]], retries=5)
    message = msgspec.structs.replace(Message.of(bag, bench.place.block([[0], [1]])), deaths=1)
    bench.place.queue.send([message])
    bench.place.queue.receive(max_messages=1, lease_s=0.01, wait_s=1)
    time.sleep(0.02)
    held = bench.receive(bag)
    assert held.deaths == 2
    assert held.part(0, 2).deaths == held.single(1).deaths == 2
    bench.recorder.attempts_ended(held, [failed(0)])
    bench.start()
    bench.recorder.hand_on(held, [held.single(1)])
    bench.finish()
    assert {m.deaths for m in bench.messages()} <= {2}


def test_a_release_is_a_copy_where_it_would_look_like_a_death(bench: Bench) -> None:
    _, held = submitted(bench, 2)
    bench.queue.limits = msgspec.structs.replace(bench.place.queue.limits, counts_releases=True)
    bench.recorder.release(held)
    bench.start()
    bench.finish()
    assert bench.queue.called("release") == []
    (delivery,) = bench.place.queue.receive(max_messages=9, lease_s=1, wait_s=0)
    assert delivery.deliveries == 1
    assert Message.decode(delivery.body).count == 2


# -- refusals ---------------------------------------------------------------------------------------


def refusing(refuse: Callable[[Result], bool]) -> Callable[..., Any]:
    def record(method: Callable[..., Any], results: Sequence[Result]) -> None:
        if any(map(refuse, results)):
            raise BackendError("the item is larger than 400 KB")
        method(results)

    return record


def test_one_result_that_the_table_refuses_becomes_a_failure_and_the_others_pass(bench: Bench) -> None:
    _, held = submitted(bench, 4)
    bench.table.faults["record"] = refusing(lambda result: result.state is State.DONE and result.value == 2)
    bench.recorder.attempts_ended(held, done(0, 1, 2, 3))
    bench.start()
    bench.finish()
    assert bench.states() == {0: State.DONE, 1: State.DONE, 2: State.FAILED, 3: State.DONE}
    (result,) = bench.place.table.results("bag", indexes=[2])
    assert result.error is not None
    assert result.error.message == "the table refused the result: the item is larger than 400 KB"
    assert bench.place.queue.depth() == (0, 0, 0)


def test_a_table_that_refuses_everything_is_asked_until_it_doesnt(bench: Bench) -> None:
    _, held = submitted(bench, 2)
    away = [True]
    bench.table.faults["record"] = refusing(lambda result: away[0])
    bench.recorder.attempts_ended(held, done(0, 1))
    bench.start()
    wait_until(lambda: bench.said)
    assert bench.queue.called("delete") == []
    away.clear()
    away.append(False)
    bench.finish()
    assert bench.states() == {0: State.DONE, 1: State.DONE}


def test_the_results_of_a_bag_that_is_gone_are_dropped(bench: Bench) -> None:
    bag, held = submitted(bench, 2, retries=1)
    gone = msgspec.structs.replace(bag, name="gone")
    message = msgspec.structs.replace(held.message, bag="gone")
    ghost = Held(held.delivery, message, gone, body=b"", lease_s=60, asked_s=time.monotonic())
    _, other = submitted_again(bench)
    again = Result.failed("gone", 1, RAISED)
    bench.recorder.attempts_ended(ghost, [Result.done("gone", 0), again])
    bench.recorder.attempts_ended(other, done(0, 1))
    bench.start()
    bench.finish()
    assert set(bench.states()) == {0, 1}
    assert bench.place.queue.depth() == (0, 0, 0)


@pytest.mark.parametrize("expired", [False, True])
def test_a_late_result_of_a_bag_that_has_expired_is_no_row_of_the_next_of_its_name(
    bench: Bench, expired: bool
) -> None:
    bag, held = submitted(bench, 2, retries=1)
    age_s, uid = (7200.0, "before") if expired else (60.0, bag.uid)
    spec = msgspec.structs.replace(bag.spec, keep_s=3600.0)
    held.bag = msgspec.structs.replace(bag, spec=spec, uid=uid, created_at=bag.created_at - age_s)
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.start()
    bench.finish()
    assert bench.states() == ({} if expired else {0: State.DONE})
    assert sum(bench.place.queue.depth()) == (not expired), "one of them is tried again, or none"
    assert len(bench.table.called("bag")) == expired, "only what may have expired is asked after"
    assert not list(bench.place.table.attempts("bag")) or not expired


def test_what_is_refused_for_good_holds_up_no_other_message(bench: Bench) -> None:
    """Here: something that can't be sent."""
    _, held = submitted(bench, 2, retries=1, backoff_s=0.0)
    _, other = submitted_again(bench)
    bench.queue.faults["send"] = failing(10**9, BackendError("no such exchange"))
    bench.start()
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    wait_until(lambda: bench.said)
    assert bench.states() == {0: State.DONE}, "of the same message, too"
    bench.recorder.attempts_ended(other, done(7, 8))
    wait_until(lambda: len(bench.states()) == 3)
    assert not bench.recorder.quiet()
    assert bench.place.queue.depth().leased == 1, "what isn't sent is still held"
    bench.queue.faults.clear()
    bench.finish()
    assert bench.recorder.quiet()
    assert (bench.recorder._waiting, bench.recorder._waiting_bytes) == (0, 0)
    assert [(message.first, message.attempt, message.check) for message in bench.messages()] == [(1, 1, True)]
    assert [text.split()[4] for text in bench.said] == ["doesn't", "answers"]


@pytest.mark.parametrize("place", ["apart", "together"], indirect=True)
def test_what_cant_be_sent_holds_up_the_rows_of_no_message_and_only_its_own_end(bench: Bench) -> None:
    """One lane is full; what goes to others is sent once."""
    _, held = submitted(bench, 2, retries=1, backoff_s=0.0)
    _, other = submitted_again(bench)

    def send(method: Callable[..., Any], messages: Sequence[Message], **options: Any) -> None:
        if passing := [message for message in messages if message.first > 6]:
            method(passing, **options)
        if full := [message for message in messages if message.first <= 6]:
            raise SendError([(message, "the lane is full") for message in full])

    bench.queue.faults["send"] = send
    bench.recorder.attempts_ended(held, [*done(0), failed(1)])
    bench.recorder.hand_on(other, [other.single(7)])
    bench.start()
    wait_until(lambda: bench.said)
    assert bench.states() == {0: State.DONE}
    bench.recorder.attempts_ended(other, done(8))
    wait_until(lambda: len(bench.states()) == 2)
    wait_until(lambda: bench.queue.called("delete"))
    assert not bench.recorder.quiet()
    assert bench.place.queue.depth().leased == 1, "what isn't sent is still held"
    assert bench.keeper.held() == [held]
    bench.queue.faults.clear()
    bench.finish()
    assert bench.recorder.quiet()
    assert (bench.recorder._waiting, bench.recorder._waiting_bytes) == (0, 0)
    assert len(bench.table.called("record")) == len(bench.table.called("keep_attempts")) + 1 == 2, "once each"
    sent = [(message.first, message.attempt, message.check) for message in bench.messages()]
    assert sorted(sent) == [(1, 1, True), (7, 0, False)]
    assert [text.split()[4] for text in bench.said] == ["doesn't", "answers"]


def test_what_is_refused_until_the_worker_must_go_is_given_up(bench: Bench) -> None:
    _, held = submitted(bench, 1, retries=1, backoff_s=0.0)
    bench.queue.faults["send"] = failing(10**9, BackendError("no such exchange"))
    bench.recorder.attempts_ended(held, [failed(0)])
    bench.start()
    bench.recorder.stop()
    wait_until(lambda: bench.said)
    bench.recorder.give_up_at(time.monotonic())
    bench.recorder.join(5)
    (error,) = bench.errors
    assert isinstance(error, UnavailableError)
    assert bench.place.queue.depth().leased == 1
    bench.keeper.stop()
    bench.keeper.join()


# -- giving up --------------------------------------------------------------------------------------


def test_a_worker_that_must_go_waits_no_longer_than_it_may(bench: Bench) -> None:
    _, held = submitted(bench, 1)
    bench.table.faults["record"] = unavailable
    bench.recorder.attempts_ended(held, done(0))
    bench.start()
    bench.recorder.stop()
    wait_until(lambda: bench.said)
    assert bench.recorder.is_alive()
    bench.recorder.give_up_at(time.monotonic())
    bench.recorder.join(5)
    assert not bench.recorder.is_alive()
    (error,) = bench.errors
    assert isinstance(error, UnavailableError)
    assert "will run again" in str(error)
    assert bench.place.queue.depth().leased == 1, "and nothing was acknowledged"
    bench.keeper.stop()
    bench.keeper.join()


def test_the_worker_takes_no_more_when_too_much_waits(bench: Bench) -> None:
    _, held = submitted(bench, 4)
    assert not bench.recorder.full()
    bench.recorder.attempts_ended(held, done(0), size_bytes=65 * 1024 * 1024)
    assert bench.recorder.full()
    bench.recorder.attempts_ended(held, done(*([1] * MOST_RESULTS)))
    bench.start()
    wait_until(lambda: not bench.recorder.full())
    bench.finish()


def test_an_error_that_nobody_foresaw_is_told(bench: Bench) -> None:
    _, held = submitted(bench, 1)

    def record(method: Callable[..., Any], results: Sequence[Result]) -> None:
        raise ZeroDivisionError

    bench.table.faults["record"] = record
    bench.recorder.attempts_ended(held, done(0))
    bench.start()
    bench.recorder.join(5)
    assert [type(error) for error in bench.errors] == [ZeroDivisionError]
    assert bench.keeper.held() == [held]
    bench.keeper.stop()
    bench.keeper.join()


# -- one after the other ----------------------------------------------------------------------------


def chained(bench: Bench) -> tuple[Bag, Held]:
    """The first of two tasks of a key."""
    bag = bench.place.put_bag([[0]], serial="x", expires_s=60.0)
    bench.place.table.update_bag("bag", total=2)
    second = msgspec.structs.replace(bench.place.block([[1]], first=1, number=1))
    bench.place.table.put_blocks([second])
    first = msgspec.structs.replace(bench.place.block([[0]]), then=1)
    bag = bench.place.table.bag("bag")
    bench.place.queue.send([msgspec.structs.replace(Message.of(bag, first), expires_at=5e9)])
    return bag, bench.receive(bag)


@pytest.mark.parametrize("names", [True, False])
def test_whoever_ends_a_task_sends_the_next_of_its_key_also_after_a_fault(bench: Bench, names: bool) -> None:
    _, held = chained(bench)

    def send(method: Callable[..., Any], messages: Sequence[Message], **options: Any) -> None:
        copies = [msgspec.structs.replace(message) for message in messages]
        raise SendError([(message, "full") for message in copies])

    bench.queue.faults["send"] = send if names else failing(1)  # the row is there by then
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    wait_until(lambda: bench.said)
    if names:
        assert bench.keeper.held() == [held]
    bench.queue.faults.clear()
    bench.finish()
    (message,) = bench.messages()
    assert (message.first, message.check, message.expires_at) == (1, True, 5e9)


def test_of_a_task_that_was_sent_twice_only_the_first_to_end_sends_the_next(bench: Bench) -> None:
    _, held = chained(bench)
    bench.place.table.record(done(0))
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    bench.finish()
    assert bench.messages() == []


def test_the_next_of_a_key_is_of_the_generation_that_the_bag_has_by_now(bench: Bench) -> None:
    """Else it would be void, and the first of the new generation ends too late to send it."""
    _, held = chained(bench)
    bench.place.table.update_bag("bag", generation=3)
    bench.start()
    bench.recorder.attempts_ended(held, done(0))
    bench.finish()
    assert [message.generation for message in bench.messages()] == [3]

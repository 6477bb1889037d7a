"""The worker as a whole: who stops it, what it does then, and what it never does."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.errors import BackendError, UnavailableError
from mtask.manager import connect
from mtask.model import FRONT_VERSION, Message, Result, State
from mtask.requirements import DEFAULT_LANE, Lane, front_of
from mtask.worker import supervisor
from mtask.worker.held import Job
from mtask.worker.room import Share
from mtask.worker.runner import Cause
from mtask.worker.supervisor import Worker
from tests.unit.worker_kit import Place, Wrapper, exists, failing, held_of, unavailable, wait_until, watchdog

FRONT = front_of(DEFAULT_LANE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


@pytest.fixture
def queue(place: Place) -> Wrapper:
    return Wrapper(place.queue)


@pytest.fixture
def table(place: Place) -> Wrapper:
    return Wrapper(place.table)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Tasks of `wait_for` wait for it; `gate`.x is there when task x has begun."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


def waiting(place: Place, gate: Path, count: int, **options: Any) -> Any:
    gate.touch()
    bag = place.submit("wait_for", [{"x": x, "path": str(gate)} for x in range(count)], **options)
    gate.unlink()
    return bag


def begun(gate: Path) -> set[int]:
    return {int(path.suffix[1:]) for path in gate.parent.glob("gate.*")}


class Run:
    """A worker in a thread of its own, with how it ended."""

    def __init__(self, worker: Worker, **arguments: Any) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, kwargs=arguments, daemon=True)
        self.thread.start()

    def _run(self, **arguments: Any) -> None:
        try:
            self.worker.run(**arguments)
        except BaseException as error:
            self.error = error

    def ended(self, *, within_s: float = 10) -> BaseException | None:
        self.thread.join(within_s)
        assert not self.thread.is_alive(), "the worker hangs"
        return self.error


# -- services that fail -----------------------------------------------------------------------------


def broken(_method: Callable[..., Any], *_args: Any, **_kwargs: Any) -> Any:
    raise ZeroDivisionError("a bug in a backend")


@pytest.mark.parametrize("service", ["receiver", "recorder", "leases", "pulse"])
def test_a_worker_without_one_of_its_services_stops_with_the_error(
    place: Place, queue: Wrapper, table: Wrapper, gate: Path, service: str
) -> None:
    """It doesn't hang, it gives nothing back as if it were well, and it kills what it runs."""
    bag = waiting(place, gate, 2, per_message=1, lease_s=1.0)
    run = Run(place.worker(queue=queue, table=table))  # type: ignore[arg-type]
    wait_until(lambda: begun(gate) == {0})
    child = run.worker.slots[0].runner.pid  # type: ignore[union-attr]
    where, method = {
        "receiver": (queue, "receive"),
        "recorder": (table, "record"),
        "leases": (queue, "extend"),
        "pulse": (table, "beat"),
    }[service]
    where.faults[method] = broken
    if service in ("receiver", "recorder"):
        gate.touch()
    assert isinstance(run.ended(), ZeroDivisionError)
    assert not exists(child)
    if service == "recorder":
        assert bag.counts().ended == 0
        depth = place.queue.depth()
        assert (depth.ready or 0) + (depth.leased or 0) == 2, "nothing is acknowledged"


def test_a_bug_in_the_main_loop_ends_commands_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.submit_command([{"x": 600}], run="sleep {x}")
    run = Run(place.worker())
    wait_until(lambda: run.worker.slots[0].jobs)
    pid = run.worker.slots[0].runner.pid  # type: ignore[union-attr]
    monkeypatch.setattr(run.worker, "_tick", lambda: 1 / 0)
    assert isinstance(run.ended(), ZeroDivisionError)
    assert not exists(pid)


def test_a_worker_looks_at_its_slots_by_the_clock_whatever_was_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = place.submit_command([{"x": 0}], run="sleep {x}")
    run, ticks = Run(place.worker()), list[int]()
    wait_until(bag.finished)
    monkeypatch.setattr(run.worker, "_tick", lambda: ticks.append(1))
    for _ in range(200):
        passed = threading.Event()
        run.worker._inbox.post(passed.set)
        assert passed.wait(10)
    assert len(ticks) < 100
    run.worker.drain()
    assert run.ended() is None


def test_whoever_tells_a_worker_that_has_ended_to_stop_writes_into_nobodys_file(place: Place) -> None:
    made = place.worker(idle_exit_s=0.0)
    with watchdog():
        made.run()
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    pipes = [os.pipe() for _ in range(8)]
    made.drain()
    for out, into in pipes:
        os.set_blocking(out, False)
        with pytest.raises(BlockingIOError):
            os.read(out, 1)
        os.close(out)
        os.close(into)
    for fd in files:
        os.close(fd)


# -- outages ----------------------------------------------------------------------------------------


def test_asking_whether_the_bag_is_finished_survives_an_outage(place: Place) -> None:
    bag = place.submit("double", [{"x": x} for x in range(20)])
    left = [3]

    def finished() -> bool:
        if left[0]:
            left[0] -= 1
            raise UnavailableError("away")
        return bag.finished()

    with watchdog():
        place.worker().run(until=finished)
    assert bag.counts().done == 20


def test_a_queue_that_doesnt_answer_is_no_empty_queue(place: Place, queue: Wrapper) -> None:
    bag = place.submit("double", [{"x": 1}])
    queue.faults["receive"] = failing(5)  # 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s
    run = Run(place.worker(queue=queue, idle_exit_s=1.0))  # type: ignore[arg-type]
    assert run.ended() is None
    assert bag.counts().done == 1


def test_who_must_go_while_the_table_is_away_says_so_and_acknowledges_nothing(
    place: Place, table: Wrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WRITES_S", 0.5)
    bag = place.submit("double", [{"x": 1}])
    table.faults["record"] = unavailable
    run = Run(place.worker(table=table))
    wait_until(lambda: place.said)
    run.worker.drain(grace_s=0.2)
    error = run.ended(within_s=5)
    assert isinstance(error, UnavailableError)
    assert "will run again" in str(error)
    assert bag.counts().ended == 0
    assert place.queue.depth().ready == 1


def test_a_bug_in_the_main_loop_ends_who_waits_for_a_table_that_is_away(
    place: Place, table: Wrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WRITES_S", 0.5)
    place.submit("double", [{"x": 1}])
    table.faults["record"] = unavailable
    run = Run(place.worker(table=table))
    wait_until(lambda: place.said)
    monkeypatch.setattr(run.worker, "_tick", lambda: 1 / 0)
    assert isinstance(run.ended(), ZeroDivisionError)


def test_who_cant_write_its_results_didnt_die_where_releases_are_counted(
    place: Place, queue: Wrapper, table: Wrapper
) -> None:
    queue.limits = msgspec.structs.replace(place.queue.limits, counts_releases=True)
    place.submit("double", [{"x": 1}])
    table.faults["record"] = unavailable
    run = Run(place.worker(queue=queue, table=table))
    wait_until(lambda: place.said)
    run.worker.drain(grace_s=-supervisor.LAST_WRITES_S)
    assert isinstance(run.ended(), UnavailableError)
    (copy,) = place.queue.receive(max_messages=9, lease_s=60, wait_s=5)
    message = Message.decode(copy.body)
    assert (copy.deliveries, message.deaths, message.check) == (1, 0, True)
    assert not queue.called("release")


def test_a_second_signal_hurries_also_while_the_last_results_wait(place: Place, table: Wrapper) -> None:
    place.submit("double", [{"x": 1}])
    table.faults["record"] = unavailable
    run = Run(place.worker(table=table))
    wait_until(lambda: place.said)
    run.worker.drain(grace_s=600)
    time.sleep(0.3)
    assert run.thread.is_alive()
    run.worker.drain(grace_s=-supervisor.LAST_WRITES_S)
    assert isinstance(run.ended(within_s=5), UnavailableError)


# -- draining ---------------------------------------------------------------------------------------


def test_what_runs_may_end_and_what_waits_is_given_back(place: Place, gate: Path) -> None:
    bag = waiting(place, gate, 6, per_message=3)
    run = Run(place.worker(slots=1))
    wait_until(lambda: begun(gate))
    run.worker.drain(grace_s=30)
    wait_until(lambda: place.queue.depth([FRONT.name]).ready)
    assert bag.counts().done == 0
    gate.touch()
    assert run.ended() is None
    assert bag.counts().done == 1
    results = place.work(bag)
    assert [(result.state, result.attempt) for result in results] == [(State.DONE, 1)] * 6


def test_what_is_given_back_comes_before_what_waits_already(place: Place, gate: Path) -> None:
    bag = waiting(place, gate, 4, per_message=1)
    run = Run(place.worker())
    wait_until(lambda: begun(gate))
    first = begun(gate)
    assert place.table.lanes() == [], "there is no such lane before it is needed"
    run.worker.drain(grace_s=0)
    assert run.ended() is None
    assert [lane for lane, _ in place.table.lanes()] == [FRONT]
    assert place.queue.depth() == (3, 0, 0)
    (delivery,) = place.queue.receive(max_messages=1, lease_s=60, wait_s=0, lane=FRONT.name)
    message = Message.decode(delivery.body)
    assert (message.lane, message.v, message.deaths) == (FRONT.name, FRONT_VERSION, 0)
    place.queue.release([delivery])
    assert (first, bag.counts().ended) == ({0}, 0)
    gate.touch()
    results = sorted(place.work(bag), key=lambda result: result.started_at or 0)
    assert [(result.index, result.attempt) for result in results] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_who_has_a_free_slot_has_nothing_to_put_it_before(place: Place, gate: Path) -> None:
    waiting(place, gate, 1)
    run = Run(place.worker(slots=2))
    wait_until(lambda: begun(gate))
    run.worker.drain(grace_s=0)
    assert run.ended() is None
    assert (place.table.lanes(), place.queue.depth()) == ([], (1, 0, 0))


@pytest.mark.parametrize("spec", [{"max_running": 3}, {"deliveries": 2}])
def test_what_others_would_have_to_wait_for_is_not_put_in_front(still: Any, spec: dict[str, Any]) -> None:
    """Starts are counted in one lane; what a worker died with may be what killed it."""
    job = a_job(**spec)
    if "max_running" in spec:
        job.held.lane = Lane.of(0, DEFAULT_LANE.requires, uid="uid", max_running=3)
    assert job.held.front is None
    assert a_job().held.front == FRONT


def test_a_queue_that_workers_cant_send_to_gets_the_message_back_as_a_whole_at_the_end(
    place: Place, queue: Wrapper, gate: Path
) -> None:
    """As on HTCondor: what ran meanwhile has its row, and isn't run again by the next."""
    queue.limits = msgspec.structs.replace(place.queue.limits, workers_send=False)
    bag = waiting(place, gate, 3, per_message=3)
    run = Run(place.worker(queue=queue, split_after_s=0.0))  # type: ignore[arg-type]
    wait_until(lambda: begun(gate))
    time.sleep(1)  # it would be split by now, or what waits taken away
    run.worker.drain(grace_s=30)
    time.sleep(0.3)
    assert place.queue.depth() == (0, 1, 0), "not while a task of it runs"
    gate.touch()
    assert run.ended() is None
    assert bag.counts().done == 1
    assert place.queue.depth() == (1, 0, 0)
    assert queue.called("send") == []


def test_the_rest_of_a_message_isnt_taken_from_its_slot_again_and_again(place: Place) -> None:
    """It waits behind its own long task, and each cut would write it into the child's pipe once more."""
    held, other = held_of(3), held_of(3)

    class Busy:
        """Runs task 0 of a message for a second, with the rest of that message behind it."""

        def __init__(self) -> None:
            self.jobs, self.cuts = deque([Job(held, 0, 1), Job(held, 1, 3)]), 0

        def running(self) -> tuple[Job, int, float]:
            return self.jobs[0], 0, 1.0

        def setup_s(self) -> float | None:
            return None

        def cut(self) -> list[Job]:
            self.cuts += 1
            return []

    runner: Any = Busy()
    made = place.worker(split_after_s=60)
    made._dispatcher.relieve(runner)
    assert runner.cuts == 0
    behind = Job(other, 0, 3)
    behind.began_s = time.monotonic()
    runner.jobs.append(behind)
    made._dispatcher.relieve(runner)
    assert runner.cuts == 0, "it has only just come"
    behind.began_s -= 1
    made._dispatcher.relieve(runner)
    assert runner.cuts == 1, "but what waits of another message is taken"
    made.drain()
    with watchdog():
        made.run()


class Busy:
    """A slot and its runner, which runs the first of its jobs, since a second."""

    retiring, pid = False, 0
    share: Share | None = None
    setup: float | None = None

    def __init__(self, *jobs: Job) -> None:
        self.jobs, self.cuts, self.stopped = deque(jobs), 0, list[Cause]()

    @property
    def runner(self) -> Busy:
        return self

    def running(self) -> tuple[Job, int, float]:
        return self.jobs[0], self.jobs[0].start, 1.0

    def setup_s(self) -> float | None:
        return self.setup

    def start(self, job: Job) -> None:
        self.jobs.append(job)

    def suits(self, share: Share, job: Job) -> bool:
        return True

    def gpus(self) -> tuple[str, ...]:
        return ()

    def cut(self) -> list[Job]:
        self.cuts += 1
        rests = list(self.jobs)[1:]
        self.jobs = deque([self.jobs[0]])
        return rests

    def stop_task(self, cause: Cause) -> None:
        self.stopped.append(cause)


@pytest.fixture
def still(place: Place) -> Iterator[Any]:
    """A worker whose loop doesn't run yet, and whose slots and jobs are what the test says."""
    made = place.worker(split_after_s=60)
    slots = made.slots
    yield made
    made.slots = made._dispatcher._slots = slots
    made._dispatcher.ready.clear()
    made.drain()
    with watchdog():
        made.run()


def use(still: Any, slots: list[Any], *ready: Job) -> None:
    still._dispatcher._slots, still._dispatcher.ready = slots, deque(ready)


def a_job(**spec: Any) -> Job:
    return Job(held_of(1, **spec), 0, 1)


def suspect() -> Job:
    job = a_job(max_deliveries=3, deliveries=2)
    assert job.held.is_suspect
    return job


def test_what_is_cut_away_behind_a_long_task_is_put_back_if_it_is_of_the_same_message(still: Any) -> None:
    held, other = held_of(3), a_job()
    runner = Busy(Job(held, 0, 1), Job(held, 1, 3), other)
    still._dispatcher.job_over(0.001)
    still._dispatcher.relieve(runner)
    assert [(job.held, job.start, job.stop) for job in runner.jobs] == [(held, 0, 1), (held, 1, 3)]
    assert list(still._dispatcher.ready) == [other]
    assert not still._dispatcher._pace.room_behind(), "the pace of before says nothing any more"


@pytest.fixture
def sent(still: Any, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What is sent on of messages that are held for more than 10 s."""
    still._dispatcher._options = msgspec.structs.replace(still.options, split_after_s=10.0)
    found: list[Message] = []
    monkeypatch.setattr(still._recorder, "hand_on", lambda held, messages: found.extend(messages))
    return found


def a_long_message(took_s: float, begun: int, count: int) -> Busy:
    """So many of its tasks were begun within this time."""
    held = held_of(count)
    held.began_s = time.monotonic() - took_s
    return Busy(Job(held, begun - 1, begun), Job(held, begun, count))


def parts(messages: Sequence[Message]) -> list[tuple[int, int]]:
    return [(message.first, message.count) for message in messages]


def test_a_message_held_for_long_is_shared_in_pieces_of_half_that_time(
    still: Any, sent: list[Message]
) -> None:
    still._dispatcher.relieve(a_long_message(10.5, begun=5, count=20))  # 2.1 s each
    assert parts(sent) == [(at, 2) for at in range(5, 19, 2)] + [(19, 1)]


def test_where_there_is_much_to_do_the_pieces_are_longer(still: Any, sent: list[Message]) -> None:
    still._dispatcher._ahead = lambda bag: 100.0
    still._dispatcher.relieve(a_long_message(12, begun=12, count=132))
    assert parts(sent) == [(12, 40), (52, 40), (92, 40)]


def test_what_is_no_more_than_others_have_to_do_stays(still: Any, sent: list[Message]) -> None:
    still._dispatcher._ahead = lambda bag: 100.0
    runner = a_long_message(12, begun=12, count=62)
    still._dispatcher.relieve(runner)
    assert (sent, runner.cuts) == ([], 0)
    still._dispatcher._ahead = lambda bag: 10.0  # later
    still._dispatcher.relieve(runner)
    assert len(sent) == 10


def test_how_much_is_ahead_is_asked_for_in_time(still: Any, sent: list[Message]) -> None:
    asked: list[str] = []
    still._dispatcher._ahead = lambda bag: asked.append(bag.name) or 0.0
    still._dispatcher.relieve(a_long_message(4, begun=4, count=100))
    assert asked == []
    still._dispatcher.relieve(a_long_message(6, begun=6, count=100))
    assert (asked, sent) == (["bag"], [])


def test_imports_before_the_first_task_say_nothing_of_the_pace(still: Any, sent: list[Message]) -> None:
    runner = a_long_message(0, begun=1, count=50)
    runner.jobs[0].held.began_s = None
    still._dispatcher.relieve(runner)
    assert runner.jobs[0].held.began_s == pytest.approx(time.monotonic() - 1, abs=0.2)
    assert sent == []


def test_nor_does_a_setup_function(still: Any, sent: list[Message]) -> None:
    runner = a_long_message(3600, begun=1, count=50)
    runner.setup = 7200.0
    still._dispatcher.relieve(runner)
    assert sent == []
    runner.setup = None
    still._dispatcher.relieve(runner)
    assert sent


def test_the_pulse_finds_out_how_much_is_ahead(place: Place, gate: Path) -> None:
    bag = waiting(place, gate, 6, per_message=6)
    with place.working(slots=2, split_after_s=60) as worker:
        wait_until(lambda: place.table.workers())
        worker.ahead.tasks_a_slot(bag.info)
        wait_until(lambda: worker.ahead.tasks_a_slot(bag.info) == 3.0)
        gate.touch()


def test_a_long_task_with_nothing_behind_it_is_left_alone(still: Any) -> None:
    still._dispatcher._options = msgspec.structs.replace(still.options, split_after_s=0.0)
    runner = Busy(a_job())
    still._dispatcher.relieve(runner)
    assert runner.cuts == 0


def test_a_suspect_waits_until_nothing_else_runs_and_nothing_is_on_its_way(still: Any) -> None:
    busy, free, job = Busy(a_job()), Busy(), suspect()
    use(still, [busy, free], job)
    assert still._dispatcher._isolate()
    assert (len(busy.jobs), len(free.jobs)) == (1, 0)
    busy.jobs.clear()
    still._dispatcher.rounds = 1  # a message comes that the receiver hasn't been told of
    assert still._dispatcher._isolate()
    assert not busy.jobs
    still._dispatcher.rounds = 0
    assert still._dispatcher._isolate()
    assert list(busy.jobs) == [job]
    assert still._dispatcher._isolate(), "and while it runs, nothing else begins"


def test_a_suspect_waits_until_all_is_written(still: Any) -> None:
    free = Busy()
    use(still, [free], suspect())
    still._recorder.settle(held_of(1), 0)
    assert still._dispatcher._isolate()
    assert not free.jobs


def test_what_cant_be_given_back_runs_before_the_suspect(still: Any, place: Place) -> None:
    still._dispatcher._limits = msgspec.structs.replace(place.queue.limits, workers_send=False)
    free, job, rest = Busy(), suspect(), Job(held_of(3), 1, 3)
    use(still, [free], job, rest)
    assert still._dispatcher._isolate()
    assert list(free.jobs) == [rest]
    assert list(still._dispatcher.ready) == [job]


def test_a_lost_lease_stops_the_tasks_of_that_message_alone(still: Any) -> None:
    lost, other, waiting = a_job(), a_job(), a_job()
    lost.held.lost = waiting.held.lost = True
    still.slots = [Busy(lost), Busy(other), Busy(a_job(), waiting)]
    still._lost(lost.held)
    still._lost(waiting.held)
    assert [slot.stopped for slot in still.slots] == [[Cause.LOST_LEASE], [], []]
    assert [slot.cuts for slot in still.slots] == [1, 0, 1]
    assert not still._dispatcher.ready


def test_what_is_left_over_of_a_cancelled_bag_is_not_begun(
    still: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[object, int]] = []
    monkeypatch.setattr(still._recorder, "settle", lambda held, count: settled.append((held, count)))
    over, later = a_job(), a_job()
    assert over.held.bag.uid == later.held.bag.uid
    later.held.message = msgspec.structs.replace(later.held.message, generation=1)
    still.outcomes.over = {over.held.bag.uid: 0}
    still.outcomes.left_over([over, later])
    assert settled == [(over.held, 1)]
    assert list(still._dispatcher.ready) == [later], "it was sent after the cancel"


def test_a_drain_tells_the_running_function_and_shows_at_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtask.worker.pulse.BEAT_S", 3600)
    gate = tmp_path / "open"
    (tmp_path / "stop.py").write_text(
        "import os, time, mtask\n\ndef f(x, path):\n    open(path + '.begun', 'w').close()\n"
        "    while not mtask.stopping():\n        time.sleep(0.01)\n"
        "    while not os.path.exists(path):\n        time.sleep(0.01)\n    return 'stopped'\n"
    )
    bag = place.manager.submit([{"x": 1, "path": str(gate)}], call=f"{tmp_path}/stop.py:f", bag="bag")
    run = Run(place.worker())
    wait_until(lambda: (tmp_path / "open.begun").exists())
    run.worker.drain(grace_s=600)
    wait_until(lambda: [status.state for status in place.table.workers()] == ["draining"])
    gate.touch()
    assert run.ended() is None
    assert [result.value for result in bag.results()] == ["stopped"]


def test_a_task_that_wants_no_signal_is_killed_in_time(place: Place) -> None:
    place.submit("stops", [{"x": "deaf"}])
    run = Run(place.worker())
    wait_until(lambda: place.table.workers() and place.table.workers()[0].running)
    time.sleep(0.3)
    began_s = time.monotonic()
    run.worker.drain(grace_s=0)
    assert run.ended() is None
    assert time.monotonic() - began_s < 5
    assert place.queue.depth([FRONT.name]).ready == 1


def test_limits_of_time(place: Place, gate: Path) -> None:
    waiting(place, gate, 1)
    began_s = time.monotonic()
    run = Run(place.worker(max_runtime_s=0.5, grace_s=0.2))
    assert run.ended() is None
    assert 0.5 < time.monotonic() - began_s < 4
    assert place.queue.depth([FRONT.name]).ready == 1


# -- cancelling -------------------------------------------------------------------------------------


def test_a_bag_that_is_cancelled_takes_no_task_of_another_with_it(
    place: Place, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancelled task ends just before it is stopped; the next in line is another bag's."""
    monkeypatch.setattr("mtask.worker.pulse.BEAT_S", 0.05)
    bags = [waiting(place, gate, 4, bag=f"bag{n}", per_message=1) for n in range(6)]
    run = Run(place.worker(slots=2))
    for bag in bags[::2]:
        bag.cancel()
        gate.touch()
        time.sleep(0.02)
    wait_until(lambda: all(bag.finished() for bag in bags))
    run.worker.drain()
    assert run.ended() is None
    for bag in bags[1::2]:
        assert [result.state for result in bag.results()] == [State.DONE] * 4
    wait_until(lambda: place.queue.depth() == (0, 0, 0))


# -- many kinds -------------------------------------------------------------------------------------


def test_functions_and_commands_take_turns_in_one_slot(place: Place) -> None:
    one = place.submit("double", [{"x": x} for x in range(30)], per_message=3)
    two = place.submit_command([{"x": x} for x in range(10)], run="echo {x}", bag="two", per_message=3)
    with watchdog():
        place.worker().run(until=lambda: one.finished() and two.finished())
    assert [result.value for result in one.results()] == [2 * x for x in range(30)]
    assert [result.stdout for result in two.results()] == [f"{x}\n" for x in range(10)]


def test_a_message_whose_rows_cant_be_read_is_set_aside_once_and_the_worker_goes_on(place: Place) -> None:
    bag = place.submit("double", [{"x": x} for x in range(3)])
    info = place.table.bag("bag")
    message = Message.of(info, place.block([[1, 2], [3], [4]]))
    place.queue.send([message])
    with place.working() as worker:
        wait_until(lambda: bag.finished() and list(place.table.dead()))
        wait_until(lambda: place.queue.depth() == (0, 0, 0))
        assert worker.outcomes.failed == 0
    (dead,) = place.table.dead()
    assert dead.body == message.encode()
    assert {result.state for result in bag.results()} == {State.DONE}


def test_the_exit_code_of_a_worker_that_can_run_nothing(tmp_path: Path) -> None:
    """From outside: an error, and nothing that looks like a success."""
    import subprocess
    import sys

    (tmp_path / "f.py").write_text("def f(x): return x\n")
    env = os.environ | {
        "MTASK_QUEUE": f"sqlite:///{tmp_path}/m.db",
        "MTASK_TABLE": f"sqlite:///{tmp_path}/m.db",
    }
    with connect(env["MTASK_QUEUE"], env["MTASK_TABLE"]) as manager:
        manager.submit([{"x": 1}], call=f"{tmp_path}/f.py:f", bag="bag")
    code = (
        "import mtask.worker.starting as f; f._START = 'raise SystemExit(\"no licence\")';"
        "import sys; sys.argv[1:] = ['worker', '-j', '1'];"
        "import mtask.cli; mtask.cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=30
    )
    assert ended.returncode == BackendError.exit_code
    assert b"no licence" in ended.stderr


def test_a_worker_that_receives_what_needs_not_be_run_is_not_idle(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a repair of what was in the queue all the same."""
    bag = place.submit("double", [{"x": x} for x in range(6)], per_message=1)
    place.table.record([Result.done("bag", index) for index in range(5)])
    with place.manager.table.transaction(place.queue):
        held = place.queue.receive(max_messages=6, lease_s=60, wait_s=0)
        place.queue.delete(held)
    checked = [msgspec.structs.replace(Message.decode(each.body), check=True) for each in held]
    place.queue.send(checked)
    recorded = place.table.recorded

    def slowly(*args: Any) -> Any:
        time.sleep(0.1)
        return recorded(*args)

    monkeypatch.setattr(place.table, "recorded", slowly)
    with watchdog():
        place.worker(idle_exit_s=0.25).run()
    assert bag.counts().left == 0


# -- lanes and limits -------------------------------------------------------------------------------


def test_a_worker_is_not_idle_when_a_task_has_just_ended(place: Place) -> None:
    bag = place.submit("sleep", [{"x": 0.4} for _ in range(3)], per_message=1)
    with watchdog():
        place.worker(idle_exit_s=0.2).run()
    assert bag.counts().done == 3


def test_a_worker_is_not_idle_while_the_queue_takes_long_to_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = place.submit_command([{"x": 0}], run="sleep {x}")
    queue, answers, ticks = Wrapper(place.queue), threading.Event(), list[int]()

    def slow(receive: Callable[..., Any], **options: Any) -> Any:
        assert answers.wait(30)
        return receive(**options)

    queue.faults["receive"] = slow
    worker = place.worker(queue=queue, idle_exit_s=0.1)  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "_tick", lambda tick=worker._tick: (tick(), ticks.append(1)))
    run = Run(worker)
    wait_until(lambda: len(ticks) >= 3)  # each half a second after the last
    assert not worker.draining
    answers.set()
    assert run.ended() is None
    assert bag.counts().done == 1


def test_a_worker_is_not_idle_while_a_limit_holds_its_tasks_back(place: Place) -> None:
    bag = place.submit("double", [{"x": x} for x in range(3)], rate=1.0)
    place.submit("double", [{"x": 1}], bag="other", rate=1.0, gpus=1)  # which it can't serve
    with watchdog():
        place.worker(idle_exit_s=0.4, gpus=()).run()
    assert bag.counts().left == 0


def test_a_worker_that_stops_leaves_no_share_behind(place: Place, gate: Path) -> None:
    rows = [{"x": x, "path": str(gate)} for x in range(2)]
    bag = place.submit("wait_for", rows, max_running=1)
    with place.working() as worker:
        wait_until(lambda: list(gate.parent.glob("gate.*")))
        worker.drain(grace_s=10)
        gate.touch()
        wait_until(lambda: bag.counts().done)
    began_s = time.monotonic()
    place.work(bag)
    assert time.monotonic() - began_s < 5


def test_quick_tasks_that_need_something_are_nearly_as_quick_as_others(place: Place) -> None:
    """They wait behind each other, too."""
    bag = place.submit("sleep", [{"x": 0.01}] * 200, cpus=2, per_message=1)
    began_s = time.monotonic()
    place.work(bag, slots=4)
    assert time.monotonic() - began_s < 5

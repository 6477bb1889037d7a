"""The worker as a whole: who stops it, what it does then, and what it never does."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.errors import BackendError, UnavailableError
from mtask.manager import connect
from mtask.model import State
from mtask.worker import supervisor
from mtask.worker.held import Job
from mtask.worker.supervisor import Worker
from tests.unit.worker_kit import Place, Wrapper, exists, failing, held_of, unavailable, wait_until, watchdog


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
    monkeypatch.setattr(run.worker, "_tick", lambda now_s: 1 / 0)
    assert isinstance(run.ended(), ZeroDivisionError)
    assert not exists(pid)


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
    queue.faults["receive"] = failing(4)  # 0.1 + 0.2 + 0.4 + 0.8 s
    run = Run(place.worker(queue=queue, idle_exit_s=0.3))  # type: ignore[arg-type]
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
    wait_until(lambda: place.queue.depth().ready)
    assert bag.counts().done == 0
    gate.touch()
    assert run.ended() is None
    assert bag.counts().done == 1
    results = place.work(bag)
    assert [(result.state, result.attempt) for result in results] == [(State.DONE, 1)] * 6


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

        def cut(self) -> list[Job]:
            self.cuts += 1
            return []

    runner: Any = Busy()
    made = place.worker(split_after_s=60)
    made._relieve(runner)
    assert runner.cuts == 0
    runner.jobs.append(Job(other, 0, 3))
    made._relieve(runner)
    assert runner.cuts == 1, "but what waits of another message is taken"
    made.drain()
    with watchdog():
        made.run()


def test_a_task_that_wants_no_signal_is_killed_in_time(place: Place) -> None:
    place.submit("stops", [{"x": "deaf"}])
    run = Run(place.worker())
    wait_until(lambda: place.table.workers() and place.table.workers()[0].running)
    time.sleep(0.3)
    began_s = time.monotonic()
    run.worker.drain(grace_s=0)
    assert run.ended() is None
    assert time.monotonic() - began_s < 5
    assert place.queue.depth().ready == 1


def test_limits_of_time(place: Place, gate: Path) -> None:
    waiting(place, gate, 1)
    began_s = time.monotonic()
    run = Run(place.worker(max_runtime_s=0.5, grace_s=0.2))
    assert run.ended() is None
    assert 0.5 < time.monotonic() - began_s < 4
    assert place.queue.depth().ready == 1


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
    from mtask.model import Message

    info = place.table.bag("bag")
    message = Message.of(info, place.block([[1, 2], [3], [4]]))
    place.queue.send([message])
    with place.working() as worker:
        wait_until(lambda: bag.finished() and list(place.table.dead()))
        wait_until(lambda: place.queue.depth() == (0, 0, 0))
        assert worker.failed == 0
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
        "import mtask.worker.functions as f; f._START = 'raise SystemExit(\"no licence\")';"
        "import sys; sys.argv[1:] = ['worker', '-j', '1'];"
        "import mtask.cli; mtask.cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=30
    )
    assert ended.returncode == BackendError.exit_code
    assert b"no licence" in ended.stderr

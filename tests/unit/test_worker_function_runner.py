"""What supervisor and child agree on: cutting, stopping and dying at any moment.

The rule behind all of these: each task of a job comes back exactly once, either as a result or as left.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mtask.model import Reason, Result, State
from mtask.portion import line_of
from mtask.requirements import Capabilities
from mtask.worker.functions import FunctionRunner
from mtask.worker.held import Held, Job
from mtask.worker.room import Share
from mtask.worker.runner import Cause
from mtask.worker.slots import Slot
from mtask.worker.wire import HEADER, Cell
from tests.unit import worker_tasks
from tests.unit.worker_kit import TASKS, FakeHost, exists, held_of, wait_until

numbers = itertools.count()


def held(
    rows: list[list[object]], function: str = "double", *, columns: tuple[str, ...] = ("x",), **spec: object
) -> Held:
    made = held_of(len(rows), target=(f"{TASKS}:{function}",), **spec)
    raw = msgspec.Raw(msgspec.json.encode(rows))
    message = msgspec.structs.replace(made.message, rows=raw, columns=columns, uid=f"uid{next(numbers)}")
    bag = msgspec.structs.replace(made.bag, uid=message.uid)
    return Held(made.delivery, message, bag, body=message.encode(), lease_s=60, asked_s=time.monotonic())


def job(
    rows: list[list[object]], function: str = "double", *, share: Share | None = None, **more: object
) -> Job:
    made = Job(held(rows, function, **more), 0, len(rows))  # type: ignore[arg-type]
    made.share = share
    return made


class Bench:
    """A runner with its host."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.runner = FunctionRunner(self.host, machine=Capabilities(cpus=2, gpus=("0", "1")))

    def until(self, condition: object) -> None:
        self.host.run_until(condition)  # type: ignore[arg-type]

    @property
    def done(self) -> list[int]:
        return [result.index for result in self.host.results if result.state is State.DONE]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.host.results if result.state is not State.DONE]

    def begun(self) -> bool:
        """Is the child, with the function loaded, in a task for a while?"""
        running = self.runner.running()
        return running is not None and running[2] > 0.1

    def listens(self) -> bool:
        """Has the task a handler for SIGTERM?"""
        if not self.begun():
            return False
        with open(f"/proc/{self.runner.pid}/status") as file:
            ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
        return bool(ignored >> (worker_tasks.LISTENS - 1) & 1)

    def gone(self) -> bool:
        return not self.runner.pid


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.runner.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Tasks of `wait_for` wait until it is there."""
    return tmp_path / "gate"


def waiting(gate: Path, count: int = 3, **spec: object) -> Job:
    columns = ("x", "path")
    return job([[x, str(gate)] for x in range(count)], "wait_for", columns=columns, **spec)


def offsets(jobs: list[Job]) -> list[int]:
    return [offset for job in jobs for offset in range(job.got, job.stop)]


# -- cutting ----------------------------------------------------------------------------------------


def test_cut_before_the_child_is_up_gives_all_back(bench: Bench) -> None:
    one, two = job([[1], [2]]), job([[3]])
    bench.runner.start(one)
    bench.runner.start(two)
    rests = bench.runner.cut()
    assert [(rest.held, rest.start, rest.stop) for rest in rests] == [(one.held, 0, 2), (two.held, 0, 1)]
    assert not bench.runner.jobs
    # and the child, once it is up, runs what comes after, only
    three = job([[4]])
    bench.runner.start(three)
    bench.until(lambda: bench.host.over)
    assert [result.value for result in bench.host.results] == [8]


def test_cut_keeps_the_running_task_and_gives_back_the_rest(bench: Bench, gate: Path) -> None:
    one, two = waiting(gate), job([[3]])
    bench.runner.start(one)
    bench.runner.start(two)
    bench.until(lambda: Path(f"{gate}.0").exists())
    rests = bench.runner.cut()
    assert [(rest.held is one.held, rest.start, rest.stop) for rest in rests] == [(True, 1, 3), (False, 0, 1)]
    gate.touch()
    bench.until(lambda: bench.host.over)
    assert bench.done == [0]
    assert not Path(f"{gate}.1").exists()
    assert not bench.host.left


def test_what_was_cut_can_go_behind_the_running_task_again(bench: Bench, gate: Path) -> None:
    bench.runner.start(waiting(gate))
    bench.until(lambda: Path(f"{gate}.0").exists())
    for rest in bench.runner.cut():
        bench.runner.start(rest)
    for rest in bench.runner.cut():
        bench.runner.start(rest)
    gate.touch()
    bench.until(lambda: bench.host.over == 2)
    assert bench.done == [0, 1, 2]


def test_what_is_left_of_a_cut_job_ends_where_it_was_cut(bench: Bench, tmp_path: Path) -> None:
    """Cut while the child imports, so that it hasn't begun the first task; what was cut away runs elsewhere by then."""
    gate, log = tmp_path / "gate", tmp_path / "log"
    waits = f"while not Path({str(gate)!r}).exists(): time.sleep(0.01)"
    work = f"def work(x: int) -> None:\n    with open({str(log)!r}, 'a') as log: print(x, file=log)\n"
    (tmp_path / "slow.py").write_text(f"import time\nfrom pathlib import Path\n{waits}\n{work}")
    made = job([[x] for x in range(4)])
    spec = msgspec.structs.replace(made.held.bag.spec, target=(f"{tmp_path}/slow.py:work",))
    made.held.bag = msgspec.structs.replace(made.held.bag, spec=spec)
    bench.runner.start(made)
    bench.until(bench.begun)
    assert offsets(bench.runner.cut()) == [1, 2, 3]
    gate.touch()
    bench.until(lambda: bench.host.left)
    assert offsets(bench.host.left) == [0]
    bench.runner.start(bench.host.left.pop())
    bench.until(lambda: not bench.runner.jobs)
    assert bench.done == [0]
    assert log.read_text().split() == ["0"]


def test_cut_while_the_end_is_on_its_way_cuts_nothing(bench: Bench) -> None:
    one = job([[x] for x in range(10)])
    bench.runner.start(one)
    wait_until(lambda: bench.runner._cell.task()[:2] == (one.serial, 9))
    time.sleep(0.05)  # ENDED is in the pipe, and nobody has read it
    assert bench.runner.cut() == []
    bench.until(lambda: bench.host.over)
    assert bench.done == list(range(10))
    assert not bench.host.left


def test_cut_while_the_end_of_the_first_and_the_begin_of_the_second_are_on_their_way(
    bench: Bench, gate: Path
) -> None:
    one, two = job([[1], [2]]), waiting(gate)
    bench.runner.start(one)
    bench.runner.start(two)
    wait_until(lambda: Path(f"{gate}.0").exists())
    rests = bench.runner.cut()
    assert offsets(rests) == [1, 2]
    assert rests[0].held is two.held
    gate.touch()
    bench.until(lambda: bench.host.over == 2)
    assert [result.value for result in bench.host.results] == [2, 4, 0]


def test_cuts_at_any_moment_lose_and_double_nothing(bench: Bench) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        bench.host.results.clear()
        bench.host.left.clear()
        bench.host.over = 0
        jobs = [job([[x] for x in range(rng.choice([1, 30, 400]))]) for _ in range(3)]
        for each in jobs:
            bench.runner.start(each)
        rests = []
        for _ in range(rng.randrange(1, 4)):
            end_s = time.monotonic() + rng.choice([0, 0.0003, 0.003, 0.01])
            while time.monotonic() < end_s:
                if rng.random() < 0.5:
                    bench.host.turn(0)
            rests += bench.runner.cut()
        bench.until(lambda: not bench.runner.jobs)
        rests += bench.host.left
        for each in jobs:
            # all three count their tasks from 0: told apart by what is left of each
            mine = [
                offset for rest in rests if rest.held is each.held for offset in range(rest.got, rest.stop)
            ]
            assert len(mine) == len(set(mine))
        total = sum(each.held.message.count for each in jobs)
        assert len(bench.host.results) + len(offsets(rests)) == total


# -- stopping ---------------------------------------------------------------------------------------


def test_a_task_that_was_interrupted_is_left_and_has_not_failed(bench: Bench, gate: Path) -> None:
    one, two = waiting(gate), job([[3]])
    bench.runner.start(one)
    bench.runner.start(two)
    bench.until(bench.begun)
    bench.runner.stop_task(Cause.INTERRUPTED)
    assert bench.runner.retiring
    bench.until(bench.gone)
    assert not bench.host.results
    assert offsets(bench.host.left) == [0, 1, 2, 0]


def test_a_task_that_raises_because_it_was_told_to_stop_has_not_failed(bench: Bench) -> None:
    one = job([["raises"], ["not"], ["not"]], "stops")
    bench.runner.start(one)
    bench.until(bench.listens)
    bench.runner.stop_task(Cause.INTERRUPTED)
    bench.until(bench.gone)
    assert not bench.failed
    assert offsets(bench.host.left) == [0, 1, 2]
    assert not bench.done, "after SIGTERM no other task begins"


def test_a_task_that_returns_when_it_is_told_to_stop_is_done(bench: Bench) -> None:
    one = job([["returns"], ["not"]], "stops")
    bench.runner.start(one)
    bench.until(bench.listens)
    bench.runner.stop_task(Cause.INTERRUPTED)
    bench.until(bench.gone)
    assert bench.done == [0]
    assert offsets(bench.host.left) == [1]


def test_a_task_that_ended_in_time_has_not_run_out_of_it_nor_has_the_next(bench: Bench, gate: Path) -> None:
    """The supervisor decides to stop task 0; before the signal arrives, task 1 has begun."""
    one = waiting(gate, 2, timeout_s=100)
    bench.runner.start(one)
    bench.until(bench.begun)
    gate.touch()
    bench.until(lambda: bench.host.over)
    gate.unlink()
    two = waiting(gate, 2, timeout_s=100)
    bench.host.results.clear()
    bench.runner.start(two)
    bench.until(bench.begun)

    seen = two, 0, 101.0
    gate.touch()
    wait_until(lambda: bench.runner._cell.task()[1] == 1)
    running, bench.runner.running = bench.runner.running, lambda: seen  # type: ignore[method-assign]
    bench.runner.check()
    bench.runner.running = running  # type: ignore[method-assign]
    bench.until(bench.gone)
    assert not bench.failed
    assert sorted(bench.done + offsets(bench.host.left)) == [0, 1]


def test_a_task_over_its_time_is_the_only_one_that_fails(bench: Bench, gate: Path) -> None:
    gate.touch()
    bench.runner.start(waiting(gate, 5))
    bench.until(lambda: bench.host.over)
    gate.unlink()
    one, two = waiting(gate, 3, timeout_s=0.2), job([[1]])
    bench.runner.start(one)
    bench.runner.start(two)

    def checked() -> bool:
        bench.runner.check()
        return bench.gone()

    bench.until(checked)
    (failed,) = bench.failed
    assert failed.index == 0
    assert failed.error is not None
    assert failed.error.reason is Reason.TIMEOUT
    assert offsets(bench.host.left) == [1, 2, 0]


def test_nothing_is_given_to_a_child_that_is_about_to_die(bench: Bench, gate: Path) -> None:
    bench.runner.start(waiting(gate, 1))
    bench.until(bench.begun)
    assert not bench.runner.retiring
    bench.runner.stop_task(Cause.CANCELLED)
    assert bench.runner.retiring
    bench.until(bench.gone)
    assert not bench.runner.retiring
    gate.touch()
    bench.runner.start(waiting(gate, 1))
    bench.until(lambda: bench.host.over)


def test_a_cut_after_the_stop_leaves_the_barrier_up(bench: Bench) -> None:
    bench.runner.start(job([["returns"], ["not"]], "stops"))
    bench.until(bench.listens)
    bench.runner.stop_task(Cause.CANCELLED)
    rests = bench.runner.cut()
    bench.until(bench.gone)
    assert bench.done == [0]
    # The latter if it looked up to the barrier just then.
    assert offsets(rests) + offsets(bench.host.left) == [1]


# -- dying ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "messages"), [(400, 3), (1, 300)])
def test_a_child_killed_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, count: int, messages: int
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for turn in range(15):
        bench = Bench()
        log = tmp_path / f"log{turn}"
        jobs = [
            job([[x, str(log)] for x in range(at, at + count)], "log", columns=("x", "path"))
            for at in range(0, messages * count, count)
        ]
        for each in jobs:
            bench.runner.start(each)
        bench.until(lambda bench=bench: bench.runner._cell.task()[0] >= 0)
        end_s = time.monotonic() + rng.uniform(0, 0.06)
        while time.monotonic() < end_s:
            bench.host.turn(0.001)
        if bench.runner.jobs:
            os.kill(bench.runner.pid, signal.SIGKILL)
            bench.until(bench.gone)
        bench.runner.close()

        values = [result.value for result in bench.host.results if result.state is State.DONE]
        failed = [result for result in bench.host.results if result.state is State.FAILED]
        assert len(failed) <= 1
        assert len(values) == len(set(values))
        ran = list(map(int, log.read_text().split())) if log.exists() else []
        assert len(ran) == len(set(ran))
        assert set(values) <= set(ran)
        assert len(set(ran) - set(values)) <= 1, "the one that was killed"
        left = sum(len(offsets([rest])) for rest in bench.host.left)
        assert len(values) + len(failed) + left == messages * count


def test_the_end_of_quick_messages_is_known_while_a_long_one_runs(bench: Bench, gate: Path) -> None:
    """They wait for each other in the cell, but not for the next that ends."""
    gate.touch()
    bench.runner.start(waiting(gate, 1))
    bench.until(lambda: bench.host.over)
    gate.unlink()
    long = waiting(gate, 1)
    os.kill(bench.runner.pid, signal.SIGSTOP)  # so that it reads all at once
    for each in [*(job([[x]]) for x in range(3)), long]:
        bench.runner.start(each)
    os.kill(bench.runner.pid, signal.SIGCONT)
    wait_until(lambda: bench.runner._cell.task()[0] == long.serial)
    bench.runner.check()
    assert bench.host.over == 4
    assert bench.runner.running() is not None
    gate.touch()
    bench.until(lambda: bench.host.over == 5)
    assert bench.done == [0] * 5


def test_a_child_that_dies_idle_is_replaced_and_nobody_is_blamed(bench: Bench) -> None:
    for _ in range(5):
        bench.runner.start(job([[1]]))
        bench.until(lambda: not bench.runner.jobs)
        os.kill(bench.runner.pid, signal.SIGKILL)
        bench.until(bench.gone)
    assert bench.done == [0] * 5
    assert not bench.failed
    assert not bench.host.problems


def test_results_that_arrive_half_are_taken_from_the_cell(bench: Bench, gate: Path) -> None:
    """The child is killed while it sends a portion: the portion is still in the cell."""
    one = waiting(gate, 1)
    bench.runner.start(one)
    bench.until(bench.begun)
    cell = bench.runner._cell
    row = line_of(Result.done("bag", 0, value=7)) + b"\n"
    cell.words[Cell.FIRST] = 0
    cell.buffer[HEADER.size : HEADER.size + len(row)] = row
    cell.words[Cell.STORED] = HEADER.size + len(row)
    os.kill(bench.runner.pid, signal.SIGKILL)
    bench.until(bench.gone)
    assert [result.value for result in bench.host.results] == [7]
    assert not bench.host.left


def test_what_was_sent_before_comes_before_what_is_in_the_cell(bench: Bench, gate: Path) -> None:
    """The first results of a message are in the pipe, its last one and its end in the cell, when the supervisor looks."""
    first, long = job([[0.05], [0.05], [0.0]], "sleep"), waiting(gate, 1)
    bench.runner.start(first)
    bench.runner.start(long)
    wait_until(lambda: bench.runner._cell.task()[0] == long.serial)
    bench.runner.check()
    assert bench.done == [0, 1, 2]
    assert bench.host.over == 1
    assert not bench.host.left
    gate.touch()
    bench.until(lambda: bench.host.over == 2)
    assert bench.done == [0, 1, 2, 0]


def test_rows_that_cant_be_read_are_told_and_nothing_of_them_runs(bench: Bench) -> None:
    for rows, columns in [([[1], [2, 3], [4]], ("x",)), ([[1], [2]], ("x", "y"))]:
        bad = job(rows, "double", columns=columns)  # type: ignore[arg-type]
        bench.runner.start(bad)
        bench.until(lambda: bench.host.bad)
        assert bench.host.bad.pop()[0] is bad
    invalid = job([["x"]])
    raw = invalid.held.body.replace(b'"x"]]', b'"\xff"]]')
    invalid.held.body = raw
    bench.runner.start(invalid)
    bench.until(lambda: bench.host.bad)
    assert not bench.host.results
    good = job([[1]])
    bench.runner.start(good)
    bench.until(lambda: bench.host.results)


def test_a_result_larger_than_the_cell_comes_in_its_place(bench: Bench) -> None:
    text = "x" * 250_000
    rows: list[list[object]] = [["small"], [text], [text], ["small"]]
    bench.runner.start(job(rows, "stops"))
    bench.until(lambda: bench.host.over)
    assert [len(result.value) for result in bench.host.results] == [5, 250_000, 250_000, 5]


def test_a_runner_that_is_closed_ends_its_child_also_a_busy_one(gate: Path) -> None:
    bench = Bench()
    bench.runner.start(waiting(gate))
    bench.until(bench.begun)
    pid = bench.runner.pid
    began_s = time.monotonic()
    bench.runner.close()
    assert not exists(pid)
    assert time.monotonic() - began_s < 5


# -- the share of the worker ------------------------------------------------------------------------

GPU_0, GPU_1 = Share(1.0, gpus=("0",)), Share(1.0, gpus=("1",))
PLAIN = Share(1.0)


def environment(pid: int) -> dict[str, str]:
    """As it was when the process began."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(variable.split("=", 1) for variable in variables if variable)


def run(bench: Bench, share: Share | None) -> int:
    """Run a task with this share; returns the process it ran in."""
    before = bench.host.over
    bench.runner.start(job([[1]], "whoami", share=share))
    bench.until(lambda: bench.host.over > before)
    pid = bench.host.results[-1].value
    assert isinstance(pid, int)
    return pid


def test_a_child_starts_with_the_environment_of_its_share(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment(run(bench, Share(2.0, 1000, ("1",))))
    assert (found["CUDA_VISIBLE_DEVICES"], found["MTASK_GPUS"], found["MTASK_CPUS"]) == ("1", "1", "2")
    assert found["MTASK_MEMORY"] == "1000"
    assert (found["OMP_NUM_THREADS"], int(found["MKL_NUM_THREADS"]) > 0) == ("3", True)


def test_tasks_with_the_same_share_never_renew_the_child(bench: Bench) -> None:
    pids = set()
    for _ in range(3):
        assert bench.runner.suits(Share(1.0))
        pids.add(run(bench, Share(1.0)))
    assert len(pids) == 1


@pytest.mark.parametrize(
    "other",
    [GPU_1, PLAIN, Share(2.0, gpus=("0",)), Share(1.0, 5, ("0",)), Share(1.0, gpus=("0",), cores=(0,))],
)
def test_a_child_with_another_share_doesnt_suit_until_it_is_renewed(bench: Bench, other: Share) -> None:
    mine = os.sched_getaffinity(0)
    assert bench.runner.suits(GPU_0)
    first = run(bench, GPU_0)
    assert (bench.runner.suits(GPU_0), bench.runner.suits(other)) == (True, False)
    bench.runner.retire()
    bench.until(lambda: not bench.runner.retiring)
    assert bench.runner.suits(other)
    second = run(bench, other)
    assert first != second
    assert environment(second)["CUDA_VISIBLE_DEVICES"] == ",".join(other.gpus)
    assert os.sched_getaffinity(0) == mine


def test_an_idle_child_holds_its_gpus_until_it_has_gone(bench: Bench, gate: Path) -> None:
    assert bench.runner.gpus() == ()
    bench.runner.start(job([[0, str(gate)]], "wait_for", columns=("x", "path"), share=GPU_1))
    assert bench.runner.gpus() == (), "the task has them, as its share says"
    gate.touch()
    bench.until(lambda: bench.host.over)
    assert bench.runner.gpus() == ("1",)
    bench.runner.retire()
    assert bench.runner.gpus() == ("1",)
    bench.until(bench.gone)
    assert bench.runner.gpus() == ()


def test_a_child_runs_on_the_cores_of_its_share_and_its_worker_on_all(bench: Bench) -> None:
    mine = os.sched_getaffinity(0)
    core = max(mine)
    pid = run(bench, Share(1.0, cores=(core,)))
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    assert [os.sched_getaffinity(thread) for thread in threads] == [{core}] * len(threads)
    assert os.sched_getaffinity(0) == mine


def test_cores_that_arent_there_any_more_keep_no_task_from_running(bench: Bench) -> None:
    assert os.sched_getaffinity(run(bench, Share(1.0, cores=(1023,)))) == os.sched_getaffinity(0)


# -- slots, of both kinds ---------------------------------------------------------------------------


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def slot(host: FakeHost) -> Iterator[Slot]:
    slot = Slot(host, machine=Capabilities(cpus=2, gpus=("0", "1")))
    yield slot
    slot.close()


def command(*words: str, **spec: object) -> Job:
    return Job(held_of(1, kind="run", target=words, **spec), 0, 1)


def finish(host: FakeHost, slot: Slot, job: Job, share: Share) -> None:
    assert slot.suits(share, job)
    slot.share = share
    slot.start(job)
    host.run_until(lambda: not slot.jobs)
    slot.share = None


def test_a_job_has_the_share_of_its_slot(host: FakeHost, slot: Slot) -> None:
    one = command("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    finish(host, slot, one, GPU_1)
    assert one.share == GPU_1
    assert host.results[0].stdout == "1\n"


def test_a_command_suits_beside_any_child_that_holds_none_of_its_gpus(host: FakeHost, slot: Slot) -> None:
    finish(host, slot, job([[1]]), GPU_1)
    assert slot.gpus() == ("1",)
    assert (slot.suits(PLAIN), slot.suits(PLAIN, job([[1]]))) == (False, False)
    assert slot.suits(PLAIN, command("true"))
    assert slot.suits(GPU_0, command("true"))
    assert not slot.suits(GPU_1, command("true")), "its memory isn't free"
    finish(host, slot, command("true"), GPU_0)
    assert slot.gpus() == ("1",)


def test_nothing_is_started_in_a_slot_whose_child_is_about_to_go(host: FakeHost, slot: Slot) -> None:
    """Also when a command ran in it last."""
    finish(host, slot, job([[1]]), GPU_1)
    finish(host, slot, command("true"), PLAIN)
    slot.retire()
    assert slot.retiring
    host.run_until(lambda: not slot.retiring)
    assert slot.gpus() == ()
    finish(host, slot, job([[1]]), GPU_0)


def test_a_child_that_doesnt_go_is_killed_also_when_a_command_ran_last(host: FakeHost, slot: Slot) -> None:
    finish(host, slot, job([[1]], "whoami"), GPU_1)
    pid = host.results[0].value
    finish(host, slot, command("true"), PLAIN)
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)
    slot.retire()
    slot.check()
    assert exists(pid)
    clock, time.monotonic = time.monotonic, lambda: clock() + 60
    try:
        slot.check()
    finally:
        time.monotonic = clock
    host.run_until(lambda: not slot.retiring)
    assert not exists(pid)


def test_only_what_needs_the_same_waits_behind(host: FakeHost, slot: Slot, gate: Path) -> None:
    slot.start(waiting(gate, 1))
    other = job([[1]])
    assert slot.takes_behind(other)
    requires = msgspec.structs.replace(other.held.lane.requires, gpus=1)
    other.held.lane = msgspec.structs.replace(other.held.lane, requires=requires)
    assert not slot.takes_behind(other)

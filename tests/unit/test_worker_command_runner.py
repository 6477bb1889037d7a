"""What a supervisor and the child that starts commands agree on: cutting, stopping and dying at any moment.

The rule behind all of these: each task of a job comes back exactly once, either as a result or as left, and no
process of a command outlives that.
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
from mtask.worker import commands
from mtask.worker.commands import CommandRunner
from mtask.worker.held import Held, Job
from mtask.worker.runner import Cause
from mtask.worker.wire import Cell
from tests.unit.worker_kit import FakeHost, exists, held_of, wait_until

numbers = itertools.count()
indices = itertools.count(0, 1000)


def job(script: str, count: int = 1, **spec: object) -> Job:
    """Tasks of a script that finds its number in $x, counted on from one job to the next."""
    first = next(indices)
    made = held_of(count, kind="shell", target=(script,), **spec)
    raw = msgspec.Raw(msgspec.json.encode([[first + at] for at in range(count)]))
    message = msgspec.structs.replace(made.message, rows=raw, first=first, uid=f"uid{next(numbers)}")
    bag = msgspec.structs.replace(made.bag, uid=message.uid)
    held = Held(made.delivery, message, bag, body=message.encode(), lease_s=60, asked_s=time.monotonic())
    return Job(held, 0, count)


class Bench:
    """A runner with its host."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.runner = CommandRunner(self.host)
        self.start("true")
        self.until(self.idle)
        self.host.results.clear()
        self.host.over = 0

    def start(self, script: str, count: int = 1, **spec: object) -> Job:
        made = job(script, count, **spec)
        self.runner.start(made)
        return made

    def until(self, condition: object) -> None:
        def checked() -> object:
            self.runner.check()
            return condition()  # type: ignore[operator]

        self.host.run_until(checked)

    def turn_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.host.turn(0.0005)

    def idle(self) -> bool:
        return not self.runner.jobs and not self.runner.retiring

    def command(self) -> int:
        """Of the command that runs: its pid."""
        return self.runner.pid and max(0, self.runner._cell.words[Cell.COMMAND])

    @property
    def done(self) -> list[int]:
        return [result.index for result in self.host.results if result.state is State.DONE]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.host.results if result.state is not State.DONE]

    def come_back(self, *rests: Job) -> list[int]:
        """All that did, and what was cut away."""
        return sorted([result.index for result in self.host.results] + indices_of([*self.host.left, *rests]))


def indices_of(jobs: list[Job]) -> list[int]:
    return [job.held.message.first + offset for job in jobs for offset in range(job.got, job.stop)]


def all_of(jobs: list[Job]) -> list[int]:
    return [job.held.message.first + offset for job in jobs for offset in range(job.held.message.count)]


def alive(mark: str) -> list[int]:
    """The processes with this in their environment."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.runner.close()


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


# -- at any moment ----------------------------------------------------------------------------------


def test_cuts_at_any_moment_lose_and_double_nothing(bench: Bench, rng: random.Random, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"echo $x >> {log}"
    everything: list[int] = []
    rests: list[Job] = []
    for _ in range(12):
        jobs = [bench.start(script, rng.choice([1, 3, 20])) for _ in range(3)]
        everything += all_of(jobs)
        for _ in range(rng.randrange(1, 4)):
            bench.turn_for(rng.choice([0, 0.001, 0.005, 0.02]))
            rests += bench.runner.cut()
        bench.until(bench.idle)
    assert bench.come_back(*rests) == everything
    assert not bench.failed
    assert sorted(map(int, log.read_text().split())) == sorted(bench.done)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.RETIRED])
def test_stops_at_any_moment_lose_and_double_nothing(
    bench: Bench, rng: random.Random, tmp_path: Path, cause: Cause
) -> None:
    log = tmp_path / "log"
    for turn in range(12):
        del bench.host.left[:], bench.host.results[:]
        note = Path(f"{log}.{turn}")
        slow = rng.random() < 0.3
        script = f"echo $x >> {note}{'; sleep 60' if slow else ''}"
        jobs = [bench.start(script, rng.choice([1, 2, 20]), timeout_s=50) for _ in range(3)]
        bench.turn_for(rng.choice([0, 0.001, 0.005, 0.02, 0.04]))
        while not slow and rng.random() < 0.3:
            time.sleep(0.002)  # the supervisor is busy
        if not bench.runner.jobs:
            continue
        bench.runner.stop_task(cause)
        if rng.random() < 0.5:
            bench.runner.stop_task(Cause.CANCELLED, grace_s=0.005)
        bench.until(bench.idle)
        assert bench.come_back() == all_of(jobs)
        if not cause.is_failure:
            assert not bench.failed
        assert len(bench.failed) <= 1
        ran = list(map(int, note.read_text().split())) if note.exists() else []
        assert set(bench.done) <= set(ran)
        assert len(ran) == len(set(ran))
        assert not bench.command()
    bench.start("true")
    bench.until(lambda: bench.host.over)


def test_a_child_killed_at_any_moment_loses_and_doubles_nothing_and_leaves_no_process(
    bench: Bench, rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in range(12):
        del bench.host.left[:], bench.host.results[:]
        log, mark = tmp_path / f"log{turn}", f"MARK={tmp_path}/{turn}."
        monkeypatch.setenv("MARK", f"{tmp_path}/{turn}.")
        script = f"echo $x >> {log}{'; exec sleep 60' if rng.random() < 0.3 else ''}"
        jobs = [bench.start(script, 20) for _ in range(3)]
        bench.turn_for(rng.uniform(0, 0.05))
        if bench.runner.jobs:
            os.kill(bench.runner.pid, rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV]))
            bench.until(lambda: not bench.runner.pid)
            wait_until(lambda mark=mark: not alive(mark), timeout_s=1)
        assert bench.come_back() == all_of(jobs)
        assert len(bench.failed) <= 1
        ran = list(map(int, log.read_text().split())) if log.exists() else []
        assert len(ran) == len(set(ran))
        assert set(bench.done) <= set(ran)
        assert len(set(ran) - set(bench.done)) <= 1, "the one that was killed"


# -- stopping ---------------------------------------------------------------------------------------

SAVES = "trap 'echo saved; exit 0' TERM; touch {begun}; sleep 60 & wait"
DEAF = "trap '' TERM; touch {begun}; while true; do sleep 0.01; done"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    return tmp_path / "begun"


def test_a_command_that_is_told_to_stop_is_left_whatever_its_status(bench: Bench, begun: Path) -> None:
    one, two = bench.start(SAVES.format(begun=begun), 3), bench.start("true")
    bench.until(begun.exists)
    pid = bench.runner.pid
    bench.runner.stop_task(Cause.INTERRUPTED)
    assert bench.runner.retiring
    bench.until(bench.idle)
    assert not bench.host.results
    assert bench.come_back() == all_of([one, two])
    three = bench.start("echo $x")
    bench.until(bench.idle)
    assert bench.done == all_of([three])
    assert bench.runner.pid == pid, "its child goes on"


def test_a_stop_of_what_the_supervisor_thinks_of_as_waiting_lasts_until_that_ends(
    bench: Bench, begun: Path
) -> None:
    """The first job's end is on its way, the second one runs."""
    one, two = bench.start("true"), bench.start(DEAF.format(begun=begun), 2)
    wait_until(begun.exists)
    assert len(bench.runner.cut()) == 1
    bench.runner.stop_task(Cause.CANCELLED, grace_s=0.5)
    bench.until(lambda: len(bench.runner.jobs) == 1)
    assert bench.done == all_of([one])
    assert bench.runner.retiring
    assert exists(bench.command())
    bench.until(bench.idle)
    assert not bench.command()
    assert indices_of(bench.host.left) == all_of([two])[:1]


def test_a_signal_of_others_tells_a_child_nothing(bench: Bench, begun: Path) -> None:
    """As of a service manager, or a batch system, that sends it to all there is."""
    one = bench.start(f"trap 'exit 0' TERM; touch {begun}; while true; do sleep 0.01; done")
    bench.until(begun.exists)
    os.kill(bench.runner.pid, signal.SIGTERM)
    os.kill(bench.runner.pid, signal.SIGUSR1)
    bench.turn_for(0.05)
    assert exists(bench.command())
    os.kill(bench.command(), signal.SIGTERM)
    bench.until(bench.idle)
    assert bench.done == all_of([one])
    pid = bench.runner.pid
    os.kill(pid, signal.SIGTERM)
    bench.start("true")
    bench.until(bench.idle)
    assert not bench.failed
    assert bench.runner.pid == pid


def test_the_record_of_a_killed_command_is_whole_also_if_cleaning_takes_long(
    bench: Bench, begun: Path
) -> None:
    many = "cd $TMPDIR; seq 3000 | xargs touch"
    bench.start(f"echo out; {many}; {DEAF.format(begun=begun)}", timeout_s=60)
    bench.until(begun.exists)
    bench.runner.stop_task(Cause.TIMEOUT, grace_s=0)
    bench.until(bench.idle)
    (result,) = bench.failed
    assert result.error is not None
    assert (result.error.reason, result.exit_code, result.stdout) == (Reason.TIMEOUT, -9, "out\n")
    assert result.peak_bytes


# -- dying ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0, 0.0003, 0.005])
def test_a_command_that_is_just_being_started_goes_with_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    """It takes long until its program is found."""
    monkeypatch.setenv("MARK", f"{tmp_path}.")
    monkeypatch.setenv("PATH", "/a:" * 40_000 + os.environ["PATH"])
    host = FakeHost()
    made = CommandRunner(host)
    one = Job(held_of(1, kind="run", target=("sleep", "60")), 0, 1)
    made.start(one)
    words = made._cell.words
    while not words[Cell.COMMAND]:
        pass
    time.sleep(delay_s)
    os.kill(made.pid, signal.SIGKILL)
    host.run_until(lambda: not made.pid)
    wait_until(lambda: not alive(f"MARK={tmp_path}."), timeout_s=1)
    assert [result.index for result in host.results] == [0]
    made.close()


def test_where_ended_children_are_ignored_a_command_is_waited_for_nevertheless() -> None:
    """As its parent may have told the worker, and the worker its child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        bench = Bench()
        one = bench.start("exit 3")
        bench.until(bench.idle)
        signal.signal(signal.SIGCHLD, before)
        bench.runner.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [(result.index, result.exit_code) for result in bench.failed] == [(*all_of([one]), 3)]


def test_each_child_has_a_folder_of_its_own(bench: Bench) -> None:
    """What a command left there can perhaps not be removed by this user."""
    folders = set()
    for _ in range(2):
        bench.host.results.clear()
        bench.start('echo "$TMPDIR"')
        bench.until(bench.idle)
        folders.add(bench.host.results[0].stdout)
        os.kill(bench.runner.pid, signal.SIGKILL)
        bench.until(lambda: not bench.runner.pid)
    assert len(folders) == 2


def test_a_child_that_doesnt_obey_is_killed_with_its_command(
    bench: Bench, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "OBEY_S", 0.2)
    one = bench.start(f"touch {begun}; echo out; setsid sleep 60", timeout_s=60)
    bench.until(begun.exists)
    folder = bench.runner._folder
    os.kill(bench.runner.pid, signal.SIGSTOP)
    bench.runner.stop_task(Cause.TIMEOUT, grace_s=0.1)
    bench.until(lambda: not bench.runner.pid)
    wait_until(lambda: not alive(f"MTASK_SCRATCH={folder}"), timeout_s=1)
    (result,) = bench.failed
    assert result.error is not None
    assert (result.index, result.error.reason, result.stdout) == (*all_of([one]), Reason.TIMEOUT, "out\n")


def test_a_runner_closed_at_any_moment_leaves_no_process(rng: random.Random) -> None:
    for _ in range(6):
        bench = Bench()
        for _ in range(2):
            bench.start(f"touch $TMPDIR/file; {rng.choice(['true', DEAF.format(begun='/dev/null')])}", 20)
        bench.turn_for(rng.uniform(0, 0.03))
        pid, folder = bench.runner.pid, bench.runner._folder
        bench.runner.close()
        assert not exists(pid)
        assert not alive(f"MTASK_SCRATCH={folder}/")
        assert not Path(folder).exists()

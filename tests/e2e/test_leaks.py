"""Functions that leave memory behind: their process is renewed between two tasks, and nobody notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest

import mtask
from mtask.worker.memory import own_bytes

MB = 10**6
LIMIT_BYTES = 200 * MB
MODULE = """
import os, threading, time
from mtask.worker.memory import own_bytes

kept = []
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def allocate(x: int, size_bytes: int, keep: bool):
    os.write(log, b"%d\\n" % x)
    before_bytes = own_bytes()
    taken = bytearray(os.urandom(4096)) * (size_bytes // 4096)
    if keep:
        kept.append(taken)
    if os.path.exists("threads"):
        threading.Thread(target=time.sleep, args=(600,)).start()
    return os.getpid(), before_bytes, own_bytes()
"""


class Seen(NamedTuple):
    """What a task saw of its process."""

    pid: int
    before_bytes: int
    after_bytes: int


@pytest.fixture
def run(command) -> Callable[..., list[Seen]]:
    """So many tasks, one after the other, which each take so much memory; each must be done at once."""

    def run(count: int, size_bytes: int, *options: str, keep: bool = True) -> list[Seen]:
        command.write("leaky.py", MODULE)
        command.write(
            "t.csv", "x,size_bytes,keep\n" + "".join(f"{x},{size_bytes},{keep}\n" for x in range(count))
        )
        done = command("run", "t.csv", "--call", "leaky:allocate", "--bag", "b", "-j", "1", *options)
        assert done.code == 0, done.err
        with mtask.connect() as mt:
            results = list(mt.bag("b").results())
            assert list(mt.bag("b").attempts()) == []
        assert [result.attempt for result in results] == [1] * count
        assert (command.folder / "log").read_text().split() == [str(x) for x in range(count)], "each once"
        return [Seen(*result.value) for result in results]

    return run


LIMIT = ("--max-memory-per-child", "200MB")


@pytest.mark.parametrize("per_message", ["1", "9"])
def test_a_leaking_function_gets_a_fresh_process_in_time(run, per_message):
    seen = run(9, 60 * MB, *LIMIT, "--per-message", per_message)
    assert all(task.before_bytes < LIMIT_BYTES for task in seen), "none begins in a process that is over it"
    assert max(task.after_bytes for task in seen) > LIMIT_BYTES, "and none is ended because it gets there"
    tasks = Counter(task.pid for task in seen)
    assert 3 <= len(tasks) <= 5
    assert max(tasks.values()) > 1, "a process stays while it holds less"


def test_quick_tasks_that_leak_are_contained_too(run):
    seen = run(800, MB, *LIMIT, "--per-message", "400")
    assert len({task.pid for task in seen}) > 3
    # A process looks at itself every few milliseconds only; within them it takes what it can.
    assert max(task.before_bytes for task in seen) < LIMIT_BYTES + 200 * MB


def test_what_a_task_gives_back_is_no_leak(run):
    seen = run(3, 300 * MB, *LIMIT, "--per-message", "3", keep=False)
    assert all(task.after_bytes > LIMIT_BYTES for task in seen)
    assert len({task.pid for task in seen}) == 1


def test_without_a_limit_the_process_stays(run):
    assert len({task.pid for task in run(4, 100 * MB)}) == 1
    assert own_bytes() > 0


def test_both_limits_may_be_given(run):
    seen = run(6, MB, *LIMIT, "--max-tasks-per-child", "2")
    assert sorted(Counter(task.pid for task in seen).values()) == [2, 2, 2]


def test_a_process_that_should_end_and_does_not_is_killed(run, command, monkeypatch):
    """Python waits for the threads that a function has left behind."""
    monkeypatch.setattr("mtask.worker.feeding.KILL_AFTER_S", 0.2)
    command.write("threads", "")
    assert len({task.pid for task in run(2, 300 * MB, *LIMIT)}) == 2


def test_a_size_that_is_none(command):
    code, _, err = command("worker", "--max-memory-per-child", "much")
    assert (code, "'much' is not a size" in err) == (2, True)

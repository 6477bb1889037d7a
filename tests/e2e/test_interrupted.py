"""Ctrl-C and its like: once, twice, and before anything runs; the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.conftest import signals_as_usual

FUNCTIONS = """
import os, pathlib, time

def add(x: int):
    return x

def until(x: int, file: str = "go"):
    pathlib.Path(f"started-{x}").touch()
    while not os.path.exists(file):
        time.sleep(0.01)
    return x
"""


@pytest.fixture
def command(command):
    command.write("m.py", FUNCTIONS)
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(20)))
    return command


ARGS = ("run", "t.csv", "--call", "m:until", "-j", "2", "--bag", "b")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_lets_running_tasks_end_and_the_same_command_goes_on(command, number):
    process = command.start(*ARGS)
    appear(command.folder / "started-0")
    process.send_signal(number)
    read_until(process.stderr, "stopping: what hasn't started goes back to the queue")
    command.write("go", "")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(command.results("b"))
    assert 1 <= done <= 4
    assert f"interrupted: {done} done, 0 failed, {20 - done} left; the same command goes on" in out
    code, out, err = command(*ARGS)
    assert code == 0
    assert f"going on, {20 - done} of 20 tasks are left" in err
    assert f"20 done ({20 - done} in this run)" in out


def test_twice_stops_at_once_and_costs_no_attempt(command):
    process = command.start(*ARGS)
    appear(command.folder / "started-0")
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "once more stops")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted: 0 done, 0 failed, 20 left" in out
    command.write("go", "")
    assert command(*ARGS).code == 0
    assert {result.attempt for result in command.results("b")} == {1}


def test_before_all_was_read(command):
    process = subprocess.Popen(
        [sys.executable, "-m", "mtask", "submit", "-", "--call", "m:add"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=signals_as_usual,
    )
    command.started.append(process)
    process.stdin.write(b"x\n" + b"1\n" * 500_000)  # returns when most of it was read
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b"interrupted before all tasks were checked and sent; the same command goes on"
    assert command.sent_nothing()


def test_worker_is_told_by_sigterm(command):
    command("submit", "t.csv", "--call", "m:until")
    process = command.start("worker", "-j", "2")
    appear(command.folder / "started-0")
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "stopping")
    command.write("go", "")
    process.communicate(timeout=60)
    assert process.returncode == 0


def appear(path, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.01)


def read_until(stream, text):
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"no line with {text!r}")

"""The worker of a job: a function's process is a copy of it, and yet like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mtask.manager import Manager, connect
from mtask.model import Message, State
from mtask_condor.order import Order
from mtask_condor.outcome import read
from tests.unit.test_start import imported

TASKS = """
import atexit, multiprocessing, os, signal, sys, threading

def say(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")

def seven():
    return 7

def look(x, path):
    if x == 0:
        atexit.register(say, path, "atexit")
        threading.Thread(target=threading.main_thread().join).start()
        print("printed")
        child = multiprocessing.get_context("spawn").Pool(1)
        with child:
            seventh = child.apply(seven)
        return {
            "argv": sys.argv, "main": sorted(vars(sys.modules["__main__"])), "stdin": os.readlink("/proc/self/fd/0"),
            "leads": os.getpgrp() == os.getpid(), "folder": os.getcwd(), "spawned": seventh,
            "signals": [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)],
            "files": sorted(name for fd in os.listdir("/proc/self/fd") if (name := link(fd)).startswith("/")),
            "path": sys.path[:3], "threads": threading.active_count(),
        }
    if x == 1:
        os._exit(3)
    return os.getpid()

def link(fd):
    try:
        return os.readlink("/proc/self/fd/" + fd)
    except OSError:
        return ""
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as made:
        yield made


def job(manager: Manager, folder: Path, **options: object) -> dict[str, str]:
    """The files of a job; returns its environment."""
    (folder / "tasks_of_job.py").write_text(TASKS)
    bag = manager.submit(bag="b", per_message=9, **options)
    (folder / "order.json").write_bytes(msgspec.json.encode(Order(bag=bag.info, path=(str(folder),))))
    (folder / "0.in").write_bytes(Message.of(bag.info, next(manager.table.blocks("b"))).encode())
    (folder / "0.out").touch()
    return os.environ | {"MTASK_NOTICES": "off", "TMPDIR": str(folder)}


def run(folder: Path, env: dict[str, str], *, forks: bool) -> list[dict[str, object]]:
    anew = ["-c", "import mtask_condor.node as n, sys; sys.exit(n.main('0'))"]
    done = subprocess.run(
        [sys.executable, *(["-m", "mtask_condor", "0"] if forks else anew)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return read(folder / "0.out").rows


@pytest.mark.parametrize("forks", [True, False])
def test_a_function_finds_the_same_around_it_in_a_copy_and_in_a_new_process(
    tmp_path, manager, monkeypatch, forks
):
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"x": x, "path": str(tmp_path / "said")} for x in range(4)]
    env = job(manager, tmp_path, tasks=rows, call="tasks_of_job:look", retries=0)
    found, died, *later = run(tmp_path, env, forks=forks)
    assert (died.state, died.exit_code) == (State.FAILED, 3)
    assert (found.state, found.stdout) == (State.DONE, "printed\n"), found.error
    seen = found.value
    files = [
        name for name in seen.pop("files") if not name.startswith((str(tmp_path / "mtask-output"), "/memfd"))
    ]
    assert set(files) <= {"/dev/null", str(tmp_path)}, "nothing of the worker's is open in it"
    assert seen == {
        "argv": ["-c"],
        "main": sorted(set(vars(type(sys)("__main__"))) | set(seen["main"]) & set(ADDED)),
        "stdin": "/dev/null",
        "leads": True,
        "folder": str(tmp_path),
        "spawned": 7,
        "signals": [0, 1, 1],
        "path": seen["path"],
        "threads": seen["threads"],
    }
    assert seen["path"][0] == str(tmp_path)
    assert len({row.value for row in later}) == 1, "the next process goes on"


ADDED = ("__annotations__", "__builtins__", "import_msgspec", "main", "sys")
"""By the program of a new process."""


def test_what_a_function_wants_done_at_the_end_is_done(tmp_path, manager, monkeypatch):
    """Threads are waited for, and exit handlers are called."""
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"x": 0, "path": str(tmp_path / "said")}]
    env = job(manager, tmp_path, tasks=rows, call="tasks_of_job:look")
    (found,) = run(tmp_path, env, forks=True)
    assert found.state is State.DONE, found.error
    assert (tmp_path / "said").read_text() == "atexit\n"


@pytest.mark.parametrize("forks", [True, False])
def test_a_command_finds_the_same_around_it(tmp_path, manager, forks):
    script = """
        readlink /proc/$$/fd/*; grep -E 'SigIgn|SigBlk' /proc/self/status; echo $MTASK_INDEX $MTASK_CPUS
        [ "$(ps -o pgid= $$)" -eq $$ ] && ls -A "$TMPDIR" && touch "$TMPDIR/file"; exit $x
    """
    env = job(manager, tmp_path, tasks=[{"x": x} for x in (0, 3, 0)], shell=script, retries=0)
    rows = sorted(run(tmp_path, env, forks=forks), key=lambda row: row.index)
    assert [row.exit_code for row in rows] == [0, 3, 0]
    for index, row in enumerate(rows):
        stdin, stdout, stderr, *masks, mine = row.stdout.splitlines()
        assert stdin == "/dev/null"
        assert "mtask-output" in stdout
        assert "mtask-output" in stderr
        handled = (
            1 << signal.SIGPIPE - 1
            | 1 << signal.SIGINT - 1
            | 1 << signal.SIGTERM - 1
            | 1 << signal.SIGUSR1 - 1
        )
        assert all(int(mask.split()[1], 16) & handled == 0 for mask in masks), masks
        assert mine == f"{index} 1"
    assert not list(tmp_path.glob("mtask-scratch-*"))


def test_a_job_imports_no_more_than_it_needs():
    """HTCondor starts one for each message: what it imports is paid for each time."""
    modules = imported(
        "from mtask.start import import_msgspec; import_msgspec(); import mtask_condor.node, mtask.worker.supervisor"
    )
    unwanted = {
        "click",
        "rich",
        "sqlite3",
        "htcondor2",
        "hashlib",
        "tomllib",
        "inspect",
        "asyncio",
        "secrets",
        "http",
    }
    assert not modules & unwanted

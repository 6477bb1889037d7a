"""Workers that are killed leave nothing behind that runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtask
from mtask.bag import BagHandle
from tests.chaos.harness import Site, WorkerProcess, exists, wait_for

GONE_S = 5.0

COMMAND = """
    note() { echo $1 >> "$pids"; }
    trap '' TERM
    note $$
    sleep 600 & note $!
    env -i sleep 600 & note $!
    setsid sh -c 'echo $$ >> "$pids"; sleep 600 & echo $! >> "$pids"; wait'
"""
FUNCTION = """
import os, subprocess, time

def note(path, pid):
    with open(path, "a") as file:
        file.write(f"{pid}\\n")

def start_two(pids: str):
    note(pids, os.getpid())
    note(pids, subprocess.Popen(["sleep", "600"]).pid)
    note(pids, subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
    time.sleep(600)

def ends(x: int):
    return x
"""


class Pids:
    """A file in which a task writes the ids of all the processes it has started, and those of these tests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> set[int]:
        return set(map(int, self.path.read_text().split())) if self.path.exists() else set()

    def run(self, count: int) -> None:
        wait_for(lambda: len(self.all()) == count and all(map(exists, self.all())), "all have started")

    def alive(self) -> set[int]:
        return {pid for pid in self.all() if exists(pid)}

    def assert_gone(self) -> None:
        wait_for(lambda: not self.alive(), "nothing is left", timeout_s=GONE_S)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Pids]:
    found = Pids(tmp_path / "pids")
    yield found
    for pid in found.alive():
        os.kill(pid, signal.SIGKILL)


def submit_command(site: Site, pids: Pids, *, bag: str = "commands") -> BagHandle:
    return site.manager.submit([{"pids": str(pids.path)}], shell=COMMAND, bag=bag)


def submit_function(site: Site, name: str, **row: object) -> BagHandle:
    module = site.folder / "starts.py"
    module.write_text(FUNCTION)
    return site.manager.submit([row], call=f"{module}:{name}", bag="functions")


def watchers(worker: int | WorkerProcess) -> set[int]:
    """Processes, zombies too, beside a worker that look after its orphans."""
    pid = worker if isinstance(worker, int) else worker.pid
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == pid and (not any(words) or any(word.endswith(b"orphans.py") for word in words)):
            found.add(int(name))
    return found


def test_commands_and_what_they_started_end_with_a_killed_worker(site: Site, pids: Pids) -> None:
    submit_command(site, pids)
    worker = site.start_worker("-j", "1")
    pids.run(5)
    (watcher,) = watchers(worker)
    worker.kill()
    pids.assert_gone()
    wait_for(lambda: not exists(watcher), "and then the watcher ends itself", timeout_s=GONE_S)


def test_the_scratch_folder_of_a_killed_worker_goes(site: Site, tmp_path: Path) -> None:
    site.manager.submit(
        [{"x": 1}], shell='echo "$MTASK_SCRATCH" > where; touch "$MTASK_SCRATCH/f"; sleep 600'
    )
    site.env["TMPDIR"] = str(tmp_path)
    worker, where = site.start_worker("-j", "1"), site.folder / "where"
    wait_for(lambda: where.exists() and where.read_text(), "it runs")
    scratch = Path(where.read_text().strip())
    wait_for((scratch / "f").exists, "it has put something there")
    worker.kill()
    wait_for(lambda: not scratch.exists(), "its folder is gone", timeout_s=GONE_S)


def test_what_functions_started_ends_with_a_killed_worker(site: Site, pids: Pids) -> None:
    submit_function(site, "start_two", pids=str(pids.path))
    worker = site.start_worker("-j", "1")
    pids.run(3)
    worker.kill()
    pids.assert_gone()


def test_another_worker_of_the_same_machine_is_left_alone(site: Site, pids: Pids, tmp_path: Path) -> None:
    others = Pids(tmp_path / "others")
    victim = site.start_worker("-j", "1", "--max-tasks", "1")
    submit_command(site, pids)
    pids.run(5)
    other = site.start_worker("-j", "1")
    submit_command(site, others, bag="others")
    others.run(5)

    victim.kill()
    pids.assert_gone()
    wait_for(lambda: not watchers(1) & {victim.pid}, "the watcher has ended")
    assert len(others.alive()) == 5
    assert other.alive
    other.kill()
    others.assert_gone()


def test_a_signal_to_all_processes_ends_no_watcher(site: Site, pids: Pids) -> None:
    submit_command(site, pids)
    worker = site.start_worker("-j", "1")
    pids.run(5)
    (watcher,) = watchers(worker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(watcher, number)
    worker.kill()
    pids.assert_gone()


def test_a_worker_that_is_the_task_of_another_ends_with_it_and_so_does_what_it_runs(
    site: Site, pids: Pids
) -> None:
    (site.folder / "inner.csv").write_text(f"pids\n{pids.path}\n")
    url = f"sqlite:///{site.folder}/inner.db"
    inner = (
        f'echo $$ >> "$pids"; exec {sys.executable} -m mtask run inner.csv --shell "$script" '
        f"--queue {url} --table {url} -q"
    )
    site.manager.submit([{"pids": str(pids.path), "script": COMMAND}], shell=inner, bag="outer")
    worker = site.start_worker("-j", "1")
    pids.run(6)
    worker.kill()
    pids.assert_gone()


def test_after_a_normal_end_the_watcher_is_gone_and_what_detached_itself_goes_on(
    site: Site, pids: Pids
) -> None:
    script = "setsid sh -c 'echo $$ >> \"$pids\"; exec sleep 600' > /dev/null 2>&1 & sleep 0.1; exit 0"
    bag = site.manager.submit([{"pids": str(pids.path)}], shell=script, bag="bag")
    worker = site.start_worker("-j", "1")
    (watcher,) = wait_for_watchers(worker)
    wait_for(bag.finished, "the task is done")
    worker.terminate()
    assert worker.exit_code() == 0
    assert not exists(watcher)
    assert len(pids.alive()) == 1


def wait_for_watchers(worker: WorkerProcess) -> set[int]:
    wait_for(lambda: watchers(worker), "its watcher is there")
    return watchers(worker)


def test_a_program_that_goes_on_after_its_worker_has_no_zombie(tmp_path: Path) -> None:
    assert mtask.map(abs, [-1, 2]) == [1, 2]
    with mtask.Executor(1) as executor:
        assert executor.submit(abs, -3).result(30) == 3
        assert len(watchers(os.getpid())) == 1
    assert watchers(os.getpid()) == set()


def test_a_worker_that_is_killed_at_its_very_start_leaves_no_watcher(site: Site) -> None:
    worker = site.start_worker("-j", "1")
    (watcher,) = wait_for_watchers(worker)
    worker.kill()
    wait_for(lambda: not exists(watcher), "it finds that it came too late", timeout_s=GONE_S)


def test_tasks_know_their_worker(site: Site) -> None:
    commands = site.manager.submit([{"x": 1}], shell="echo $MTASK_WORKER", bag="commands")
    (site.folder / "names.py").write_text("import os\n\ndef name(x): return os.environ['MTASK_WORKER']\n")
    functions = site.manager.submit([{"x": 1}], call=f"{site.folder}/names.py:name", bag="functions")
    worker = site.start_worker("-j", "1")
    wait_for(lambda: commands.finished() and functions.finished(), "both are done")
    (command,), (function,) = commands.results(), functions.results()
    assert command.stdout.strip() == function.value == command.worker
    assert str(worker.pid) in command.worker


def test_without_a_process_to_be_had_the_worker_works(tmp_path: Path) -> None:
    code = (
        "import types, mtask, mtask.worker.orphans as orphans\n"
        "orphans.sys = types.SimpleNamespace(executable='/no/such/python')\n"
        "print(mtask.map(abs, [-1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[1]\n", done.stderr

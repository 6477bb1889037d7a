"""What a task saves is found by its next attempt, wherever the worker was told to keep it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mtask.model import State
from mtask.worker.supervisor import Options, Worker
from tests.chaos.harness import Site, check, wait_for

fsspec = pytest.importorskip("fsspec")

FUNCTIONS = """
import os, time
import fsspec
import mtask

def save(x: int, begun: str):
    state = f"{mtask.checkpoint_dir()}/state"
    filesystem, path = fsspec.core.url_to_fs(state)
    if filesystem.exists(path):
        return filesystem.cat_file(path).decode()
    open(begun, "w").close()
    while not mtask.stopping():
        time.sleep(0.01)
    filesystem.pipe_file(path, f"saved {x}".encode())
    time.sleep(60)

def count(x: int):
    state = f"{mtask.checkpoint_dir()}/state"
    with fsspec.open(state, "ab") as file:
        file.write(b"1")
    seen = fsspec.open(state).open().read().decode()
    if len(seen) < 3:
        raise mtask.Retry(0)
    return state

def moves(x: int):
    os.chdir("/")
    return mtask.checkpoint_dir()
"""
COMMAND = """
    place="${MTASK_CHECKPOINT_DIR#file://}"; mkdir -p "$place"
    if [ -e "$place/state" ]; then cat "$place/state"; exit 0; fi
    trap 'echo "saved $x" > "$place/state"; exit 1' TERM
    touch "$begun"; while true; do sleep 0.05; done
"""


@pytest.fixture
def functions(site: Site) -> str:
    path = site.folder / "saves.py"
    path.write_text(FUNCTIONS)
    return str(path)


@pytest.mark.parametrize("kind", ["function", "command"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_another_worker_finds_what_a_drained_one_has_saved_at_a_url(
    site: Site, functions: str, kind: str, slash: str
) -> None:
    what: dict[str, Any] = {"call": f"{functions}:save"} if kind == "function" else {"shell": COMMAND}
    begun, store = site.folder / "begun", site.folder / "store"
    bag = site.manager.submit([{"x": 7, "begun": str(begun)}], bag="bag", retries=0, **what)
    place = ("--checkpoints", f"file://{store}{slash}", "-j", "1")
    first = site.start_worker(*place, "--grace", "3")  # SIGTERM after 1 s
    wait_for(begun.exists, "the task runs")
    first.terminate()
    assert first.exit_code() == 0
    (state,) = store.rglob("state")
    assert state.read_text().strip() == "saved 7"

    second = site.start_worker(*place)
    wait_for(bag.finished, "the second one is done with it")
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    assert "saved 7" in (result.value or result.stdout)
    wait_for(lambda: not state.parent.exists(), "it is removed")
    second.terminate()
    assert second.exit_code() == 0


SLOW_STORE = """
import os, time
from fsspec.implementations.memory import MemoryFileSystem

def rm(self, path, **_):
    with open({folder!r} + "/asked", "a") as file:
        print(os.path.basename(path), file=file)
    while not os.path.exists({folder!r} + "/go_on"):
        time.sleep(0.01)
    time.sleep(0.1)
    with open({folder!r} + "/removed", "a") as file:
        print(os.path.basename(path), file=file)

MemoryFileSystem.rm = rm
"""


@pytest.fixture
def slow_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of notes of a store that is slow to remove, and removes nothing before there is a file `go_on`."""
    folder = site.folder / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW_STORE.format(folder=str(folder)))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return folder


def test_a_worker_ends_when_what_it_has_to_remove_is_removed(site: Site, slow_store: Path) -> None:
    (slow_store / "go_on").touch()
    bag = site.manager.submit([{"x": x} for x in range(5)], run="true", bag="bag")
    options = Options(checkpoints="memory://slow", max_tasks=5)
    Worker(site.manager.queue, site.manager.table, options).run()
    assert (slow_store / "removed").read_text().split() == list("01234")
    assert bag.finished()


@pytest.mark.parametrize("place", ["memory://", "memory://below", "memory:///root/"])
def test_a_place_may_be_the_root_of_a_store(site: Site, functions: str, place: str) -> None:
    """One that ends with its process, here: so all attempts are of one."""
    bag = site.manager.submit([{"x": 1}], call=f"{functions}:count", bag="bag", retries=2)
    Worker(site.manager.queue, site.manager.table, Options(checkpoints=place)).run(until=bag.finished)
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 3)
    assert result.value.startswith(place)


def test_a_store_that_is_slow_to_remove_stops_nothing_else(site: Site, slow_store: Path) -> None:
    bag = site.manager.submit([{"x": x} for x in range(5)], run="true", bag="bag")
    worker = Worker(site.manager.queue, site.manager.table, Options(checkpoints="memory://slow"))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: bag.counts().done == 5, "all are done", timeout_s=10)
        wait_for((slow_store / "asked").exists, "the first is to be removed")
        assert not (slow_store / "removed").exists()
    finally:
        (slow_store / "go_on").touch()
        worker.drain()
        thread.join(10)
    assert not thread.is_alive()


def test_a_task_that_changes_its_directory_has_its_checkpoints_where_the_others_have_them(
    site: Site, functions: str
) -> None:
    bag = site.manager.submit([{"x": 1}], call=f"{functions}:moves", bag="bag")
    site.start_worker("--checkpoints", "store", "-j", "1")
    wait_for(bag.finished, "it is done")
    (result,) = check(bag)
    assert Path(result.value).parents[1] == site.folder / "store"


# -- places where nothing can be saved --------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nosuch://place", "Protocol not known: nosuch"),
        ("oss://container/x", "Install ossfs"),
        ("{folder}/file/below", "Not a directory"),
        ("file://{folder}/file/below", "Not a directory"),
        ("/proc/below", "No such file or directory"),
    ],
)
def test_a_worker_says_at_its_start_that_nothing_can_be_saved(site: Site, place: str, said: str) -> None:
    (site.folder / "file").touch()
    place = place.format(folder=site.folder)
    worker = site.start_worker("--checkpoints", place)
    assert worker.exit_code() == 2
    assert worker.said().startswith(f"mtask: no checkpoint can be saved in {place}: ")
    assert said in worker.said()
    assert "Traceback" not in worker.said()


def test_without_fsspec_it_says_what_to_install(site: Site) -> None:
    code = "import sys; sys.modules['fsspec'] = None; import mtask.cli; mtask.cli.main()"
    command = [sys.executable, "-c", code, "worker", "--checkpoints", "memory://x"]
    done = subprocess.run(command, env=site.env, cwd=site.folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'mtask[urls]'" in done.stderr


def test_a_place_that_can_be_used_is_left_as_it_was(site: Site) -> None:
    store = site.folder / "store"
    for place in (store, f"file://{store}"):
        worker = site.start_worker("--checkpoints", str(place), "--idle-exit", "0", "-j", "1")
        assert worker.exit_code() == 0, worker.said()
        assert os.listdir(store) == []


def test_the_default_place_matters_to_those_only_who_use_it(site: Site, functions: str) -> None:
    (site.folder / ".mtask").mkdir()
    (site.folder / ".mtask" / "checkpoints").touch()
    uses = site.manager.submit([{"x": 1}], call=f"{functions}:moves", bag="uses", retries=0)
    doesnt = site.manager.submit([{"x": 1}], run="true", bag="doesnt")
    site.start_worker("-j", "1")
    wait_for(lambda: uses.finished() and doesnt.finished(), "both have ended")
    assert doesnt.counts().done == 1
    (result,) = check(uses)
    assert result.error is not None
    assert result.error.message.startswith("no checkpoint can be saved in ")
    assert result.error.message.endswith(": Not a directory")

"""Workers that die while they record into Azure's tables, as Azurite has them, over a queue in a file; and an Azurite that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.model import State
from mtask.settings import Urls
from tests.chaos.harness import Site, check, wait_for
from tests.chaos.storm import ALL, Plan, Storm
from tests.servers.azuretable import CONNECTION, Azurite, azurite_in, new_url

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))


@pytest.fixture
def urls(azurite: Azurite, tmp_path: Path) -> Urls:
    """Of a queue in a file, and a table that `mtask init` has made."""
    return made(tmp_path)


def made(folder: Path) -> Urls:
    urls = Urls(f"sqlite:///{folder}/queue.db", new_url())
    done = subprocess.run(
        [sys.executable, "-m", "mtask", "init", urls.queue, "--table", urls.table],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return urls


@pytest.fixture
def site(tmp_path: Path, urls: Urls) -> Iterator[Site]:
    site = Site(tmp_path, urls)
    yield site
    site.close()
    for number, worker in enumerate(site.workers):
        print(f"worker {number} said:\n{worker.said()}")


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    bag = site.submit("work", 1500, lease_s=15, per_message=20, seconds=0.01)
    workers = [site.start_worker("-j", "2") for _ in range(3)]
    wait_for(lambda: all(site.begun(worker) for worker in workers), "all workers work", timeout_s=120)
    workers[0].kill()
    wait_for(bag.finished, "all tasks have ended", timeout_s=120)
    assert [result.value for result in check(bag)] == list(range(1500))
    twice = Counter(begin.task for begin in site.begins())
    killed = site.begun(workers[0])
    assert {task for task, times in twice.items() if times > 1} <= killed
    assert set(twice) == set(range(1500))
    for worker in workers[1:]:
        worker.terminate()
        assert worker.exit_code(timeout_s=60) == 0, worker.said()
    assert list(site.manager.table.dead()) == []


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=200, workers=3, every_s=0.8, kinds=ALL, task_s=0.2, rates={})
    storm = Storm(tmp_path, plan, urls)
    try:
        storm.rage(10)
        storm.calm(timeout_s=120)
        wrongs = storm.wrongs()
        print(storm.figures())
        assert {row.state for bag in storm.bags for row in bag.results()} <= {State.DONE, State.FAILED}
    finally:
        storm.site.close()
    assert wrongs == []


def test_an_azurite_that_is_killed_in_the_middle_and_comes_back(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker keeps what it has, and its leases, and goes on: no task runs twice."""
    with azurite_in(tmp_path_factory.mktemp("mortal")) as server:
        monkeypatch.setenv(CONNECTION, server.connection())
        site = Site(tmp_path, made(tmp_path))
        try:
            bag = site.submit("work", 300, lease_s=60, per_message=10, seconds=0.05)
            worker = site.start_worker("-j", "2")
            wait_for(lambda: bag.counts().done > 20, "some are recorded", timeout_s=120)
            server.stop("table")
            before = len(site.begins())
            wait_for(lambda: "out of reach" in worker.said(), "it says so", timeout_s=60)
            assert worker.alive
            server.start("table")
            wait_for(bag.finished, "it goes on", timeout_s=120)
            assert [result.value for result in check(bag)] == list(range(300))
            assert len(site.begins()) > before
            assert Counter(begin.task for begin in site.begins()) == Counter(range(300))
            worker.terminate()
            assert worker.exit_code(timeout_s=60) == 0, worker.said()
        finally:
            site.close()
            print("\n".join(each.said() for each in site.workers))

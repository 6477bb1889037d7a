"""Workers that die, and a table that goes away: the queue in an SQLite file, the table in Google's emulator of Firestore."""

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
from tests.servers.firestore import new_url
from tests.servers.wire import Wire

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))


@pytest.fixture
def urls(firestore: str, tmp_path: Path) -> Urls:
    """Of a queue and a table that `mtask init` has made."""
    urls = Urls(f"sqlite:///{tmp_path}/mtask.db", new_url())
    done = subprocess.run(
        [sys.executable, "-m", "mtask", "init", urls.queue, "--table", urls.table],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
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
    bag = site.submit("work", 600, lease_s=5, per_message=20, seconds=0.01)
    workers = [site.start_worker("-j", "2") for _ in range(3)]
    wait_for(lambda: all(site.begun(worker) for worker in workers), "all workers work", timeout_s=60)
    workers[0].kill()
    wait_for(bag.finished, "all tasks have ended", timeout_s=90)
    assert [result.value for result in check(bag)] == list(range(600))
    twice = Counter(begin.task for begin in site.begins())
    assert {task for task, times in twice.items() if times > 1} <= site.begun(workers[0])
    assert set(twice) == set(range(600))
    for worker in workers[1:]:
        worker.terminate()
        assert worker.exit_code() == 0, worker.said()
    assert list(site.manager.table.dead()) == []


def test_a_table_that_goes_away_in_the_middle_is_waited_for(site: Site, firestore: str) -> None:
    """Nothing is acknowledged meanwhile, and no task runs twice."""
    wire = Wire(int(firestore.partition(":")[2]))
    site.env["FIRESTORE_EMULATOR_HOST"] = f"127.0.0.1:{wire.port}"
    bag = site.submit("work", 300, lease_s=60, seconds=0.02)
    worker = site.start_worker("-j", "2")
    try:
        wait_for(lambda: bag.counts().done > 5, "it works", timeout_s=60)
        wire.close()
        wait_for(lambda: "out of reach" in worker.said(), "it says so", timeout_s=60)
        assert not bag.finished()
        wire = Wire(int(firestore.partition(":")[2]), at=wire.port)
        wait_for(bag.finished, "it goes on", timeout_s=90)
    finally:
        wire.close()
    check(bag)
    assert Counter(begin.task for begin in site.begins()) == Counter(range(300))


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=200, workers=3, every_s=0.8, kinds=ALL, task_s=0.2, rates={})
    storm = Storm(tmp_path, plan, urls)
    try:
        storm.rage(6)
        storm.calm(timeout_s=90)
        wrongs = storm.wrongs()
        print(storm.figures())
        assert {row.state for bag in storm.bags for row in bag.results()} <= {State.DONE, State.FAILED}
    finally:
        storm.site.close()
    assert wrongs == []

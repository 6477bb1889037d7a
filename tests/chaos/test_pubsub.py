"""Workers and servers that die over Pub/Sub, with SQLite as the table: commands, processes and Google's emulator are the real ones."""

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
from mtask_gcp import PubSubQueue, make_queue
from mtask_gcp.names import Envelope
from tests.chaos.harness import Site, check, wait_for
from tests.chaos.storm import ALL, Plan, Storm
from tests.servers.gcp import Emulator

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))


def urls_at(emulator: Emulator, folder: Path) -> Urls:
    url = emulator.url()
    make_queue(url)
    return Urls(url, f"sqlite:///{folder}/t.db")


@pytest.fixture
def urls(pubsub: Emulator, tmp_path: Path) -> Urls:
    return urls_at(pubsub, tmp_path)


@pytest.fixture
def site(tmp_path: Path, urls: Urls) -> Iterator[Site]:
    yield from _site(tmp_path, urls)


def _site(folder: Path, urls: Urls) -> Iterator[Site]:
    site = Site(folder, urls)
    yield site
    site.close()
    for number, worker in enumerate(site.workers):
        print(f"worker {number} said:\n{worker.said()}")


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    bag = site.submit("work", 400, lease_s=3, per_message=20, seconds=0.01)
    workers = [site.start_worker("-j", "2") for _ in range(3)]
    wait_for(lambda: all(site.begun(worker) for worker in workers), "all workers work", timeout_s=60)
    workers[0].kill()
    wait_for(bag.finished, "all tasks have ended", timeout_s=90)
    assert [result.value for result in check(bag)] == list(range(400))
    twice = Counter(begin.task for begin in site.begins())
    killed = site.begun(workers[0])
    assert {task for task, times in twice.items() if times > 1} <= killed
    assert set(twice) == set(range(400))
    for worker in workers[1:]:
        worker.terminate()
        assert worker.exit_code(timeout_s=40) == 0, worker.said()
    assert list(site.manager.table.dead()) == []


def test_a_task_three_deadlines_long_is_delivered_once_while_others_look_for_it(site: Site) -> None:
    bag = site.submit("work", 1, lease_s=2, seconds=6.5)
    workers = [site.start_worker("-j", "1") for _ in range(2)]
    wait_for(bag.finished, "it has ended", timeout_s=60)
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    assert result.wall_s > 6
    assert len(site.begins()) == 1
    assert not any("lost" in worker.said() for worker in workers)


def test_a_foreign_message_is_set_aside_once(site: Site) -> None:
    queue = site.manager.queue.main
    assert isinstance(queue, PubSubQueue)
    foreign = [Envelope(b"\xff\x00hello"), Envelope(b'{"v": 1, "order": 5}')]
    assert queue._requests.publish(queue.topic, foreign) == 2
    bag = site.submit("work", 3, seconds=0)
    worker = site.start_worker("-j", "1")
    wait_for(bag.finished, "the bag is finished", timeout_s=60)
    table = site.manager.table
    wait_for(lambda: len(list(table.dead())) == 2, "they are set aside")
    assert {dead.body for dead in table.dead()} == {each.body for each in foreign}
    worker.terminate()
    assert worker.exit_code(timeout_s=40) == 0
    assert queue.receive(max_messages=9, lease_s=5, wait_s=0.5) == []


@pytest.fixture
def mortal_site(own_emulator: Emulator, tmp_path: Path) -> Iterator[Site]:
    yield from _site(tmp_path, urls_at(own_emulator, tmp_path))


def test_an_emulator_that_is_killed_and_comes_back_empty(own_emulator: Emulator, mortal_site: Site) -> None:
    """What runs is finished and recorded; `mtask init` and `mtask repair` bring the rest."""
    site = mortal_site
    bag = site.submit("work", 300, lease_s=20, seconds=0.02)
    worker = site.start_worker("-j", "2")
    wait_for(lambda: bag.counts().done > 20, "the bag is under way", timeout_s=60)
    own_emulator.kill()
    wait_for(lambda: "out of reach" in worker.said(), "the worker says so", timeout_s=60)
    own_emulator.start()
    assert "`mtask init` makes it" in _mtask(site, "doctor", code=1)
    assert not bag.finished()
    assert "made " in _mtask(site, "init", site.env["MTASK_QUEUE"], "--table", site.env["MTASK_TABLE"])
    _mtask(site, "repair", "bag")
    wait_for(bag.finished, "it goes on", timeout_s=60)
    assert [result.value for result in check(bag)] == list(range(300))
    assert {begin.task for begin in site.begins()} == set(range(300))
    worker.terminate()
    assert worker.exit_code(timeout_s=40) == 0, worker.said()


def _mtask(site: Site, *args: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mtask", *args],
        cwd=site.folder,
        env=site.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=100, workers=3, every_s=0.6, kinds=ALL, task_s=0.2, rates={})
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

"""Queue and table at Google together, the queue's URL alone being named: over Google's emulators of Pub/Sub and Firestore."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mtask.settings import Urls
from tests.chaos.harness import Site, check, init, wait_for
from tests.chaos.storm import storm_is_survived
from tests.servers.gcp import Emulator

TASKS = 160


@pytest.fixture
def urls(pubsub: Emulator, firestore: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Urls:
    """`mtask init` has made both from MTASK_QUEUE alone."""
    url = pubsub.url()
    monkeypatch.setenv("MTASK_QUEUE", url)
    monkeypatch.delenv("MTASK_TABLE", raising=False)
    init(tmp_path)
    return Urls(url, url.replace("pubsub:", "firestore:"))


@pytest.fixture
def site(site: Site) -> Site:
    del site.env["MTASK_TABLE"]
    return site


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    bag = site.submit("work", TASKS, lease_s=3, per_message=10, seconds=0.03)
    workers = [site.start_worker("-j", "2")]
    wait_for(lambda: site.begun(workers[0]), "the first one works", timeout_s=60)
    workers += [site.start_worker("-j", "2") for _ in range(2)]
    workers[0].kill()
    assert not bag.finished()
    wait_for(bag.finished, "all tasks have ended", timeout_s=90)
    assert [result.value for result in check(bag)] == list(range(TASKS))
    twice = Counter(begin.task for begin in site.begins())
    assert {task for task, times in twice.items() if times > 1} <= site.begun(workers[0])
    assert set(twice) == set(range(TASKS))
    for worker in workers[1:]:
        worker.terminate()
        assert worker.exit_code(timeout_s=40) == 0, worker.said()
    assert list(site.manager.table.dead()) == []


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    storm_is_survived(tmp_path, urls, tasks=60, seconds=4, every_s=0.6)

"""Workers that die over SQS and DynamoDB, as a moto server has them: commands, processes and boto3 are the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.model import State
from mtask.settings import Urls
from tests.chaos.harness import Site, check, wait_for
from tests.chaos.storm import ALL, Plan, Storm

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))


@pytest.fixture
def urls(moto: str, tmp_path: Path) -> Urls:
    """Of a queue and a table that `mtask init` has made."""
    name = f"reads-{uuid.uuid4().hex[:8]}"
    urls = Urls(f"sqs://eu-west-1/{name}", f"dynamodb://eu-west-1/{name}")
    done = subprocess.run(
        [sys.executable, "-m", "mtask", "init", urls.queue],
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
    bag = site.submit("work", 2000, lease_s=10, seconds=0.01)
    workers = [site.start_worker("-j", "2") for _ in range(3)]
    wait_for(lambda: all(site.begun(worker) for worker in workers), "all workers work", timeout_s=60)
    workers[0].kill()
    wait_for(bag.finished, "all tasks have ended", timeout_s=90)
    assert [result.value for result in check(bag)] == list(range(2000))
    twice = Counter(begin.task for begin in site.begins())
    killed = site.begun(workers[0])
    assert {task for task, times in twice.items() if times > 1} <= killed
    assert set(twice) == set(range(2000))
    for worker in workers[1:]:
        worker.terminate()
        assert worker.exit_code() == 0, worker.said()
    assert list(site.manager.table.dead()) == []


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=200, workers=3, every_s=0.8, kinds=ALL, task_s=0.2, rates={})
    storm = Storm(tmp_path, plan, urls)
    try:
        storm.rage(10)
        storm.calm(timeout_s=90)
        wrongs = storm.wrongs()
        print(storm.figures())
        assert {row.state for bag in storm.bags for row in bag.results()} <= {State.DONE, State.FAILED}
    finally:
        storm.site.close()
    assert wrongs == []

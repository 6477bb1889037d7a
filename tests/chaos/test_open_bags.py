"""Open bags over every database, while those die who add to them: commands, workers and servers are the real ones."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import pytest

from mtask.errors import BagNotFoundError
from mtask.settings import Urls
from tests.chaos.harness import Site, check, init, wait_for
from tests.servers.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgres", "aws"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Urls:
    name = f"open-{uuid.uuid4().hex[:8]}"
    if request.param == "sqlite":
        urls = Urls(f"sqlite:///{tmp_path}/t.db", f"sqlite:///{tmp_path}/t.db")
    elif request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = f"{postgres.url}?schema={postgres.schema()}"
        urls = Urls(url, url)
    else:
        request.getfixturevalue("moto")
        urls = Urls(f"sqs://eu-west-1/{name}", f"dynamodb://eu-west-1/{name}")
    if request.param != "sqlite":
        init(tmp_path, urls.queue)
    return urls


def test_workers_die_while_their_tasks_submit_and_each_child_exists_once(site: Site) -> None:
    parents = site.submit("parent", 8, lease_s=5, per_message=1, seconds=0.3)
    first = site.start_worker("-j", "3")

    def children() -> int:
        try:
            return site.manager.bag("children").counts().total
        except BagNotFoundError:
            return 0

    wait_for(children, "a first child is there", timeout_s=60)
    first.kill()
    workers = [site.start_worker("-j", "2") for _ in range(2)]
    wait_for(parents.finished, "all parents have ended", timeout_s=90)
    bag = site.manager.bag("children")
    tasks = [task.params["x"] for task in bag.tasks()]
    assert Counter(tasks) == Counter(range(1000, 1024))
    bag.seal()
    wait_for(bag.finished_all, "all children have ended, and what comes after them", timeout_s=60)
    assert [result.value for result in site.manager.bag("children.then").results()] == [sum(tasks)]
    assert [result.value for result in check(bag)] == tasks
    assert len(site.begins()) > 8  # some parents ran twice
    for worker in workers:
        worker.terminate()
        assert worker.exit_code() == 0, worker.said()
    assert list(site.manager.table.dead()) == []

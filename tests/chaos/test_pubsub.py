"""Long tasks, foreign messages and a server that dies over Pub/Sub, with SQLite as the table. Workers that die: test_gcp.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.model import State
from mtask.registry import ROLES
from mtask.settings import Urls
from mtask_gcp import PubSubQueue, diagnose, make_queue
from mtask_gcp.names import Envelope
from tests.chaos.harness import Site, check, wait_for
from tests.servers.gcp import Emulator


def urls_at(emulator: Emulator, folder: Path) -> Urls:
    url = emulator.url()
    make_queue(url)
    return Urls(url, f"sqlite:///{folder}/t.db")


@pytest.fixture
def urls(pubsub: Emulator, tmp_path: Path) -> Urls:
    return urls_at(pubsub, tmp_path)


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
    with Site(tmp_path, urls_at(own_emulator, tmp_path)) as site:
        yield site


def test_an_emulator_that_is_killed_and_comes_back_empty(own_emulator: Emulator, mortal_site: Site) -> None:
    """What runs is finished and recorded; `mtask init` and `mtask repair` bring the rest."""
    site = mortal_site
    bag = site.submit("work", 120, lease_s=20, seconds=0.02)
    worker = site.start_worker("-j", "2")
    wait_for(lambda: bag.counts().done > 20, "the bag is under way", timeout_s=60)
    own_emulator.kill()
    wait_for(lambda: "out of reach" in worker.said(), "the worker says so", timeout_s=60)
    own_emulator.start()
    url = site.env["MTASK_QUEUE"]
    assert "`mtask init` makes it" in {each.todo for each in diagnose([url], ROLES)}
    assert not bag.finished()
    assert {how for _, how in make_queue(url)} == {"made"}
    bag.repair()
    wait_for(bag.finished, "it goes on", timeout_s=60)
    assert [result.value for result in check(bag)] == list(range(120))
    assert {begin.task for begin in site.begins()} == set(range(120))
    worker.terminate()
    assert worker.exit_code(timeout_s=40) == 0, worker.said()

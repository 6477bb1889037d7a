"""Workers and brokers that die over RabbitMQ, with SQLite as the table: commands, processes and brokers are the real ones.

A task that runs for longer than the broker lets a message be held is started first of all, at a broker of its own, and
looked at last.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mtask.model import State
from mtask.settings import Urls
from mtask_rabbitmq import RabbitQueue, make_queue
from mtask_rabbitmq.sender import Letter
from tests.chaos.harness import Site, check, one_of_three_is_killed, wait_for
from tests.chaos.storm import storm_is_survived
from tests.servers.rabbitmq import CONSUMER_TIMEOUT_S, Broker
from tests.servers.rabbitmq_long import LONG_S, LongTask


@pytest.fixture(autouse=True)
def _meanwhile(long_task: LongTask) -> None:
    """What takes a minute runs while the others do; the last two tests look at it."""


@pytest.fixture
def urls(mortal_rabbitmq: Broker, tmp_path: Path) -> Urls:
    url = mortal_rabbitmq.url()
    make_queue(url)
    return Urls(url, f"sqlite:///{tmp_path}/t.db")


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    one_of_three_is_killed(site, 1000)


def test_a_broker_that_is_killed_and_started_again_loses_nothing(site: Site, mortal_rabbitmq: Broker) -> None:
    mortal_rabbitmq.written_down(site.env["MTASK_QUEUE"])
    bag = site.submit("work", 5000, lease_s=20, seconds=0.002)
    workers = [site.start_worker("-j", "2") for _ in range(2)]
    wait_for(lambda: bag.counts().done > 500, "the bag is under way", timeout_s=60)
    mortal_rabbitmq.kill()
    assert not bag.finished()
    wait_for(
        lambda: all("RabbitMQ" in worker.said() for worker in workers), "the workers say so", timeout_s=60
    )
    mortal_rabbitmq.start()
    wait_for(bag.finished, "all tasks have ended", timeout_s=100)
    results = check(bag)
    assert [result.value for result in results] == list(range(5000))
    assert {result.state for result in results} == {State.DONE}
    assert {begin.task for begin in site.begins()} == set(range(5000))
    for worker in workers:
        assert worker.alive
        worker.terminate()
        assert worker.exit_code(timeout_s=40) == 0, worker.said()
    assert list(site.manager.table.dead()) == []
    queue = site.manager.queue.main
    wait_for(lambda: queue.depth() == (0, 0, 0), "nothing is left over", timeout_s=30)


def test_an_idle_worker_begins_at_once(site: Site) -> None:
    site.start_worker("-j", "1")
    wait_for(lambda: list(site.manager.table.workers()), "it is there")
    bag = site.submit("work", 1, seconds=0)
    wait_for(bag.finished, "it has done it")
    (result,) = check(bag)
    assert result.started_at is not None
    assert result.queued_at is not None
    assert result.started_at - result.queued_at < 3


def test_a_foreign_message_is_set_aside_once(site: Site) -> None:
    queue = site.manager.queue.main
    assert isinstance(queue, RabbitQueue)
    queue.broker.call(queue.broker.send([Letter("", queue.name, b"\xff\x00hello")]))
    bag = site.submit("work", 3, seconds=0)
    site.start_worker("-j", "1")
    wait_for(bag.finished, "the bag is finished", timeout_s=60)
    wait_for(lambda: list(site.manager.table.dead()), "it is set aside")
    assert [dead.body for dead in site.manager.table.dead()] == [b"\xff\x00hello"]
    wait_for(lambda: queue.depth().ready == 0, "and gone")


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    storm_is_survived(tmp_path, urls, tasks=100, seconds=6, every_s=0.6)


def test_what_is_held_for_too_long_is_lost_and_the_broker_says_why(long_task: LongTask) -> None:
    """That the broker does what the next test relies on; and heartbeats of 5 s were answered all the time, by nobody who
    was asked for anything."""
    left_s = long_task.began_s + CONSUMER_TIMEOUT_S - time.monotonic()
    wait_for(long_task.extend, "the channel is closed", timeout_s=max(0.0, left_s) + 30)
    assert long_task.queue.limits.hold_s == CONSUMER_TIMEOUT_S


def test_a_task_longer_than_the_consumer_timeout_runs_once(long_task: LongTask) -> None:
    left_s = long_task.began_s + LONG_S - time.monotonic()
    wait_for(long_task.bag.finished, "it has ended", timeout_s=max(0.0, left_s) + 30)
    (result,) = check(long_task.bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    assert result.wall_s is None or result.wall_s > CONSUMER_TIMEOUT_S
    assert len(long_task.site.begins()) == 1
    (worker,) = {begin.worker for begin in long_task.site.begins()}
    assert worker in {each.pid for each in long_task.site.workers}
    said = "".join(each.said() for each in long_task.site.workers)
    assert "lost" not in said, said

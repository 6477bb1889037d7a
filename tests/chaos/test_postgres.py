"""Workers, and a server, that die: queue and table in one PostgreSQL database."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from mtask.settings import Urls
from tests.chaos.harness import Site, check, init, one_of_three_is_killed, wait_for
from tests.chaos.storm import storm_is_survived
from tests.servers.postgres import Postgres


@pytest.fixture
def urls(postgres: Postgres, tmp_path: Path) -> Urls:
    """Of a schema that `mtask init` has made."""
    url = f"{postgres.url}?schema={postgres.schema()}"
    init(tmp_path, url)
    return Urls(url, url)


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    one_of_three_is_killed(site, 2000, lease_s=5)


@pytest.mark.parametrize("how", ["the server is restarted", "a backend is killed"])
def test_a_server_that_dies_in_the_middle_loses_nothing(site: Site, postgres: Postgres, how: str) -> None:
    """Not even a lease: it is on the disk. So each task runs once."""
    bag = site.submit("work", 1000, lease_s=60, seconds=0.02)
    workers = [site.start_worker("-j", "2") for _ in range(2)]
    wait_for(lambda: any(site.begun(worker) for worker in workers), "a worker works", timeout_s=60)
    if how == "a backend is killed":
        (pid,) = postgres.ask(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'mtask' AND query NOT LIKE 'LISTEN%'"
            " AND backend_start > (SELECT min(backend_start) FROM pg_stat_activity) ORDER BY backend_start DESC LIMIT 1"
        )[0]
        os.kill(pid, signal.SIGKILL)
    else:
        postgres.stop()
        wait_for(
            lambda: any("no connection" in worker.said() or "lost" in worker.said() for worker in workers),
            "a worker notices",
            timeout_s=60,
        )
        postgres.start()
    wait_for(lambda: _ended(site), "all tasks have ended", timeout_s=90)
    check(bag)
    assert Counter(begin.task for begin in site.begins()) == Counter(range(1000))
    for worker in workers:
        assert worker.alive, worker.said()
        worker.terminate()
        assert worker.exit_code() == 0, worker.said()
    assert site.manager.queue.depth() == (0, 0, 0)


def _ended(site: Site) -> bool:
    from mtask.errors import UnavailableError

    try:
        return all(handle.finished() for handle in [site.manager.bag("bag")])
    except UnavailableError:
        return False


def test_sixteen_workers_on_one_database(site: Site, postgres: Postgres) -> None:
    """No deadlock, and no task twice."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"
    before = postgres.ask(deadlocks)
    workers = [site.start_worker("-j", "1") for _ in range(16)]
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    wait_for(lambda: postgres.ask(running) == [(16,)], "all workers wait", timeout_s=90)
    bags = [
        site.submit("work", 800, bag=name, lease_s=60, seconds=0.01, per_message=each)
        for name, each in (("bag", 2), ("other", 20))
    ]
    wait_for(lambda: all(bag.finished() for bag in bags), "all tasks have ended", timeout_s=90)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.exit_code(timeout_s=60) == 0, worker.said()
        assert "deadlock" not in worker.said()
    for bag in bags:
        check(bag)
    assert Counter(begin.task for begin in site.begins()) == Counter([*range(800), *range(800)])
    assert {begin.worker for begin in site.begins()} == {worker.pid for worker in workers}
    assert postgres.ask(deadlocks) == before


def test_a_foreign_message_is_set_aside_once(site: Site, postgres: Postgres, urls: Urls) -> None:
    bag = site.submit("work", 10)
    schema = urls.queue.partition("schema=")[2]
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for body in (b"\x00not JSON\xff", b'{"v": 1}'):
            query = f"INSERT INTO {schema}.message (lane, visible_at, body) VALUES ('', 0, %s)"
            connection.execute(query.encode(), (body,))
    worker = site.start_worker("-j", "1", "--idle-exit", "1s")
    assert worker.exit_code(timeout_s=60) == 0, worker.said()
    check(bag)
    dead = list(site.manager.table.dead())
    assert sorted(message.body for message in dead) == [b"\x00not JSON\xff", b'{"v": 1}']
    assert site.manager.queue.depth() == (0, 0, 0)


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    storm_is_survived(tmp_path, urls, tasks=200, seconds=8)

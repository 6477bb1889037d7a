"""Workers that die over Azure's queue and table, as Azurite has them: commands and processes are the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.model import State
from mtask.settings import Urls
from mtask_azure import table_beside
from tests.chaos.harness import Site, check, wait_for
from tests.chaos.storm import ALL, Plan, Storm
from tests.servers.azure import ACCOUNT, CONNECTION, SERVICES, Azurite, Servers, azurite_in, point_at
from tests.servers.azureproxy import Answer, Request, error, proxy_to, table_error

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))


@pytest.fixture
def urls(azurite: Azurite, azurite_tables: Servers, tmp_path: Path) -> Urls:
    """Of a queue, and the table beside it, that `mtask init` has made."""
    return made(f"azureq://{ACCOUNT}/{azurite.name()}", tmp_path)


def made(queue: str, folder: Path) -> Urls:
    urls = Urls(queue, table_beside(queue))
    done = subprocess.run(
        [sys.executable, "-m", "mtask", "init", queue],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("queue", "poison queue", "table", "container"):
        assert f"{'made':<10} {kind} " in done.stdout
    return urls


@pytest.fixture
def site(tmp_path: Path, urls: Urls) -> Iterator[Site]:
    site = Site(tmp_path, urls)
    del site.env["MTASK_TABLE"]  # workers find it beside the queue
    yield site
    site.close()
    for number, worker in enumerate(site.workers):
        print(f"worker {number} said:\n{worker.said()}")


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    bag = site.submit("work", 400, lease_s=10, per_message=20, seconds=0.01)
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
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "nothing is left over", timeout_s=30)


def test_a_foreign_message_is_set_aside_and_an_idle_worker_begins_soon(site: Site, azurite: Azurite) -> None:
    azurite.client(site.manager.queue.main.address.url).send_message("<hello> 🦠")
    worker = site.start_worker("-j", "1")
    wait_for(lambda: list(site.manager.table.dead()), "it is set aside", timeout_s=60)
    assert [dead.body for dead in site.manager.table.dead()] == ["<hello> 🦠".encode()]
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "and gone")
    bag = site.submit("work", 1, seconds=0)
    wait_for(bag.finished, "it has done it", timeout_s=30)
    (result,) = check(bag)
    assert result.started_at is not None
    assert result.queued_at is not None
    assert result.started_at - result.queued_at < 8  # the longest pause is 5 s and a quarter
    worker.terminate()
    assert worker.exit_code(timeout_s=20) == 0, "it waits for no end of a pause"


def test_throttling_is_waited_out_with_one_warning(site: Site, azurite: Azurite) -> None:
    throttled: list[str] = []
    enough, recording = threading.Event(), threading.Event()

    def throttle(request: Request) -> Answer | None:
        if enough.is_set() or request.operation not in ("Get Messages", "Delete Message"):
            return None
        throttled.append(request.operation)
        return error(503, "ServerBusy", "The server is busy.")

    def throttle_transactions(request: Request) -> Answer | None:
        if not request.path.endswith("$batch") or recording.is_set():
            return None
        throttled.append("transaction")
        if throttled.count("transaction") > 3:
            recording.set()
        return table_error(503, "ServerBusy", "The server is busy.")

    bag = site.submit("work", 40, lease_s=30)
    with (
        proxy_to(azurite.url) as queue,
        queue.rule(throttle),
        proxy_to(azurite.servers.url("table")) as table,
        table.rule(throttle_transactions),
    ):
        site.env[CONNECTION] = azurite.connection(queue=queue.url, table=table.url)
        worker = site.start_worker("-j", "2")
        wait_for(lambda: len(throttled) > 5, "it is throttled again and again", timeout_s=60)
        enough.set()
        wait_for(bag.finished, "it goes on", timeout_s=90)
        check(bag)
        worker.terminate()
        assert worker.exit_code(timeout_s=40) == 0, worker.said()
    assert recording.is_set()
    warnings = [line for line in worker.said().splitlines() if "ServerBusy" in line]
    assert 1 <= len(warnings) <= 2, worker.said()  # the queue's, and the table's
    assert Counter(begin.task for begin in site.begins()) == Counter(range(40))


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=80, workers=3, every_s=0.8, kinds=ALL, task_s=0.2, rates={})
    storm = Storm(tmp_path, plan, urls)
    try:
        storm.rage(4)
        storm.calm(timeout_s=90)
        wrongs = storm.wrongs()
        print(storm.figures())
        assert {row.state for bag in storm.bags for row in bag.results()} <= {State.DONE, State.FAILED}
    finally:
        storm.site.close()
    assert wrongs == []


def test_a_table_that_is_away_for_a_while(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker keeps what it has, and its leases, and goes on: no task runs twice."""
    with azurite_in(tmp_path_factory.mktemp("mortal")) as server:
        for service in SERVICES:
            server.start(service)
        point_at(server.connection(), monkeypatch)
        site = Site(tmp_path, made(f"azureq://{ACCOUNT}/reads", tmp_path))
        try:
            bag = site.submit("work", 120, lease_s=60, per_message=10, seconds=0.05)
            worker = site.start_worker("-j", "2")
            wait_for(lambda: bag.counts().done > 20, "some are recorded", timeout_s=120)
            server.stop("table")
            before = len(site.begins())
            wait_for(lambda: "out of reach" in worker.said(), "it says so", timeout_s=60)
            assert worker.alive
            server.start("table")
            wait_for(bag.finished, "it goes on", timeout_s=120)
            assert [result.value for result in check(bag)] == list(range(120))
            assert len(site.begins()) > before
            assert Counter(begin.task for begin in site.begins()) == Counter(range(120))
            worker.terminate()
            assert worker.exit_code(timeout_s=60) == 0, worker.said()
        finally:
            site.close()
            print("\n".join(each.said() for each in site.workers))

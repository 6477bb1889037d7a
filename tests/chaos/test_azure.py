"""Workers that die over Azure's queue and table, as Azurite has them: commands and processes are the real ones."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from mtask.settings import Urls
from mtask_azure import table_beside
from tests.chaos.harness import Site, check, init, one_of_three_is_killed, wait_for
from tests.chaos.storm import storm_is_survived
from tests.servers.azure import ACCOUNT, CONNECTION, SERVICES, Azurite, Servers, azurite_in, point_at
from tests.servers.azureproxy import Answer, Request, error, proxy_to, table_error


@pytest.fixture
def urls(azurite: Azurite, azurite_tables: Servers, tmp_path: Path) -> Urls:
    """Of a queue, and the table beside it, that `mtask init` has made."""
    return made(f"azureq://{ACCOUNT}/{azurite.name()}", tmp_path)


def made(queue: str, folder: Path) -> Urls:
    urls = Urls(queue, table_beside(queue))
    said = init(folder, queue)
    for kind in ("queue", "poison queue", "table", "container"):
        assert f"{'made':<10} {kind} " in said
    return urls


@pytest.fixture
def site(site: Site) -> Site:
    del site.env["MTASK_TABLE"]  # workers find it beside the queue
    return site


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    one_of_three_is_killed(site, 400, per_message=20)
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
    storm_is_survived(tmp_path, urls, tasks=80, seconds=4)


def test_a_table_that_is_away_for_a_while(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker keeps what it has, and its leases, and goes on: no task runs twice."""
    with azurite_in(tmp_path_factory.mktemp("mortal")) as server:
        for service in SERVICES:
            server.start(service)
        point_at(server.connection(), monkeypatch)
        with Site(tmp_path, made(f"azureq://{ACCOUNT}/reads", tmp_path)) as site:
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

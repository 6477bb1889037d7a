"""Workers that die over SQS and DynamoDB, as a moto server has them: commands, processes and boto3 are the real ones."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.settings import Urls
from tests.chaos.harness import Site, check, init, one_of_three_is_killed, wait_for
from tests.chaos.storm import storm_is_survived
from tests.servers.proxy import Answer, Proxy, Request, error, proxy_to


@pytest.fixture
def urls(moto: str, tmp_path: Path) -> Urls:
    """Of a queue and a table that `mtask init` has made."""
    name = f"reads-{uuid.uuid4().hex[:8]}"
    urls = Urls(f"sqs://eu-west-1/{name}", f"dynamodb://eu-west-1/{name}")
    init(tmp_path, urls.queue)
    return urls


def test_of_three_workers_one_is_killed_and_all_rows_are_right(site: Site) -> None:
    one_of_three_is_killed(site, 2000, lease_s=15, per_message=20)


@pytest.fixture
def proxied(site: Site, moto: str) -> Iterator[Proxy]:
    """Between the workers, with credentials of a file, and the server."""
    with proxy_to(moto) as (proxy, url):
        site.env["AWS_ENDPOINT_URL"] = url
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del site.env[name]
        site.env["AWS_SHARED_CREDENTIALS_FILE"] = str(site.folder / "credentials")
        yield proxy


def put_credentials(site: Site, key: str) -> None:
    new = site.folder / "credentials.new"
    new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
    new.rename(site.folder / "credentials")


def test_credentials_that_expire_in_a_run_are_waited_for(site: Site, proxied: Proxy) -> None:
    put_credentials(site, "AKIAOLD")
    expired = threading.Event()
    refused: list[str] = []

    def refuse_the_old(request: Request) -> Answer | None:
        if not expired.is_set() or "AKIAOLD" not in request.headers["authorization"]:
            return None
        refused.append(request.operation)
        return error("ExpiredToken", "The security token included in the request is expired", status=403)

    bag = site.submit("work", 60, lease_s=30, seconds=0.05)
    with proxied.rule(refuse_the_old):
        worker = site.start_worker("-j", "2")
        wait_for(lambda: len(site.begins()) > 5, "it works", timeout_s=60)
        expired.set()
        wait_for(lambda: {"ReceiveMessage", "PutItem"} & set(refused), "it is refused", timeout_s=60)
        wait_for(lambda: "credentials have expired" in worker.said(), "it says so", timeout_s=60)
        assert not bag.finished()
        assert worker.alive
        put_credentials(site, "AKIANEW")
        wait_for(bag.finished, "it goes on", timeout_s=90)
    check(bag)
    assert Counter(begin.task for begin in site.begins()) == Counter(range(60))
    worker.terminate()
    assert worker.exit_code(timeout_s=40) == 0, worker.said()


def test_throttling_is_waited_out_with_one_warning(site: Site, proxied: Proxy) -> None:
    put_credentials(site, "AKIAOLD")
    throttled: list[str] = []
    enough = threading.Event()

    def throttle(request: Request) -> Answer | None:
        if enough.is_set() or request.operation not in ("ReceiveMessage", "UpdateItem"):
            return None
        throttled.append(request.operation)
        return error("ThrottlingException", "Rate exceeded")

    bag = site.submit("work", 40, lease_s=30)
    with proxied.rule(throttle):
        worker = site.start_worker("-j", "2")
        wait_for(lambda: len(throttled) > 8, "it is throttled again and again", timeout_s=60)
        enough.set()
        wait_for(bag.finished, "it goes on", timeout_s=90)
    check(bag)
    warnings = [line for line in worker.said().splitlines() if "ThrottlingException" in line]
    assert 1 <= len(warnings) <= 2, worker.said()  # the queue's, and the table's
    assert Counter(begin.task for begin in site.begins()) == Counter(range(40))


def test_a_storm(tmp_path: Path, urls: Urls) -> None:
    storm_is_survived(tmp_path, urls, tasks=200, seconds=10)

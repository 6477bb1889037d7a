"""A table that goes away: the queue in an SQLite file, the table in Google's emulator of Firestore. Workers that die: test_gcp.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mtask.settings import Urls
from tests.chaos.harness import Site, check, init, wait_for
from tests.servers.firestore import new_url
from tests.servers.wire import Wire


@pytest.fixture
def urls(firestore: str, tmp_path: Path) -> Urls:
    """Of a queue and a table that `mtask init` has made."""
    urls = Urls(f"sqlite:///{tmp_path}/mtask.db", new_url())
    init(tmp_path, urls.queue, "--table", urls.table)
    return urls


def test_a_table_that_goes_away_in_the_middle_is_waited_for(site: Site, firestore: str) -> None:
    """Nothing is acknowledged meanwhile, and no task runs twice."""
    wire = Wire(int(firestore.partition(":")[2]))
    site.env["FIRESTORE_EMULATOR_HOST"] = f"127.0.0.1:{wire.port}"
    bag = site.submit("work", 300, lease_s=60, seconds=0.02)
    worker = site.start_worker("-j", "2")
    try:
        wait_for(lambda: bag.counts().done > 5, "it works", timeout_s=60)
        wire.close()
        wait_for(lambda: "out of reach" in worker.said(), "it says so", timeout_s=60)
        assert not bag.finished()
        wire = Wire(int(firestore.partition(":")[2]), at=wire.port)
        wait_for(bag.finished, "it goes on", timeout_s=90)
    finally:
        wire.close()
    check(bag)
    assert Counter(begin.task for begin in site.begins()) == Counter(range(300))

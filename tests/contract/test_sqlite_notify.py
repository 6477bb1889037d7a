"""Who waits for a message in an SQLite file wakes when one is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mtask.testing.samples import a_bag, a_done, a_message
from mtask_sqlite import SqliteQueue, open_queue, open_table
from mtask_sqlite.notify import Watch


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mtask.db"


def soon(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.1, action)
    thread.start()
    return thread


@pytest.mark.parametrize("does", ["send", "send later", "release", "both at once"])
def test_a_watch_ends_when_anybody_has_sent_something(queue: SqliteQueue, url: str, does: str) -> None:
    with closing(open_queue(url)) as other, closing(open_table(url)) as table:
        other.send([a_message(0)])
        (delivery,) = other.receive(max_messages=1, lease_s=60, wait_s=0)

        def act() -> None:
            if does == "release":
                other.release([delivery])
            elif does == "both at once":
                with table.transaction(other):
                    other.send([a_message(1)])
                    table.create_bag(a_bag())
            else:
                other.send([a_message(1)], delay_s=60 * (does == "send later"))

        with closing(Watch(queue.database.bell)) as watch:
            assert watch.works
            began_s = time.monotonic()
            thread = soon(act)
            watch.wait(60)
            thread.join()
            assert 0.05 < time.monotonic() - began_s < 30


def test_a_watch_ends_for_nothing_else(queue: SqliteQueue, url: str) -> None:
    with closing(open_table(url)) as table, closing(Watch(queue.database.bell)) as watch:
        table.create_bag(a_bag())
        table.record([a_done(0)])
        began_s = time.monotonic()
        watch.wait(0.1)
        assert time.monotonic() - began_s > 0.09


def test_a_watch_ends_in_time_without_one(queue: SqliteQueue) -> None:
    with closing(Watch(queue.database.bell)) as watch:
        began_s = time.monotonic()
        watch.wait(0.1)
        assert 0.09 < time.monotonic() - began_s < 30


@pytest.mark.parametrize("works", [True, False])
def test_a_message_ends_the_wait(
    queue: SqliteQueue, url: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not works:  # as on another system, or with too many watches
        monkeypatch.setattr(Watch, "works", False)
    with closing(open_queue(url)) as other:
        began_s = time.monotonic()
        thread = soon(lambda: other.send([a_message(0)]))
        assert len(queue.receive(max_messages=1, lease_s=60, wait_s=60)) == 1
        thread.join()
        assert time.monotonic() - began_s < 30


def test_a_delay_ends_the_wait_without_a_write(queue: SqliteQueue) -> None:
    queue.send([a_message(0)], delay_s=0.2)
    assert len(queue.receive(max_messages=1, lease_s=60, wait_s=60)) == 1


def test_a_watch_of_what_isnt_there_says_so(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path / "none.db"))
    assert not watch.works
    watch.close()


@pytest.mark.parametrize("works", [True, False])
def test_one_that_waits_can_be_woken(
    queue: SqliteQueue, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not works:
        monkeypatch.setattr(Watch, "works", False)
    began_s = time.monotonic()
    thread = soon(queue.wake)
    assert queue.receive(max_messages=1, lease_s=60, wait_s=60) == []
    thread.join()
    assert 0.05 < time.monotonic() - began_s < 30
    queue.send([a_message(0)])
    assert len(queue.receive(max_messages=1, lease_s=60, wait_s=60)) == 1

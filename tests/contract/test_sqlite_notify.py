"""Who waits for a message in an SQLite file wakes when one is sent."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mtask.errors import BackendError
from mtask.model import Delivery
from mtask.testing.samples import a_bag, a_done, a_message
from mtask_sqlite import Database, SqliteQueue, open_queue, open_table
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


# -- handed over within a process -----------------------------------------------------------------------


@pytest.fixture
def other(queue: SqliteQueue) -> Iterator[SqliteQueue]:
    with closing(SqliteQueue(Database(queue.database.path))) as other:  # as if in another process
        yield other


class Waiting:
    """A `receive` in a thread of its own; made when it waits."""

    def __init__(self, queue: SqliteQueue, *, lease_s: float = 60) -> None:
        self.taken: list[Delivery] = []
        self._thread = threading.Thread(
            target=lambda: self.taken.extend(queue.receive(max_messages=2, lease_s=lease_s, wait_s=60))
        )
        self._thread.start()
        deadline_s = time.monotonic() + 30
        while not queue._waiters:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    def end(self) -> list[Delivery]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.taken


def test_one_that_waits_is_given_what_is_sent(
    queue: SqliteQueue, other: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(queue)
    monkeypatch.setattr(queue, "_take", None)  # it needs no transaction of its own
    queue.send([a_message(number) for number in range(3)])
    taken = waiting.end()
    assert [(each.body, each.deliveries) for each in taken] == [(a_message(n).encode(), 1) for n in (0, 1)]
    assert queue.depth() == (1, 2, 0)
    assert [each.body for each in other.receive(max_messages=9, lease_s=60, wait_s=0)] == [
        a_message(2).encode()
    ]
    assert queue.extend(taken[:1], lease_s=60).lost == []
    queue.delete(taken[1:])
    assert queue.depth() == (0, 2, 0)


def test_the_lease_of_what_is_given_runs_out(queue: SqliteQueue, other: SqliteQueue) -> None:
    waiting = Waiting(queue, lease_s=0.2)
    queue.send([a_message(0)])
    (given,) = waiting.end()
    (again,) = other.receive(max_messages=1, lease_s=60, wait_s=30)
    assert (again.body, again.deliveries) == (given.body, 2)
    assert queue.extend([given], lease_s=60).lost == [given]


def test_a_send_that_fails_leaves_it_waiting(queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(queue)
    with monkeypatch.context() as patch, pytest.raises(BackendError):
        patch.setattr(queue, "_insert", lambda connection, *_: connection.execute("no statement"))
        queue.send([a_message(0)])
    queue.send([a_message(1)])
    assert [each.body for each in waiting.end()] == [a_message(1).encode()]


def test_nothing_is_given_that_may_be_undone(queue: SqliteQueue, url: str) -> None:
    waiting = Waiting(queue)
    with closing(open_table(url)) as table, pytest.raises(ZeroDivisionError), table.transaction(queue):
        queue.send([a_message(0)])
        raise ZeroDivisionError
    assert not waiting.taken
    queue.send([a_message(1)])
    assert [each.body for each in waiting.end()] == [a_message(1).encode()]


class Interrupted(deque[Any]):
    """Ctrl-C arrives in the main thread just after it has taken something out."""

    def popleft(self) -> Any:
        return self._interrupted(super().popleft())

    def remove(self, item: Any) -> None:
        self._interrupted(super().remove(item))

    @staticmethod
    def _interrupted(taken: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return taken


def test_who_is_interrupted_while_it_sends_leaves_nobody_waiting_for_ever(queue: SqliteQueue) -> None:
    queue._waiters = Interrupted()
    waiting = Waiting(queue)
    with pytest.raises(KeyboardInterrupt):
        queue.send([a_message(0)])
    queue._waiters = deque()
    queue.send([a_message(1)])
    assert [each.body for each in waiting.end()] == [a_message(1).encode()]


def test_one_that_waits_is_not_kept_by_a_send_that_waits_for_its_turn(queue: SqliteQueue) -> None:
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, queue.database.bell]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = Waiting(queue)
        sending = threading.Thread(target=queue.send, args=([a_message(0)],))
        sending.start()
        began_s = time.monotonic()
        while not queue.database._turn_here.locked():
            assert time.monotonic() < began_s + 30
            time.sleep(0.001)
        queue.wake()
        assert waiting.end() == [], "though the turn is still another one's"
        assert sending.is_alive()
        holder.stdin.close()
        sending.join(30)
    assert [each.body for each in queue.receive(max_messages=9, lease_s=60, wait_s=30)] == [
        a_message(0).encode()
    ]

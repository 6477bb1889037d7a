"""What only a server can do: wake who waits, go away, cut connections, lock. Where it is and who may use it:
test_postgres_places.py."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from mtask.errors import (
    BackendError,
    UnavailableError,
)
from mtask.model import Counts, Delivery, Result, State
from mtask.testing.samples import a_bag, a_done, a_failed, a_message, a_portion, index_of, messages
from mtask_postgres import Database, PostgresQueue, PostgresTable, open_queue, open_table
from mtask_postgres.address import address_of
from mtask_postgres.database import Connection, connect
from tests.servers.postgres import Postgres
from tests.unit.worker_kit import wait_until

PATIENCE_S = 30.0


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new()


@pytest.fixture
def table(table: PostgresTable) -> PostgresTable:
    table.create_bag(a_bag(total=10))
    return table


def take(queue: PostgresQueue, *, wait_s: float = 0.0, lease_s: float = 600.0) -> list[Delivery]:
    return queue.receive(max_messages=100, lease_s=lease_s, wait_s=wait_s)


def persist(action: Callable[[], object]) -> int:
    """As the engine does while a server is away; returns how often it was."""
    failed, deadline = 0, time.monotonic() + PATIENCE_S
    while True:
        try:
            action()
            return failed
        except UnavailableError:
            assert time.monotonic() < deadline
            failed += 1
            time.sleep(0.02)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits doesn't look by himself."""
    monkeypatch.setattr("mtask_postgres.queue._LOOK_S", 10 * PATIENCE_S)


def in_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def joined_s(thread: threading.Thread) -> float:
    """How long that took."""
    began_s = time.monotonic()
    thread.join()
    return time.monotonic() - began_s


# -- being woken ----------------------------------------------------------------------------------------


def test_an_idle_worker_starts_within_50_ms(url: str, queue: PostgresQueue) -> None:
    with closing(PostgresQueue(Database(address_of(url)))) as sender:  # as if in another process
        queue.database.bell._start()
        wait_until(lambda: queue.database.bell.listens)
        waits_s = []
        for _ in range(7):
            returned_s: list[float] = []
            thread = in_background(
                lambda at=returned_s: (take(queue, wait_s=10), at.append(time.monotonic()))  # type: ignore[misc]
            )
            time.sleep(0.1)  # until it waits, somewhere inside
            sent_s = time.monotonic()
            sender.send([a_message()])
            thread.join()
            waits_s.append(returned_s[0] - sent_s)
    assert sorted(waits_s)[2] < 0.05, waits_s  # not of all: the machine may be busy


def test_who_waits_asks_the_server_about_once_a_second(postgres: Postgres, queue: PostgresQueue) -> None:
    queue.database.bell._start()
    wait_until(lambda: queue.database.bell.listens)
    asked = []
    real = queue._take
    queue._take = lambda *args: (asked.append(1), real(*args))[1]  # type: ignore[method-assign,func-returns-value]
    take(queue, wait_s=2.5)
    assert 3 <= len(asked) <= 4


@pytest.mark.usefixtures("patient")
def test_a_release_in_another_process_is_heard(url: str, queue: PostgresQueue) -> None:
    with closing(PostgresQueue(Database(address_of(url)))) as other:
        other.send([a_message(3)])
        held = take(other)
        taken: list[Delivery] = []
        thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
        wait_until(lambda: queue.database.bell.listens)
        other.release(held)
        assert joined_s(thread) < PATIENCE_S / 2
    assert [index_of(each) for each in taken] == [3]


@pytest.mark.usefixtures("patient")
def test_who_waits_at_one_lane_hears_of_those_that_were_looked_at(url: str, queue: PostgresQueue) -> None:
    queue.database.bell._start()
    wait_until(lambda: queue.database.bell.listens)
    with (
        closing(PostgresQueue(Database(address_of(url)))) as sender,
        closing(sender.lane("a")) as to_a,
        closing(sender.lane("b")) as to_b,
        closing(queue.lane("a")) as a,
        closing(queue.lane("b")) as b,
    ):
        for between in (True, False):  # the look and the wait
            assert take(a) == []
            if between:
                to_a.send([a_message()])
                wait_until(lambda: a._another_rang() or b._another_rang())
            began_s = time.monotonic()
            thread = in_background(lambda: take(b, wait_s=PATIENCE_S))
            if not between:
                to_a.send([a_message()])
            thread.join()
            assert time.monotonic() - began_s < PATIENCE_S / 2
            assert len(take(a)) == 1
        assert take(queue) == []
        taken: list[Delivery] = []
        thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
        to_b.send([a_message()])  # nobody has looked there
        queue.send([a_message(5)])
        thread.join()
        assert [index_of(each) for each in taken] == [5]


def test_a_waiter_that_is_woken_or_closed_returns(url: str) -> None:
    queue = open_queue(url)
    started_s = time.monotonic()
    thread = in_background(lambda: take(queue, wait_s=PATIENCE_S))
    wait_until(lambda: queue.database.bell.listens)
    queue.wake()
    thread.join()
    assert time.monotonic() - started_s < PATIENCE_S / 2
    queue.close()
    with pytest.raises(BackendError, match="is closed"):
        take(queue)
    assert not [thread for thread in threading.enumerate() if thread.name == "postgres-listen"]


# -- servers that go away -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT], ids=["immediate", "fast"])
def test_a_restart_in_the_middle_is_survived(
    postgres: Postgres, queue: PostgresQueue, table: PostgresTable, how: int
) -> None:
    queue.send(messages(3))
    (held,) = queue.receive(max_messages=1, lease_s=600, wait_s=0)
    table.record([a_done(0), a_failed(1)])
    taken: list[Delivery] = []
    with closing(queue.lane("later")) as lane:
        thread = in_background(lambda: persist(lambda: taken.extend(take(lane, wait_s=PATIENCE_S))))
        wait_until(lambda: queue.database.bell.listens)
        postgres.stop(how)
        for call in (lambda: take(queue), lambda: table.counts("bag"), lambda: queue.delete([held])):
            with pytest.raises(UnavailableError):
                call()
        postgres.start()
        assert table.counts("bag") == Counts(total=10, done=1, failed=1)
        assert len(queue.extend([held], lease_s=600).extended) == 1
        assert {index_of(each) for each in take(queue)} == {1, 2}
        persist(lambda: lane.send([a_message(9)]))
        thread.join()
    assert [index_of(each) for each in taken] == [9]


def test_a_backend_that_is_killed_takes_nothing_with_it(
    postgres: Postgres, queue: PostgresQueue, table: PostgresTable
) -> None:
    """The server ends all connections then, and begins anew."""
    table.record([a_done(0)])
    with pytest.raises(UnavailableError), table.transaction(queue):
        queue.send([a_message()])
        table.record([a_done(1)])
        with queue.database.use() as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        for _ in range(1000):  # until it is dead
            table.record([a_done(2)])
    persist(lambda: table.counts("bag"))
    assert table.counts("bag").done == 1
    assert take(queue) == []
    assert postgres.ask("SELECT 1") == [(1,)]


def test_connections_that_the_server_cuts_when_they_are_idle(
    postgres: Postgres, queue: PostgresQueue, table: PostgresTable
) -> None:
    with (
        postgres.settings(idle_session_timeout="300ms"),
        closing(PostgresQueue(Database(queue.database.address))) as cut,
    ):
        for number in range(3):
            cut.send([a_message(number)])
            assert len(take(cut)) == 1
            time.sleep(0.5)  # as long as it takes to be cut
        taken: list[Delivery] = []
        thread = in_background(lambda: taken.extend(take(cut, wait_s=PATIENCE_S)))
        time.sleep(0.5)  # likewise, of what listens
        queue.send([a_message(9)])
        thread.join()
    assert [index_of(each) for each in taken] == [9]


def test_a_transaction_that_the_server_cuts_did_nothing(
    postgres: Postgres, url: str, table: PostgresTable
) -> None:
    with (
        postgres.settings(idle_in_transaction_session_timeout="100ms"),
        closing(PostgresTable(Database(address_of(url)))) as cut,
        closing(PostgresQueue(cut.database.share())) as queue,
    ):
        with pytest.raises(UnavailableError), cut.transaction(queue):
            cut.record([a_done(0)])
            time.sleep(0.5)  # as long as it takes to be cut
            queue.send([a_message()])
        assert take(queue) == []
    assert table.counts("bag").done == 0


@pytest.mark.usefixtures("patient")
def test_a_listener_that_is_cut_listens_again(postgres: Postgres, queue: PostgresQueue) -> None:
    queue.database.bell._start()
    wait_until(lambda: queue.database.bell.listens)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    assert (True,) in postgres.ask(ended)
    wait_until(lambda: not queue.database.bell.listens)
    wait_until(lambda: queue.database.bell.listens)
    taken: list[Delivery] = []
    thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
    queue.send([a_message()])
    assert joined_s(thread) < PATIENCE_S / 2
    assert len(taken) == 1


@pytest.mark.usefixtures("patient")
def test_what_was_sent_while_nobody_listened_is_found(queue: PostgresQueue) -> None:
    bell, reachable = queue.database.bell, threading.Event()
    real = bell._connect

    def try_to_connect() -> Connection:
        if not reachable.is_set():
            raise UnavailableError("as the test wants it")
        return real()

    bell._connect = try_to_connect
    taken: list[Delivery] = []
    thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
    wait_until(lambda: bell._thread is not None)  # it has looked, and waits
    queue.send([a_message()])
    reachable.set()
    assert joined_s(thread) < PATIENCE_S / 2
    assert len(taken) == 1


def test_a_transaction_after_an_error_is_not_taken_for_committed(
    queue: PostgresQueue, table: PostgresTable
) -> None:
    with pytest.raises(UnavailableError, match="earlier error"), table.transaction(queue):
        table.record([a_done(0)])
        with pytest.raises(BackendError), queue.database.use() as connection:
            connection.execute("SELECT 1 / 0")
    assert table.counts("bag").done == 0


def test_too_many_connections_pass(postgres: Postgres, url: str) -> None:
    limited = f"limited{os.getpid()}"
    postgres.ask(f"CREATE ROLE {limited} LOGIN SUPERUSER")
    postgres.ask(f"ALTER ROLE {limited} NOSUPERUSER CONNECTION LIMIT 0")
    with pytest.raises(UnavailableError, match="too many connections"):
        open_queue(url.replace("postgres@", f"{limited}@"))


def test_a_lease_in_a_long_transaction_counts_from_its_own_time(url: str, queue: PostgresQueue) -> None:
    queue.send([a_message()])
    (held,) = take(queue)
    with queue.database.transaction():
        time.sleep(1.2)  # longer than the lease
        ((_, held),) = queue.extend([held], lease_s=1).extended
    with closing(PostgresQueue(Database(address_of(url)))) as other:
        assert take(other) == []


def test_a_server_that_takes_no_writes_any_more_is_left(queue: PostgresQueue, table: PostgresTable) -> None:
    """As a primary that became a standby; the next connection may lead to another server."""
    for transaction in (False, True):
        with queue.database.use() as connection:
            connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(UnavailableError, match="takes no writes"):
            if transaction:
                with table.transaction(queue):
                    queue.send([a_message()])
            else:
                queue.send([a_message()])
        queue.send([a_message()])
    assert len(take(queue)) == 2


@pytest.mark.parametrize("options", ["", "&prepare=no"])
def test_what_somebody_keeps_locked_is_given_up(
    monkeypatch: pytest.MonkeyPatch, postgres: Postgres, url: str, options: str
) -> None:
    """A worker must be able to end meanwhile."""
    monkeypatch.setattr("mtask_postgres.database.LOCK_S", 0.2)
    with closing(open_queue(url + options)) as queue, closing(open_table(url + options)) as table:
        queue.send([a_message()])
        with closing(connect(address_of(url))) as other, other.transaction():
            other.execute(f'LOCK TABLE "{address_of(url).schema}".message'.encode())
            with pytest.raises(UnavailableError, match="somebody else keeps it locked"):
                take(queue)
            with (
                pytest.raises(UnavailableError, match="somebody else keeps it locked"),
                table.transaction(queue),
            ):
                queue.send([a_message()])
        assert len(take(queue)) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_closes_what_was_opened_before_the_fork(queue: PostgresQueue) -> None:
    queue.database.bell._start()
    bell = queue.database.bell
    wait_until(lambda: bell.listens)
    (before,) = (connection.info.backend_pid for _, connection in queue.database._idle)
    child = os.fork()
    if not child:
        try:
            queue.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with queue.database.use() as connection:
        connection.execute("SELECT 1")
        assert connection.info.backend_pid == before
    assert not select.select([bell._stop_out], [], [], 0)[0], "the listener isn't told to end"
    assert bell.listens


def test_results_are_read_in_sql_as_the_manual_says(
    postgres: Postgres, url: str, table: PostgresTable
) -> None:
    values = ["plain", "a\0b", "\\u0000"]
    table.record([Result.done("bag", index, value=value) for index, value in enumerate(values)])
    page = (Path(__file__).parents[2] / "docs/backends/postgresql.md").read_text()
    queries = re.findall(r"^    (SELECT .* FROM mtask\.results .*);$", page, re.MULTILINE)
    place = f"{address_of(url).schema}.results"
    first, *rest = (each.replace("mtask.results", place).replace("'june'", "'bag'") for each in queries)
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        postgres.ask(first)
    without, whole = map(postgres.ask, rest)
    assert (0, "plain") in without
    assert {index for index, _ in without} | {index for index, _ in whole} == {0, 1, 2}


# -- many at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3])
def test_nobody_waits_for_what_another_one_is_taking(
    postgres: Postgres, url: str, queue: PostgresQueue, most: int
) -> None:
    queue.send(messages(5))
    with (
        postgres.settings(lock_timeout="2s"),
        closing(PostgresQueue(Database(address_of(url)))) as other,
        queue.database.transaction(),
    ):
        mine = queue.receive(max_messages=most, lease_s=600, wait_s=0)
        theirs = take(other)
    assert sorted(map(index_of, [*mine, *theirs])) == list(range(5))
    assert len(mine) == most


def test_who_writes_the_same_rows_in_another_order_never_deadlocks(
    postgres: Postgres, url: str, table: PostgresTable
) -> None:
    table.create_bag(a_bag("other"))
    before = postgres.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")
    tables = [PostgresTable(Database(address_of(url))) for _ in range(4)]

    def write(number: int) -> None:
        mine = tables[number]
        mine._shard = 0  # all the same one
        for turn in range(15):
            forward = (number + turn) % 2
            rows = [a_failed(index, bag=bag) for bag in ("bag", "other") for index in range(150)]
            rows += [a_done(index) for index in range(turn)]
            mine.record(rows if forward else rows[::-1])
            mine.retract("bag", range(150) if forward else range(149, -1, -1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    for each in tables:
        each.close()
    table.record([a_failed(index) for index in range(150)])
    assert table.counts("bag") == Counts(total=10, done=14, failed=136)
    assert table.counts("other") == Counts(failed=150)
    after = postgres.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")
    assert after == before


def test_counts_and_failures_are_found_without_reading_all_rows(
    postgres: Postgres, url: str, table: PostgresTable
) -> None:
    table.record([a_portion([a_done(index) for index in range(20_000)]), a_failed(30_000)])
    name = address_of(url).schema
    postgres.ask(f'ANALYZE "{name}".result')

    def cost(query: str) -> tuple[int, str]:
        """Pages that were read, and the plan."""
        lines = [line for (line,) in postgres.ask(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {query}")]
        found = re.search(r"Buffers: shared hit=(\d+)", "\n".join(lines))
        return int(found[1]) if found else 0, "\n".join(lines)

    from mtask_postgres import rows, statements

    counts = statements.COUNTS.replace("{s}", f'"{name}"').replace("%s", "'bag'")
    pages, plan = cost(counts)
    assert pages < 10, plan
    failed = f'SELECT body, key FROM "{name}".result WHERE {rows.condition_of([State.FAILED])} ORDER BY key'
    pages, plan = cost(failed)
    assert pages < 10, plan
    assert "result_not_done" in plan

"""What a server can do wrong, and what may be there before mtask: outages, cut connections, rights, other schemas."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import (
    BackendError,
    MtaskError,
    SchemaError,
    UnavailableError,
    UnusableError,
    UsageError,
)
from mtask.model import Counts, Delivery, State
from mtask.registry import CHANGED, MADE, THERE
from mtask.testing.samples import a_bag, a_done, a_failed, a_message, a_portion, index_of, messages
from mtask_postgres import Database, PostgresQueue, PostgresTable, make_queue, open_queue, open_table, schema
from mtask_postgres.address import address_of
from mtask_postgres.database import connect
from tests.servers.postgres import Postgres

PATIENCE_S = 30.0
SECRET = "s3cret/p@ss"


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new()


@pytest.fixture
def queue(url: str) -> Iterator[PostgresQueue]:
    with closing(open_queue(url)) as queue:
        yield queue


@pytest.fixture
def table(url: str) -> Iterator[PostgresTable]:
    with closing(open_table(url)) as table:
        table.create_bag(a_bag(total=10))
        yield table


def take(queue: PostgresQueue, *, wait_s: float = 0.0, lease_s: float = 600.0) -> list[Delivery]:
    return queue.receive(max_messages=100, lease_s=lease_s, wait_s=wait_s)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def in_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


# -- being woken ----------------------------------------------------------------------------------------


def test_an_idle_worker_starts_within_50_ms(url: str, queue: PostgresQueue) -> None:
    with closing(PostgresQueue(Database(address_of(url)))) as sender:  # as if in another process
        in_background(lambda: take(queue, wait_s=0.2)).join()
        eventually(lambda: queue.database.bell.listens)
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
    take(queue, wait_s=0.1)
    eventually(lambda: queue.database.bell.listens)
    asked = []
    real = queue._take
    queue._take = lambda *args: (asked.append(1), real(*args))[1]  # type: ignore[method-assign,func-returns-value]
    take(queue, wait_s=2.5)
    assert 3 <= len(asked) <= 4


def test_a_release_in_another_process_is_heard(url: str, queue: PostgresQueue) -> None:
    with closing(PostgresQueue(Database(address_of(url)))) as other:
        other.send([a_message(3)])
        held = take(other)
        taken: list[Delivery] = []
        thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
        eventually(lambda: queue.database.bell.listens)
        other.release(held)
        thread.join()
    assert [index_of(each) for each in taken] == [3]


def test_a_waiter_that_is_woken_or_closed_returns(url: str) -> None:
    queue = open_queue(url)
    started_s = time.monotonic()
    thread = in_background(lambda: take(queue, wait_s=PATIENCE_S))
    eventually(lambda: queue.database.bell.listens)
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
        eventually(lambda: queue.database.bell.listens)
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


def test_a_listener_that_is_cut_listens_again(postgres: Postgres, queue: PostgresQueue) -> None:
    take(queue, wait_s=0.1)
    eventually(lambda: queue.database.bell.listens)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    assert (True,) in postgres.ask(ended)
    eventually(lambda: not queue.database.bell.listens)
    eventually(lambda: queue.database.bell.listens)
    taken: list[Delivery] = []
    thread = in_background(lambda: taken.extend(take(queue, wait_s=PATIENCE_S)))
    queue.send([a_message()])
    thread.join()
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


# -- many at once ---------------------------------------------------------------------------------------


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


# -- schemas --------------------------------------------------------------------------------------------


def test_many_make_the_same_schema_at_once(postgres: Postgres) -> None:
    url = f"{postgres.url}?schema={postgres.schema()}"
    with ThreadPoolExecutor(8) as threads:
        made = [how for ((_, how),) in threads.map(make_queue, [url] * 8)]
    assert sorted(made) == [MADE] + 7 * [THERE]
    open_table(url).close()


def test_a_schema_that_is_not_there(postgres: Postgres) -> None:
    url = f"{postgres.url}?schema={postgres.schema()}"
    with pytest.raises(UnusableError, match="`mtask init` makes it"):
        open_queue(url)


def test_a_schema_of_an_older_version_is_brought_up_to_date(
    monkeypatch: pytest.MonkeyPatch, url: str, table: PostgresTable
) -> None:
    table.record([a_done(0)])
    newer = (*schema.MIGRATIONS, "ALTER TABLE {s}.result ADD COLUMN extra integer; CREATE TABLE {s}.more ()")
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    with pytest.raises(SchemaError, match=r"older mtask \(schema 1, this one needs 2\): .*`mtask init`"):
        Database(address_of(url))
    with closing(connect(address_of(url))) as connection:
        assert schema.make(connection, address_of(url), newer) == (1, 2)
        assert schema.make(connection, address_of(url), newer) == (2, 2)
    with closing(PostgresTable(Database(address_of(url)))) as migrated:
        assert migrated.counts("bag").done == 1
        migrated.record([a_done(1)])
    monkeypatch.undo()
    with pytest.raises(SchemaError, match=r"newer mtask \(schema 2, this one knows up to 1\); upgrade"):
        Database(address_of(url))
    with pytest.raises(SchemaError, match="upgrade"):
        make_queue(url)


def test_a_migration_that_fails_changed_nothing(url: str) -> None:
    broken = (*schema.MIGRATIONS, "CREATE TABLE {s}.more (); SELECT 1 / 0")
    with closing(connect(address_of(url))) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            schema.make(connection, address_of(url), broken)
        assert schema.version_of(connection, address_of(url)) == 1
        assert connection.execute(
            f"SELECT to_regclass('{address_of(url).schema}.more')".encode()
        ).fetchone() == (None,)


def test_what_is_made_says_what_it_did(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new()
    assert [how for _, how in make_queue(url)] == [THERE]
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE {s}.more ()"))
    monkeypatch.setattr(schema.make, "__defaults__", (schema.MIGRATIONS,))
    assert [how for _, how in make_queue(url)] == [CHANGED]


def test_somebody_elses_schema_is_left_alone(postgres: Postgres) -> None:
    name = postgres.schema()
    postgres.ask(f"CREATE SCHEMA {name}")
    postgres.ask(f"CREATE TABLE {name}.bag (x integer)")
    url = f"{postgres.url}?schema={name}"
    for call in (open_queue, make_queue):
        with pytest.raises(UnusableError, match=r"somebody else's tables; name another: \?schema=NAME"):
            call(url)


def test_two_schemas_of_a_database_are_apart(postgres: Postgres, queue: PostgresQueue) -> None:
    with closing(open_queue(postgres.new())) as other:
        other.send([a_message()])
        assert take(queue) == []
        assert len(take(other)) == 1


# -- databases and users --------------------------------------------------------------------------------


def test_a_database_that_is_not_there_is_made_by_who_may(postgres: Postgres) -> None:
    name = f"made{postgres.schema()}"
    url = postgres.url_of("postgres", name)
    with pytest.raises(UnusableError, match="`mtask init` makes it, or `createdb`"):
        open_queue(url)
    assert [how for _, how in make_queue(url)] == [MADE, MADE]
    open_queue(url).close()


def test_a_database_that_is_not_there_and_may_not_be_made(postgres: Postgres) -> None:
    user = f"u{postgres.schema()}"
    postgres.ask(f"CREATE ROLE {user} LOGIN")
    with pytest.raises(UnusableError, match=f"createdb --owner {user} nowhere"):
        make_queue(postgres.url_of(user, "nowhere"))


def test_a_database_of_another_encoding(postgres: Postgres) -> None:
    name = f"latin{postgres.schema()}"
    postgres.ask(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(UnusableError, match=r"encoding LATIN1.*createdb --encoding UTF8"):
        make_queue(postgres.url_of("postgres", name))


def test_a_server_that_is_too_old(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 99)
    with pytest.raises(UnusableError, match=r"is PostgreSQL \d+; mtask needs 99 or newer"):
        make_queue(postgres.url)


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no connection .*refused"):
        open_queue("postgresql://127.0.0.1:1/nothing")


@pytest.fixture
def guarded(postgres: Postgres) -> str:
    """The URL of a schema that a user with a password may use."""
    if not postgres.ask("SELECT 1 FROM pg_roles WHERE rolname = 'guarded'"):
        postgres.ask(f"CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{SECRET}'")
    return postgres.new().replace("postgres@", "guarded@")


def test_passwords_come_from_the_usual_places(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    with pytest.raises(UnusableError, match=r"check the user, and the password in ~/\.pgpass"):
        open_queue(guarded)
    (tmp_path / "pgpass").write_text(f"*:*:*:guarded:{SECRET}\n")
    (tmp_path / "pgpass").chmod(0o600)
    open_queue(guarded).close()
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(UnusableError, match="password authentication failed"):
        open_queue(guarded)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    open_queue(guarded).close()


def test_a_service_file_names_all_but_the_schema(
    guarded: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    lines = (
        "[lab]",
        "host=127.0.0.1",
        f"port={postgres.port}",
        "user=guarded",
        f"password={SECRET}",
        "dbname=postgres",
    )
    (tmp_path / "services").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    name = address_of(guarded).schema
    open_queue(f"postgresql://?service=lab&schema={name}").close()
    with pytest.raises(UnusableError, match=r"check PGSERVICE"):
        open_queue("postgresql://?service=other")


def test_a_password_in_a_url_works_and_is_never_shown(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    right = guarded.replace("guarded@", "guarded:s3cret%2Fp%40ss@")
    queue = open_queue(right)
    queue.close()
    wrong = guarded.replace("guarded@", "guarded:wr0ng@")
    calls: list[Callable[[], object]] = [
        lambda: take(queue),
        lambda: open_queue(wrong),
        lambda: open_queue(right.replace("schema=", "schema=none")),
        lambda: open_queue(right + "&nonsense=1"),
        lambda: open_queue(right.replace("127.0.0.1", "[::1")),
        lambda: open_queue(right.replace("%2F", "/")),
        lambda: open_queue(f"{guarded}&password={SECRET}"),
    ]
    for call in calls:
        with pytest.raises(MtaskError) as caught:
            call()
        for secret in ("s3cret", "p@ss", "p%40ss", "wr0ng"):
            assert secret not in str(caught.value)


def test_a_host_that_is_let_in_by_nobody(postgres: Postgres) -> None:
    with pytest.raises(UnusableError, match="the server lets nobody in like this"):
        open_queue(postgres.url_of("refused"))


def test_tls_that_the_server_does_not_have(postgres: Postgres) -> None:
    with pytest.raises(UnusableError, match="need a server with TLS"):
        open_queue(f"{postgres.url}?sslmode=require")


def test_a_user_without_rights_is_told_what_to_ask_for(postgres: Postgres, url: str) -> None:
    user, name = f"u{postgres.schema()}", address_of(url).schema
    postgres.ask(f"CREATE ROLE {user} LOGIN")
    mine = url.replace("postgres@", f"{user}@")
    with pytest.raises(UnusableError, match=f"GRANT USAGE ON SCHEMA {name} TO {user}"):
        open_queue(mine)
    postgres.ask(f"GRANT USAGE ON SCHEMA {name} TO {user}")
    with pytest.raises(UnusableError, match="its owner grants it"):
        open_queue(mine)
    postgres.ask(f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {user}")
    with (
        closing(open_queue(mine)) as queue,
        pytest.raises(UnusableError, match="permission denied for table"),
    ):
        queue.send([a_message()])
    postgres.ask(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {user}")
    with closing(open_queue(mine)) as queue, closing(open_table(mine)) as table:
        queue.send([a_message()])
        queue.delete(take(queue))
        table.create_bag(a_bag())
        table.record([a_done(), a_failed(1)])
        assert table.retract("bag", [1]) == {1}


# -- URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgres://host/db", "is not the URL of a PostgreSQL"),
        ("postgresql://host/db?schema=", "the schema ''"),
        ("postgresql://host/db?schema=a-b", "the schema 'a-b'"),
        ("postgresql://host/db?schema=pg_x", "the schema 'pg_x'"),
        ("postgresql://host/db?schema=" + "x" * 49, "at most 48"),
        ("postgresql://host/db?prepare=maybe", "prepare is yes or no"),
        ("postgresql://host/db?shema=x", "unknown option 'shema'; there are libpq's, and schema=NAME"),
        ("postgresql://host/db?password=x", "doesn't belong into a URL"),
        ("postgresql://[host/db", "can't read it"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    for function in (open_queue, open_table, make_queue):
        with pytest.raises(UsageError, match=re.escape(text)):
            function(url)


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)


@given(user=WORD, password=WORD, database=WORD, name=WORD)
def test_any_name_and_password_arrive(user: str, password: str, database: str, name: str) -> None:
    from urllib.parse import quote

    from psycopg.conninfo import conninfo_to_dict

    user_, password_, database_, name_ = (quote(word, safe="") for word in (user, password, database, name))
    address = address_of(f"postgresql://{user_}:{password_}@host:1/{database_}?application_name={name_}")
    found = conninfo_to_dict(address.conninfo)
    assert (found["user"], found["password"], found["dbname"], found["application_name"]) == (
        user,
        password,
        database,
        name,
    )
    assert repr(address) == f"Address({address.shown!r})"
    assert address.shown == f"postgresql://{user_}:…@host:1/{database_}?application_name={name_}"


# -- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(postgres: Postgres) -> Iterator[Path]:
    """Of the server, for 127.0.0.1; as long as there is one, it speaks TLS."""
    key, certificate = postgres.folder / "data/server.key", postgres.folder / "data/server.crt"
    options = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=mtask -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *options.split(), "-keyout", key, "-out", certificate],
        check=True,
        user=postgres.user,
        umask=0o077,
        cwd=postgres.folder,
        stderr=subprocess.DEVNULL,
    )
    has_tls = "SELECT bool_or(ssl) FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    for setting, expected in (("on", True), ("off", False)):
        postgres.ask(f"ALTER SYSTEM SET ssl = {setting}")
        postgres.ask("SELECT pg_reload_conf()")
        eventually(lambda expected=expected: postgres.ask(has_tls) == [(expected,)])  # type: ignore[misc]
        if expected:
            yield certificate


def test_tls_is_checked_as_the_url_says(postgres: Postgres, certificate: Path, tmp_path: Path) -> None:
    url = f"{postgres.new()}&sslmode=verify-full&sslrootcert="
    with closing(open_queue(f"{url}{certificate}")) as queue:
        queue.send([a_message()])
        assert len(take(queue)) == 1
        with queue.database.use() as connection:
            assert connection.pgconn.ssl_in_use
    with pytest.raises(UnusableError, match=r"TLS did not come about: .*sslrootcert"):
        open_queue(f"{url}{tmp_path}/none.pem")
    with pytest.raises(UnusableError, match=r"TLS did not come about: .*the name of the host"):
        open_queue(f"{url}{certificate}".replace("@127.0.0.1", "@localhost"))

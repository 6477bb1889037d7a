"""Where a queue and a table in PostgreSQL can be, and who may use them: schemas, databases, passwords, rights, URLs, TLS."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import (
    MtaskError,
    SchemaError,
    UnavailableError,
    UnusableError,
    UsageError,
)
from mtask.model import Delivery
from mtask.registry import CHANGED, MADE, THERE
from mtask.testing.samples import a_bag, a_done, a_failed, a_message
from mtask_postgres import Database, PostgresQueue, PostgresTable, make_queue, open_queue, open_table, schema
from mtask_postgres.address import address_of
from mtask_postgres.database import connect
from tests.servers.postgres import Postgres
from tests.unit.worker_kit import wait_until

PATIENCE_S = 30.0
SECRET = "s3cret/p@ss"


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new()


@pytest.fixture
def table(table: PostgresTable) -> PostgresTable:
    table.create_bag(a_bag(total=10))
    return table


def take(queue: PostgresQueue, *, wait_s: float = 0.0, lease_s: float = 600.0) -> list[Delivery]:
    return queue.receive(max_messages=100, lease_s=lease_s, wait_s=wait_s)


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
    broken = (*schema.MIGRATIONS, "CREATE TABLE {s}.more ()", "SELECT 1 / 0")
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


def test_a_schema_that_was_made_for_somebody(postgres: Postgres) -> None:
    """Who may make none himself."""
    name = postgres.schema()
    postgres.ask(f"CREATE ROLE u{name} LOGIN")
    postgres.ask(f"CREATE SCHEMA {name} AUTHORIZATION u{name}")
    url = f"{postgres.url_of(f'u{name}')}?schema={name}"
    assert [how for _, how in make_queue(url)] == [MADE]
    with closing(open_queue(url)) as queue:
        queue.send([a_message()])


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
        ("postgresql://host/db?pwd=x", "'postgresql://host/db': unknown option 'pwd'"),
        ("postgresql://host/db?PASSWORD=x", "'postgresql://host/db': unknown option 'PASSWORD'"),
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
        wait_until(lambda expected=expected: postgres.ask(has_tls) == [(expected,)])  # type: ignore[misc]
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

"""`mtask init` and `mtask doctor` at PostgreSQL, from nothing to results, and what may be wrong there."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import psycopg
import pytest

from mtask.doctor import Finding
from mtask_postgres import diagnose, doctor
from mtask_postgres.address import address_of
from tests.servers.postgres import Postgres


def findings(url: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in diagnose([url, url], [])}


def test_from_init_to_results(postgres: Postgres, command: Any) -> None:
    url = f"{postgres.url}?schema={postgres.schema()}"
    made = command("init", url)
    assert made.code == 0
    assert "made       schema s" in made.out
    assert command("init", url).out.startswith("was there")
    command.write("tasks.csv", "number\n1\n2\n3\n")
    ran = command.process("run", "tasks.csv", "--run", "echo {number}", "--bag", "june")
    assert ran.code == 0, ran.err
    assert [result.stdout for result in command.results("june")] == ["1\n", "2\n", "3\n"]
    assert postgres.ask(
        f"SELECT bag, index, state, json->>'stdout' FROM {address_of(url).schema}.results ORDER BY index"
    ) == [("june", index, "done", f"{index + 1}\n") for index in range(3)]
    looked = command("doctor")
    assert "rights: user 'postgres' may submit and work" in looked.out


def test_a_password_on_the_command_line_is_refused(postgres: Postgres, command: Any) -> None:
    url = postgres.url.replace("postgres@", "postgres:s3cret@")
    for args in (
        ("init", url),
        ("init", postgres.url, "--table", url),
        ("status", "--queue", url),
        ("results", "bag", "--table", url),
        ("doctor", "--queue", f"{postgres.url}?password=s3cret"),
    ):
        refused = command(*args)
        assert refused.code == 2
        assert "a password on the command line is seen by everybody on this machine" in refused.err
        assert "s3cret" not in refused.out + refused.err
    assert not (command.folder / "mtask.toml").exists()


def test_a_password_of_a_file_or_the_environment_is_not_shown(
    postgres: Postgres, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new().replace("postgres@", "postgres:s3cret@")
    command.write("mtask.toml", f'queue = "{url}"\n')
    for _ in range(2):
        looked = command("doctor")
        assert "schema: " in looked.out
        assert "postgres:…@127.0.0.1" in looked.out
        assert "s3cret" not in looked.out + looked.err
        (command.folder / "mtask.toml").write_text("")
        monkeypatch.setenv("MTASK_QUEUE", url)


def test_before_init(postgres: Postgres) -> None:
    found = findings(f"{postgres.url}?schema={postgres.schema()}")
    assert list(found) == ["server", "clock", "durability", "schema"]
    assert found["server"].text.startswith("PostgreSQL 1")
    assert found["schema"].stops
    assert "`mtask init` makes it" in found["schema"].text


def test_out_of_reach() -> None:
    (finding,) = findings("postgresql://127.0.0.1:1/db").values()
    assert (finding.what, finding.ok) == ("server", False)
    assert "no connection" in finding.text


@pytest.fixture
def reader(postgres: Postgres) -> str:
    """The URL of a schema for a user who may only read."""
    url, user = postgres.new(), f"u{postgres.schema()}"
    name = address_of(url).schema
    postgres.ask(f"CREATE ROLE {user} LOGIN")
    postgres.ask(f"GRANT USAGE ON SCHEMA {name} TO {user}")
    postgres.ask(f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {user}")
    return url.replace("postgres@", f"{user}@")


def test_who_may_only_read_sees_status_and_results(postgres: Postgres, reader: str, command: Any) -> None:
    owner = re.sub(r"//\w+@", "//postgres@", reader)
    command.write("tasks.csv", "number\n1\n2\n")
    assert command.process("run", "tasks.csv", "--run", "echo {number}", MTASK_QUEUE=owner).code == 0
    shown = command.process("status", "tasks", MTASK_QUEUE=reader)
    assert (shown.code, "finished" in shown.out) == (0, True), shown.err
    assert command.process("results", "tasks", "-o", "all.csv", MTASK_QUEUE=reader).code == 0
    assert command.read("all.csv").count(",done,") == 2
    refused = command.process(
        "submit", "tasks.csv", "--run", "echo {number}", "--bag", "more", MTASK_QUEUE=reader
    )
    assert refused.code == 2
    assert "its owner grants it" in refused.err


def test_missing_rights_are_named_and_mended_as_it_says(postgres: Postgres, reader: str) -> None:
    finding = findings(reader)["rights"]
    assert finding.ok is False
    assert "INSERT, UPDATE, DELETE on message" in finding.text
    postgres.ask(finding.todo.partition("as its owner: ")[2])
    assert findings(reader)["rights"].ok


def test_settings_that_lose_or_slow_down(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new()
    found = findings(url)
    assert "fsync is off" in found["durability"].text  # as the server of the tests was started
    assert found["connections"].ok
    assert found["autovacuum"].ok
    assert "transactions" not in found
    monkeypatch.setattr(doctor, "_LONG_S", 0.0)
    with closing(psycopg.connect(postgres.url)) as connection:
        connection.execute("SELECT 1 FROM pg_class")
        connection.execute("DECLARE open CURSOR FOR SELECT 1 FROM pg_class")
        finding = findings(url)["transactions"]
    assert "one has been open for" in finding.text
    assert "pg_terminate_backend" in finding.todo


def test_a_look_writes_nothing(postgres: Postgres) -> None:
    url = postgres.new()
    findings(url)
    changed = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = %s"
    assert postgres.ask(f"{changed} AND relname <> 'mtask_version'", address_of(url).schema) == [(0,)]

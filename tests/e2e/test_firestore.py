"""Commands with a queue in an SQLite file and a table in Google's emulator of Firestore."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("google.cloud.firestore_v1")

import mtask
from mtask.costs import prices_of
from mtask.settings import Urls
from mtask_gcp import PRICES
from tests.servers.firestore import new_url

TASKS = 300


@pytest.fixture
def places(firestore, command):
    """Options that name a queue and a table, which `mtask init` has made."""
    queue, table = f"sqlite:///{command.folder}/queue.db", new_url()
    assert command("init", queue, "--table", table).code == 0
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(TASKS)))
    command.write("work.py", "def f(x: int) -> int:\n    return x\n")
    return ("--queue", queue, "--table", table)


def test_a_run_takes_about_what_was_estimated(command, places):
    task = ("t.csv", "--call", "work:f", "--per-message", "10")
    estimated = json.loads(command("submit", *task, "--estimate", "--json", *places).out)["packed"]["used"]
    assert command("submit", *task, *places).code == 0
    code, _, err = command("worker", "-j", "2", "--max-tasks", str(TASKS), *places)
    assert (code, f"{TASKS} done" in err) == (0, True)
    cost = json.loads(command("status", "t", "--json", *places).out)["cost"]
    used = cost["used"]
    print(estimated, used)
    assert (
        estimated["firestore writes"] / 2 <= used["firestore writes"] <= 2.5 * estimated["firestore writes"]
    )
    assert 0 < used["firestore reads"] < 200
    assert cost["dollars"] == pytest.approx(sum(PRICES.dollars[unit] * used[unit] for unit in used))
    told = " ".join(command("status", "t", *places).out.split())
    assert "firestore writes" in told
    assert "prices of us-west1, 2026-11)" in told


def test_the_backend_tells_its_prices():
    (prices,) = prices_of(Urls("sqlite:///x.db", "firestore://p/t"))
    assert prices.million("firestore writes") == pytest.approx(0.9)


def test_an_estimate_needs_neither_table_nor_credentials(command, monkeypatch):
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    command.write("t.csv", "x\n1\n2\n")
    places = ("--queue", "sqlite:///queue.db", "--table", "firestore://p/t")
    code, out, err = command("submit", "t.csv", "--run", "echo {x}", "--estimate", *places)
    assert (code, err) == (0, "")
    assert "firestore writes" in out


def test_results_can_expire(command, places):
    code, _, err = command("submit", "t.csv", "--call", "work:f", "--keep", "30d", *places)
    assert (code, "keeps results for ever" in err) == (0, False)
    with mtask.connect(places[1], places[3]) as mt:
        assert mt.bag("t").info.spec.keep_s == 30 * 86400


def test_doctor_looks_at_the_table(command, places):
    _, out, err = command("doctor", *places)
    said = " ".join((out + err).split())
    assert "datastore.entities.update" in said, said
    assert "the emulator has none" in said


def test_a_table_that_is_not_there_is_offered_to_be_made(command, firestore):
    command.write("t.csv", "x\n1\n")
    places = ("--queue", f"sqlite:///{command.folder}/queue.db", "--table", new_url("not-there"))
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", *places)
    assert code == 2
    assert "there is no table 'not-there'" in " ".join(err.split())
    assert "`mtask init` makes it" in " ".join(err.split())
    code, out, err = command("doctor", *places)
    assert code != 0
    assert "there is no table 'not-there'" in " ".join((out + err).split())

"""What a run tells of its cost, and what `--estimate` and `--keep` do."""

from __future__ import annotations

import json
import sqlite3

import pytest

import mtask
from mtask.heartbeat import WorkerStatus
from tests.unit import metered

ROWS = "x\n" + "".join(f"{n}\n" for n in range(30))
CALL = "import time\n\ndef f(x: int) -> int:\n    return 2 * x\n"


@pytest.fixture
def places(command, monkeypatch):
    """A vendor that bills by use: options that name its queue and its table."""
    metered.use(monkeypatch)
    command.write("t.csv", ROWS)
    command.write("work.py", CALL)
    return ("--queue", f"metered:///{command.folder}/q.db", "--table", f"metered:///{command.folder}/t.db")


def test_the_summary_and_status_tell_what_a_run_cost(command, places):
    code, out, err = command("run", "t.csv", "--call", "work:f", "-j", "2", *places)
    assert (code, err.splitlines()[-1:]) == (0, ["bag 't': 30 tasks"])
    told = next(line for line in " ".join(out.split("\n")).split("`mtask") if "cost" in line)
    assert "requests, " in told
    assert "a million tasks; prices of nowhere, 2026-01)" in told
    cost = json.loads(command("status", "t", "--json", *places).out)["cost"]
    assert cost["dollars"] == pytest.approx(0.01 * cost["used"]["requests"] + 0.001 * cost["used"]["writes"])
    assert cost["dollars_per_million"] == pytest.approx(cost["dollars"] / 30 * 1e6)
    # One send, one receive, one delete at least; rows, blocks, the bag.
    assert cost["used"]["requests"] >= 3
    assert cost["used"]["writes"] >= 5
    assert "cost  " in command("status", "t", *places).out
    with mtask.connect(places[1], places[3]) as mt:
        assert [worker.used for worker in mt.table.workers()] == [{}]  # all of it is in the account


def test_the_summary_as_json_has_the_cost(command, places):
    summary = json.loads(command("run", "t.csv", "--call", "work:f", "--json", *places).out)
    assert summary["cost"]["prices"] == "nowhere, 2026-01"
    assert set(summary["cost"]["dollars_by_unit"]) == {"requests", "writes"}


def test_two_bags_of_one_worker_are_kept_apart(command, places):
    command.write("few.csv", "x\n1\n2\n3\n")
    command("submit", "t.csv", "--call", "work:f", *places)
    command("submit", "few.csv", "--call", "work:f", *places)
    before = {name: _used(command, name, places) for name in ("t", "few")}
    code, _, err = command("worker", "-j", "1", "--max-tasks", "33", *places)
    assert (code, "33 done" in err) == (0, True)
    after = {name: _used(command, name, places) for name in ("t", "few")}
    added = {name: after[name]["requests"] - before[name]["requests"] for name in before}
    assert added["t"] > added["few"] > 0


def test_nothing_is_said_where_nobody_bills(command):
    command.write("t.csv", ROWS)
    command.write("work.py", CALL)
    out = command("run", "t.csv", "--call", "work:f").out
    assert "cost" not in out
    assert "cost" not in command("status", "t").out
    assert json.loads(command("status", "t", "--json").out)["cost"] is None


@pytest.mark.parametrize("verb", ["submit", "run"])
def test_an_estimate_sends_nothing(command, places, verb):
    code, out, err = command(verb, "t.csv", "--call", "work:f", "--estimate", *places)
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    assert out.startswith("30 tasks in 30 messages (")
    assert "; nothing was sent as they are packed 90 requests, 15 writes: $0.92 ($30,500.00 a million" in out
    assert "one message for each 90 requests, 30 writes: $0.93" in out
    assert not (command.folder / "q.db").exists()
    assert not (command.folder / "t.db").exists()


def test_an_estimate_as_json(command, places):
    found = json.loads(command("submit", "t.csv", "--call", "work:f", "--estimate", "--json", *places).out)
    assert (found["tasks"], found["messages"]) == (30, 30)
    assert found["packed"]["dollars"] == pytest.approx(0.9 + 0.015)
    assert found["alone"]["used"] == {"requests": 90.0, "writes": 30.0}


def test_an_estimate_without_a_bill(command):
    command.write("t.csv", ROWS)
    code, out, _ = command("submit", "t.csv", "--run", "echo {x}", "--estimate")
    assert code == 0
    assert out.splitlines()[0].startswith("30 tasks in 30 messages (")
    assert out.splitlines()[1] == "costs nothing on this queue and table"
    assert command.sent_nothing()
    assert not (command.folder / ".mtask").exists()


def test_an_estimate_checks_the_tasks(command):
    command.write("t.csv", "x\n1\ntwo\n")
    command.write("work.py", CALL)
    code, _, err = command("submit", "t.csv", "--call", "work:f", "--estimate")
    assert code == 2
    assert "t.csv, line 3, column 'x'" in err


def test_keep_is_refused_where_nothing_expires(command):
    command.write("t.csv", ROWS)
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", "--keep", "30d")
    assert code == 2
    assert "--keep: the table .mtask/mtask.db keeps results for ever" in err
    assert command.sent_nothing()


@pytest.mark.parametrize(("text", "why"), [("59m", "the least is 1h"), ("long", "is not a duration")])
def test_keep_takes_a_time(command, text, why):
    command.write("t.csv", ROWS)
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", "--keep", text)
    assert (code, why in err) == (2, True)


def test_keep_is_stored_with_the_bag(command, places, monkeypatch):
    monkeypatch.setattr(metered.Metered, "keeps", True, raising=False)
    assert command("submit", "t.csv", "--call", "work:f", "--keep", "30d", *places).code == 0
    with mtask.connect(places[1], places[3]) as mt:
        assert mt.bag("t").info.spec.keep_s == 30 * 86400


def test_a_killed_worker_counts_by_its_last_heartbeat(command, places):
    """As long as the table keeps it."""
    command("submit", "t.csv", "--call", "work:f", *places)
    before = _used(command, "t", places)["requests"]
    with mtask.connect(places[1], places[3]) as mt:
        uid = mt.bag("t").info.uid
        mt.table.beat(
            WorkerStatus(
                worker="killed", host="h", pid=1, slots=1, used={uid: {"requests": 7.0}}, interval_s=0.001
            )
        )
    assert _used(command, "t", places)["requests"] == before + 7
    with sqlite3.connect(command.folder / "t.db") as connection:
        connection.execute("UPDATE worker SET beat_at = beat_at - 90000")
    connection.close()
    assert _used(command, "t", places)["requests"] == before


def _used(command, bag, places):
    return json.loads(command("status", bag, "--json", *places).out)["cost"]["used"]

"""`mtask status`: all bags or one, for people and as JSON, once and again."""

from __future__ import annotations

import json
import sqlite3
import time

import pytest

import mtask
from mtask.heartbeat import Running, WorkerStatus
from mtask.model import Failure, Reason, Result


def failure(message, kind="ValueError"):
    return Failure(reason=Reason.RAISED, type=kind, message=message)


@pytest.fixture
def bag(command):
    """Of 10 tasks: 5 done, 4 failed for two reasons; a worker runs the last."""
    with mtask.connect() as mt:
        handle = mt.submit([{"id": f"r{n}", "x": n} for n in range(10)], run="echo {x}", bag="b")
        errors = [
            failure("row 5 is bad"),
            failure("row 6 is bad"),
            failure("gone", "OSError"),
            failure("row 8 is bad"),
        ]
        mt.table.record(
            [Result.done("b", n, id=f"r{n}") for n in range(5)]
            + [Result.failed("b", 5 + n, error, id=f"r{5 + n}") for n, error in enumerate(errors)]
        )
        now = time.time()
        mt.table.beat(
            WorkerStatus(
                worker="host-1", host="host", pid=1, slots=2, done=5, failed=4, rate=0.5, started_at=now - 60,
                running=(Running(bag="b", index=9, since=now - 90),), interval_s=600,
            )
        )  # fmt: skip
        yield handle


def test_one(command, bag):
    code, out, err = command("status", "b")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "b  running  echo {x}"
    assert lines[1] == "10 tasks: 5 done, 4 failed, 1 left · 0.5/s · ETA 2 s"
    assert "3 × ValueError: row 5 is bad   e.g. task 5 (id r5)" in lines
    assert "1 × OSError: gone   e.g. task 7 (id r7)" in lines
    worker = next(line for line in lines if line.startswith("host-1")).split(maxsplit=5)
    assert worker[:5] == ["host-1", "working", "2", "5", "0.5/s"]
    assert worker[5].startswith("b[9] 1 min 3")


def test_one_as_json(command, bag):
    status = json.loads(command("status", "b", "--json").out)
    assert {key: status[key] for key in ("bag", "state", "total", "done", "failed", "expired", "left", "eta_s")} == {
        "bag": "b", "state": "sealed", "total": 10, "done": 5, "failed": 4, "expired": 0, "left": 1, "eta_s": 2.0,
    }  # fmt: skip
    assert [(group["count"], group["index"], group["id"]) for group in status["failures"]] == [
        (3, 5, "r5"),
        (1, 7, "r7"),
    ]
    assert status["workers"][0]["running"][0]["index"] == 9


def test_all(command, bag):
    command.write("t.csv", "x\n1\n")
    command("submit", "t.csv", "--run", "true")
    lines = [line.split() for line in command("status").out.splitlines()]
    assert lines[0] == ["bag", "state", "total", "done", "failed", "left", "what"]
    assert lines[1][:6] == ["b", "running", "10", "5", "4", "1"]
    assert lines[2][:1] + lines[2][-5:] == ["t", "1", "0", "0", "1", "true"]
    assert [entry["bag"] for entry in json.loads(command("status", "--json").out)] == ["b", "t"]


LISTS = {
    "status": (["status"], 0, "good"),
    "status as JSON": (["status", "--json"], 0, '"good"'),
    "roles": (["roles"], 0, "physics"),
    "roles set": (["roles", "set", "physics=2"], 0, ""),
    "a role that nobody asks for": (["roles", "set", "bio=2"], 2, ""),
    "dead": (["dead"], 0, ""),
    "doctor": (["doctor"], 1, "upgrade mtask here"),
}


@pytest.mark.parametrize(("args", "code", "shown"), LISTS.values(), ids=LISTS)
def test_a_bag_of_a_newer_version_is_left_out_and_said_once(command, args, code, shown):
    command.write("t.csv", "text\na\n")
    for bag in ("good", "odd"):
        command("submit", "t.csv", "--run", "echo {text}", "--bag", bag, "--tags", "physics")
    with sqlite3.connect(".mtask/mtask.db") as database:
        database.execute("UPDATE bag SET body = replace(body, '\"run\"', '\"dream\"') WHERE name = 'odd'")
    outcome = command(*args)
    assert outcome.code == code, outcome
    assert shown in outcome.out
    said = args[:2] != ["roles", "set"] or code
    assert (outcome.out + outcome.err).count("'odd' can't be read") == bool(said)
    assert "'odd'" not in command("status", "goof").err
    assert "did you mean 'good'?" in command("status", "goof").err


def test_nothing_yet(command):
    assert command("status") == (0, "there is no bag here yet; `mtask run tasks.csv …` makes one\n", "")
    assert command("status", "--json").out == "[]\n"
    assert command("status", "--watch").code == 0
    assert list(command.folder.iterdir()) == []


def test_without_a_worker(command):
    command.write("t.csv", "x\n1\n")
    command("submit", "t.csv", "--run", "true")
    out = command("status", "t").out
    assert out.startswith("t  waiting  true\n1 task: 0 done, 0 failed, 1 left\n")
    assert "no worker is running; `mtask worker` starts one here" in out


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("names", [("b",), ()])
def test_watch_ends_with_the_bag(command, bag, monkeypatch, as_json, names):
    def end(_seconds):
        with mtask.connect() as mt:
            mt.table.record([Result.done("b", 9)])

    monkeypatch.setattr("mtask.cli.status.time.sleep", end)
    code, out, _ = command("status", *names, "--watch", *(["--json"] if as_json else []))
    assert code == 0
    if as_json:
        before, after = (json.loads(line) for line in out.splitlines())
        assert [(before if names else before[0])["left"], (after if names else after[0])["left"]] == [1, 0]
    else:
        assert "finished" in out


def test_dead_messages(command, bag):
    out = command("dead").out
    assert out.startswith("no message was set aside\n")
    assert "b: 4 failed" in out
    assert "5     r5  raised  1         ValueError: row 5 is bad" in out
    with mtask.connect() as mt:
        mt.table.set_aside([mtask.model.DeadMessage(body=b"\xff{oops", reason="not a message: x", at=0.0)])
    out = command("dead").out
    assert "1970-01-01 00:00:00  not a message: x  \\xff{oops" in out

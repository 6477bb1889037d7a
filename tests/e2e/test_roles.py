"""Roles: workers that serve what they are given, and are given something else while they run."""

from __future__ import annotations

import json
import sqlite3
import time

import pytest

import mtask
from tests.unit.worker_kit import wait_until

FUNCTIONS = """
import time
import mtask

@mtask.setup
def model(topic):
    with open("loaded", "a") as file:
        file.write(topic + "\\n")
    return topic

def f(x: int, topic: str):
    time.sleep(0.03)
    return model(topic)
"""
TIME_S = 10.0
"""Within which a change holds."""


@pytest.fixture
def command(command, monkeypatch):
    monkeypatch.delenv("MTASK_TAGS", raising=False)
    command.write("m.py", FUNCTIONS)
    return command


def submit(command, topic: str, tasks: int, *options: str) -> None:
    rows = "".join(f"{number},{topic}\n" for number in range(tasks))
    command.write(f"{topic}.csv", f"x,topic\n{rows}")
    code, _, err = command(
        "submit", f"{topic}.csv", "--call", "m:f", "--bag", topic, "--tags", topic, *options
    )
    assert code == 0, err


def serving() -> dict[str, int]:
    with mtask.connect() as mt:
        return mt.roles().serving


def by_worker(command, bag: str, *, after: float = 0.0) -> dict[str, list[mtask.Result]]:
    """The rows of tasks that began after this time."""
    found: dict[str, list[mtask.Result]] = {}
    for result in command.results(bag):
        if (result.started_at or 0) > after:
            found.setdefault(result.worker, []).append(result)
    return found


class TestAuto:
    def test_a_split_is_set_changed_and_kept_when_a_worker_dies(self, command):
        for topic in ("physics", "bio"):
            submit(command, topic, 3000)
        workers = [command.start("worker", "-j", "1", "--roles", "auto", "--quiet") for _ in range(3)]
        with mtask.connect() as mt:
            wait_until(lambda: len(mt.roles().workers) == 3)
        assert serving() == {}, "they wait to be told"

        assert command("roles", "set", "physics=1").code == 0
        wait_until(lambda: len(by_worker(command, "physics")) == 3, timeout_s=TIME_S)
        assert not command.results("bio")

        set_at = time.time()
        assert command("roles", "set", "physics=2", "bio=1").code == 0
        wait_until(lambda: command.results("bio"), timeout_s=TIME_S)
        ((changed, rows),) = by_worker(command, "bio").items()
        began = min(row.started_at or 0 for row in rows)
        assert began < set_at + TIME_S
        wait_until(lambda: len(by_worker(command, "physics", after=began)) == 2)
        assert all((row.started_at or 0) < began for row in by_worker(command, "physics")[changed]), (
            "what it hadn't started, it gave back"
        )
        wait_until(lambda: serving() == {"physics": 2, "bio": 1})

        (victim,) = (each for each in workers if f"-{each.pid}-" in changed)
        victim.kill()
        killed_at = time.time()
        (heir,) = wait_until(lambda: by_worker(command, "bio", after=killed_at))
        assert heir != changed
        wait_until(lambda: serving() == {"physics": 1, "bio": 1})
        assert command.read("loaded").count("\n") == 5, (
            "a model was loaded once for each role that a worker had"
        )

        assert command("roles", "unset").code == 0
        wait_until(lambda: serving() == {})
        assert json.loads(command("roles", "--json").out)["wanted"] == {}

    def test_what_is_shown(self, command):
        submit(command, "bio", 2)
        assert "no roles are set" in command("roles").out
        assert (
            "bio=2; 0 workers with --roles auto: `mtask worker --roles auto` starts one"
            in command("roles", "set", "bio=2").err
        )
        code, out, _ = command("roles")
        assert code == 0
        assert "set for --roles auto: bio=2" in out
        assert out.splitlines()[-1].split() == ["bio", "2", "0", "2"]
        assert json.loads(command("roles", "--json").out) == {
            "wanted": {"bio": 2},
            "workers": {},
            "taking": {},
            "open_tasks": {"bio": 2},
        }

    @pytest.mark.parametrize(
        ("shares", "problem"),
        [
            (["phisics=2"], "no bag asks for the role 'phisics'; did you mean 'physics'?"),
            (
                ["math=2"],
                "no bag asks for the role 'math'; there are physics. If it is meant for bags to come, say --new",
            ),
            (["physics"], "'physics' should look like physics=4"),
            (["physics=x"], "'physics=x' should look like physics=4"),
            (["physics=" + "9" * 5000], "is too large; the most is"),
            (["physics=1", "physics=2"], "a role is named twice"),
            (["physics=0"], "a split gives at least one role some workers"),
            (["by-backlog=1"], "'by-backlog' can't be a role"),
        ],
    )
    def test_a_split_that_cant_be_meant_is_refused(self, command, shares, problem):
        submit(command, "physics", 2)
        code, _, err = command("roles", "set", *shares)
        assert code == 2
        assert problem in err
        with mtask.connect() as mt:
            assert mt.roles().wanted == {}

    def test_unless_it_is_meant(self, command):
        assert command("roles", "set", "--new", "math=2").code == 0
        with mtask.connect() as mt:
            assert mt.roles().wanted == {"math": 2}


class TestByBacklog:
    def test_the_split_follows_what_is_open(self, command):
        submit(command, "physics", 200)
        for _ in range(2):
            command.start("worker", "-j", "1", "--roles", "by-backlog", "--quiet")
        wait_until(lambda: len(by_worker(command, "physics")) == 2)
        submit(command, "bio", 30)
        wait_until(lambda: command.results("bio"), timeout_s=TIME_S)
        with mtask.connect() as mt:
            wait_until(lambda: mt.bag("bio").finished() and mt.bag("physics").finished())
            assert {mt.bag(bag).counts().failed for bag in ("bio", "physics")} == {0}


class TestGiven:
    def test_a_worker_with_roles_serves_nothing_else(self, command):
        submit(command, "physics", 3)
        submit(command, "bio", 3)
        command.write("t.csv", "x,topic\n1,none\n")
        command("submit", "t.csv", "--call", "m:f", "--bag", "none")
        code, _, err = command.process("worker", "-j", "1", "--roles", "bio", "--idle-exit", "1s")
        assert code == 0
        assert "3 done" in err
        assert len(command.results("bio")) == 3
        assert not command.results("physics")
        assert not command.results("none")
        assert "3 done" not in (err := command.process("worker", "-j", "1", "--idle-exit", "1s").err)
        assert "1 done" in err, "who has no role serves who asks for none"

    def test_a_role_that_nobody_asks_for_is_said(self, command):
        submit(command, "physics", 3)
        code, _, err = command.process("worker", "--roles", "phisics,physics", "--idle-exit", "1s")
        assert code == 0
        assert "mtask: no bag asks for the role 'phisics'; did you mean 'physics'? There are physics" in err
        assert "The worker waits for one that does" in err
        assert "3 done" in err

    @pytest.mark.parametrize("roles", ["physics", "auto", "by-backlog"])
    def test_a_bag_of_a_newer_version_is_no_reason_to_leave_the_others_alone(self, command, roles):
        submit(command, "physics", 3)
        submit(command, "bio", 3)
        assert command("roles", "set", "physics=1")[0] == 0
        with sqlite3.connect(".mtask/mtask.db") as database:
            database.execute(
                "UPDATE bag SET body = replace(body, '\"call\"', '\"dream\"') WHERE name = 'bio'"
            )
        code, _, err = command.process("worker", "-j", "1", "--roles", roles, "--idle-exit", "3s")
        assert code == 0, err
        assert "3 done" in err
        assert "the table doesn't answer" not in err

    def test_what_the_option_refuses(self, command):
        code, _, err = command("worker", "--roles", "auto,bio")
        assert code == 2
        assert "auto stands alone" in err

    def test_status_says_that_nobody_serves_it(self, command):
        submit(command, "physics", 3)
        command.start("worker", "-j", "1", "--roles", "bio", "--quiet")
        text = "the only worker doesn't have that"
        shown = wait_until(lambda: text in (out := command("status", "physics").out) and out)
        assert [line.split()[1:4] for line in shown.splitlines()[-2:]] == [
            ["state", "role", "slots"],
            ["working", "bio", "1"],
        ]


def test_a_queue_that_cant_be_woken_delays_no_change(moto, command, monkeypatch):
    """A worker that waits at an empty queue of SQS's, for 20 s otherwise, and a table in a cloud."""
    monkeypatch.setenv("MTASK_QUEUE", "sqs://us-west-2/roles")
    monkeypatch.setenv("MTASK_TABLE", "dynamodb://us-west-2/roles")
    assert command("init", "sqs://us-west-2/roles").code == 0
    for topic, tasks in (("physics", 1), ("bio", 5)):
        submit(command, topic, tasks)
    assert command("roles", "set", "physics=1").code == 0
    command.start("worker", "-j", "1", "--roles", "auto", "--quiet")
    wait_until(lambda: command.results("physics"), timeout_s=TIME_S)
    assert command("roles", "set", "bio=1").code == 0
    wait_until(lambda: command.results("bio"), timeout_s=TIME_S)

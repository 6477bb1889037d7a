"""The commands over Pub/Sub, which doesn't say how many messages it has: from `init` to results, with SQLite as the table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import pytest

import mtask
from mtask.costs import prices_of
from mtask.estimate import Load
from mtask.model import Message
from mtask.registry import open_queue, worker_environment
from mtask.settings import Urls
from mtask_gcp import PRICES, make_queue, queue_units
from mtask_gcp.client import Client
from mtask_gcp.names import address_of
from tests.servers.gcp import Emulator

TASKS = 120
WORK = """
import time

def f(x: int) -> int:
    return x

def fails_once(x: int) -> int:
    from pathlib import Path
    try:
        Path(f"failed-{x}").touch(exist_ok=False)
    except FileExistsError:
        return x
    raise ValueError("once")
"""


@pytest.fixture
def places(pubsub: Emulator, command: Any) -> tuple[str, ...]:
    """Options that name a queue, which is there, and a table."""
    url = pubsub.url()
    make_queue(url)
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(TASKS)))
    command.write("work.py", WORK)
    return ("--queue", url, "--table", f"sqlite:///{command.folder}/t.db")


def test_from_init_to_results(pubsub: Emulator, command: Any) -> None:
    url, table = pubsub.url(), f"sqlite:///{command.folder}/t.db"
    name = url.rpartition("/")[2]
    refused = command("submit", "t.csv", "--run", "echo {x}", "--queue", url, "--table", table)
    assert refused.code == 2
    command.write("t.csv", "x\n1\n2\n3\n")
    refused = command("submit", "t.csv", "--run", "echo {x}", "--queue", url, "--table", table)
    assert refused.code == 2
    assert "make it with `mtask init`" in refused.err
    looked = command("doctor", "--queue", url, "--table", table)
    assert (looked.code, "`mtask init` makes it" in looked.out) == (1, True)
    made = command("init", url, "--table", table)
    assert made.code == 0, made.err
    assert [line for line in made.out.splitlines() if name in line] == [
        f"{'made':<10} topic {name}-dead in test-project",
        f"{'made':<10} subscription {name}-dead in test-project",
        f"{'made':<10} topic {name} in test-project",
        f"{'made':<10} subscription {name} in test-project",
    ]
    assert command("init", url, "--table", table).out.startswith("was there")
    looked = command("doctor")
    assert looked.code == 0, looked.out
    assert "it can't tell how many messages are in it" in looked.out
    ran = command.process("run", "t.csv", "--run", "echo {x}", "--bag", "june")
    assert ran.code == 0, ran.err
    assert [result.stdout for result in command.results("june")] == ["1\n", "2\n", "3\n"]


def test_progress_comes_from_the_table(places: tuple[str, ...], command: Any) -> None:
    task = ("t.csv", "--call", "work:f", "--bag", "b", "--per-message", "10")
    assert command("submit", *task, *places).code == 0
    told = command("status", *places)
    assert (told.code, told.err) == (0, "")
    assert "None" not in told.out
    assert json.loads(command("status", "b", "--json", *places).out)["left"] == TASKS
    waiting = command.start("wait", "b", *places)
    began_s = time.monotonic()
    worked = command("worker", "-j", "2", "--idle-exit", "1s", *places)
    assert worked.code == 0, worked.err
    assert f"{TASKS} done" in worked.err
    assert time.monotonic() - began_s < 25, "it ends soon when it has nothing to do"
    assert waiting.wait(30) == 0
    assert json.loads(command("status", "b", "--json", *places).out)["left"] == 0


def test_retries_and_what_must_wait_come_in_time(places: tuple[str, ...], command: Any) -> None:
    command.write("few.csv", "x\n1\n2\n")
    began_s = time.time()
    ran = command.process(
        *("run", "few.csv", "--call", "work:fails_once", "--retries", "1", "--bag", "later"),
        *("--not-before", "1.5s", *places),
    )
    assert ran.code == 0, ran.err
    with mtask.connect(places[1], places[3]) as mt:
        assert min(row.started_at or 0.0 for row in mt.bag("later").results()) >= began_s + 0.9


def test_lanes_and_a_cancelled_bag(places: tuple[str, ...], command: Any) -> None:
    task = ("t.csv", "--call", "work:f", "--per-message", "40")
    assert command("submit", *task, "--bag", "high", "--priority", "5", *places).code == 0
    assert command("submit", *task, "--bag", "gone", *places).code == 0
    assert command("submit", *task, "--bag", "few", "--max-running", "1", *places).code == 0
    assert command("cancel", "gone", *places).code == 0
    worked = command("worker", "-j", "2", "--idle-exit", "1s", *places)
    assert worked.code == 0, worked.err
    left = {
        bag: json.loads(command("status", bag, "--json", *places).out)["done"]
        for bag in ("high", "few", "gone")
    }
    assert left == {"high": TASKS, "few": TASKS, "gone": 0}
    with closing(open_queue(places[1])) as queue:
        assert queue.receive(max_messages=1, lease_s=5, wait_s=0.5) == []


def test_dead_letters_are_shown(places: tuple[str, ...], command: Any) -> None:
    command.write("one.csv", "x\n1\n")
    assert command("submit", "one.csv", "--call", "work:f", "--bag", "b", *places).code == 0
    client, address = Client(address_of(places[1])), address_of(places[1])
    path = f"projects/{address.project}/subscriptions/{address.name}"
    policy = {
        "dead_letter_topic": f"projects/{address.project}/topics/{address.name}-dead",
        "max_delivery_attempts": 5,
    }
    with closing(client):
        change = {"subscription": {"name": path, "dead_letter_policy": policy}}
        client.subscriber.update_subscription(
            request={**change, "update_mask": {"paths": ["dead_letter_policy"]}}
        )
        for _ in range(5):
            (taken,) = client.subscriber.pull(subscription=path, max_messages=1, timeout=5).received_messages
            assert Message.decode(taken.message.data).bag == "b"
            client.subscriber.modify_ack_deadline(
                subscription=path, ack_ids=[taken.ack_id], ack_deadline_seconds=0
            )
        assert not client.subscriber.pull(subscription=path, max_messages=1, timeout=0.7).received_messages
    told = command("dead", *places)
    assert "delivered 5 times and never deleted; Pub/Sub has moved it here" in " ".join(told.out.split())
    assert command("repair", "b", *places).code == 0
    assert command("worker", "--max-tasks", "1", *places).code == 0
    assert json.loads(command("status", "b", "--json", *places).out)["done"] == 1


# -- costs ------------------------------------------------------------------------------------------


def test_a_run_takes_about_what_was_estimated(places: tuple[str, ...], command: Any) -> None:
    task = ("t.csv", "--call", "work:f", "--per-message", "10", "--bag", "t")
    estimated = json.loads(command("submit", *task, "--estimate", "--json", *places).out)["packed"]["used"]
    assert command("submit", *task, *places).code == 0
    submitted = json.loads(command("status", "t", "--json", *places).out)["cost"]["used"]
    assert submitted["pubsub publishes"] == 1
    assert command("worker", "-j", "2", "--max-tasks", str(TASKS), *places).code == 0
    cost = json.loads(command("status", "t", "--json", *places).out)["cost"]
    used = cost["used"]
    assert estimated["pubsub bytes"] / 2 <= used["pubsub bytes"] <= 2.5 * estimated["pubsub bytes"] + 5000
    assert set(cost["dollars_by_unit"]) == {"pubsub bytes"}
    assert cost["dollars"] == pytest.approx(used["pubsub bytes"] * 40 / 2**40, rel=0.01, abs=1e-9)
    assert "prices of us-west1, 2026-11" in " ".join(command("status", "t", *places).out.split())


def test_an_estimate_needs_no_queue() -> None:
    million = Load(tasks=10**6, messages=10**4, message_bytes=400 * 10**6, result_bytes=0)
    assert 800e6 < queue_units("pubsub://p/reads", million)["pubsub bytes"] < 802e6
    alone = Load(tasks=1000, messages=1000, message_bytes=300_000, result_bytes=0, alone=True)
    assert queue_units("pubsub://p/reads", alone) == {"pubsub bytes": 2_000_000.0}
    assert prices_of(Urls("pubsub://my-project/reads", "sqlite:///t.db")) == [PRICES]


def test_what_workers_elsewhere_need(pubsub: Emulator) -> None:
    assert worker_environment(pubsub.url(), "sqlite:///t.db") == [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_CLOUD_PROJECT",
        "PUBSUB_EMULATOR_HOST",
        "FIRESTORE_EMULATOR_HOST",
        "STORAGE_EMULATOR_HOST",
    ]


def test_another_backend_does_not_import_googles_client(command: Any) -> None:
    code = "import sys, mtask.cli, mtask.registry; mtask.registry.backend('sqlite:///a'); print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"

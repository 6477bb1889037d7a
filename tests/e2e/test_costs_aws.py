"""What SQS and DynamoDB are asked for is counted, and about what was estimated; against a moto server."""

from __future__ import annotations

import json
import math
from uuid import uuid4

import pytest

import mtask
from mtask.costs import prices_of
from mtask.estimate import Load
from mtask.settings import Urls

pytest.importorskip("boto3")

import mtask_aws
from mtask_aws.prices import PRICES, queue_units, table_units
from mtask_aws.setup_queue import make_queue
from mtask_aws.setup_table import make_table

TASKS = 300
QUEUE, TABLE = "sqs://us-east-1/reads", "dynamodb://us-east-1/reads"


@pytest.fixture
def places(moto, command):
    """Options that name a queue and a table that are there."""
    name = f"costs-{uuid4().hex[:8]}"
    queue, table = f"sqs://us-east-1/{name}", f"dynamodb://us-east-1/{name}"
    make_queue(queue)
    make_table(table)
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(TASKS)))
    command.write("work.py", "def f(x: int) -> int:\n    return x\n")
    return ("--queue", queue, "--table", table)


def test_a_run_takes_about_what_was_estimated(command, places, monkeypatch):
    monkeypatch.setattr("mtask.worker.receiver.LONG_POLL_S", 1.0)  # the last one is waited for
    task = ("t.csv", "--call", "work:f", "--per-message", "10")
    estimated = json.loads(command("submit", *task, "--estimate", "--json", *places).out)["packed"]["used"]
    assert command("submit", *task, *places).code == 0
    submitted = json.loads(command("status", "t", "--json", *places).out)["cost"]
    assert submitted["used"]["sqs requests"] == submitted["used"]["sqs sends"] == 3.0
    assert submitted["dollars_per_million"] is None
    code, _, err = command("worker", "-j", "2", "--max-tasks", str(TASKS), *places)
    assert (code, f"{TASKS} done" in err) == (0, True)
    cost = json.loads(command("status", "t", "--json", *places).out)["cost"]
    used = cost["used"]
    for unit in ("sqs requests", "dynamodb write units"):
        assert estimated[unit] / 2 <= used[unit] <= 2.5 * estimated[unit], unit
    assert used["sqs requests"] == sum(used[f"sqs {each}"] for each in ("sends", "receives", "deletes"))
    assert used["dynamodb read units"] > 0
    assert set(cost["dollars_by_unit"]) == {"sqs requests", "dynamodb write units", "dynamodb read units"}
    assert cost["dollars"] == pytest.approx(sum(PRICES.dollars.get(unit, 0) * used[unit] for unit in used))
    told = " ".join(command("status", "t", *places).out.split())
    assert f"cost {used['sqs requests']:,.0f} sqs requests, " in told
    assert "a million tasks; prices of us-east-1, 2026-11)" in told
    assert "sqs sends" not in told


def test_an_estimate_needs_neither_queue_nor_table_nor_credentials(command, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    command.write("t.csv", "x\n1\n2\n")
    code, out, err = command(
        "submit", "t.csv", "--run", "echo {x}", "--estimate", "--queue", QUEUE, "--table", TABLE
    )
    assert (code, err) == (0, "")
    assert "one message for each 6 sqs requests, 2 dynamodb write units" in " ".join(out.split())


def test_results_on_dynamodb_can_expire(command, places):
    code, _, err = command("submit", "t.csv", "--call", "work:f", "--keep", "30d", *places)
    assert (code, "keeps results for ever" in err) == (0, False)
    with mtask.connect(places[1], places[3]) as mt:
        assert mt.bag("t").info.spec.keep_s == 30 * 86400


def test_the_backend_tells_its_prices():
    assert mtask_aws.PRICES is PRICES
    assert prices_of(Urls(QUEUE, TABLE)) == [PRICES]
    assert PRICES.million("sqs requests") == pytest.approx(0.40)
    assert PRICES.million("sqs fifo requests") == pytest.approx(0.50)
    assert PRICES.million("dynamodb write units") == pytest.approx(0.625)
    assert PRICES.million("dynamodb read units") == pytest.approx(0.125)
    assert PRICES.million("s3 puts") == pytest.approx(5.0)
    assert PRICES.million("s3 gets") == pytest.approx(0.4)


def test_one_message_for_each_is_the_predictor_of_the_literature():
    alone = Load(tasks=1000, messages=1000, message_bytes=200_000, result_bytes=300_000, alone=True)
    assert queue_units(QUEUE, alone) == {"sqs requests": 3000.0}
    assert queue_units(f"{QUEUE}?fifo=1", alone) == {"sqs fifo requests": 3000.0}
    assert table_units(TABLE, alone) == {"dynamodb write units": 1000.0}


def test_large_messages_are_several_requests():
    large = Load(tasks=100, messages=100, message_bytes=100 * 60_000, result_bytes=1)
    tens = 10
    units = math.ceil(10 * 60_000 / 65536)
    assert queue_units(QUEUE, large) == {"sqs requests": float(tens * (2 * units + 1))}


def test_ten_thousand_small_tasks_take_a_twentieth_of_a_request_each(command):
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(10_000)))
    options = ("--estimate", "--json", "--queue", QUEUE, "--table", TABLE)
    found = json.loads(command("submit", "t.csv", "--run", "echo {x}", *options).out)
    assert found["packed"]["used"]["sqs requests"] <= 0.05 * 10_000
    assert found["packed"]["used"]["dynamodb write units"] <= 1.1 * 10_000

"""What a queue on Azure is asked for is counted, and about what was estimated; against Azurite."""

from __future__ import annotations

import json

import pytest

import mtask_azure
from mtask.costs import prices_of
from mtask.settings import Urls
from mtask_azure.prices import OPERATIONS
from tests.servers.azure import Azurite

TASKS = 300


def test_a_run_takes_about_what_was_estimated(command, azurite: Azurite):
    places = ("--queue", azurite.new(), "--table", "sqlite:///t.db")
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(TASKS)))
    command.write("work.py", "def f(x: int) -> int:\n    return x\n")
    task = ("t.csv", "--call", "work:f", "--per-message", "10")
    estimated = json.loads(command("submit", *task, "--estimate", "--json", *places).out)["packed"]["used"]
    assert estimated == {OPERATIONS: 61}
    assert command("submit", *task, *places).code == 0
    submitted = json.loads(command("status", "t", "--json", *places).out)["cost"]["used"]
    assert submitted == {OPERATIONS: 30}
    code, _, err = command("worker", "-j", "2", "--max-tasks", str(TASKS), *places)
    assert (code, f"{TASKS} done" in err) == (0, True)
    cost = json.loads(command("status", "t", "--json", *places).out)["cost"]
    assert 61 <= cost["used"][OPERATIONS] <= 2.5 * 61
    assert cost["dollars"] == pytest.approx(cost["used"][OPERATIONS] * 0.4e-6)
    assert "a million tasks; prices of East US, 2026-11)" in " ".join(
        command("status", "t", *places).out.split()
    )


def test_the_backend_tells_its_prices():
    urls = Urls("azureq://mystorage/reads", "sqlite:///t.db")
    assert prices_of(urls) == [mtask_azure.PRICES]
    assert mtask_azure.PRICES.million(OPERATIONS) == pytest.approx(0.40)


def test_an_estimate_needs_neither_queue_nor_credentials(command):
    command.write("t.csv", "x\n1\n2\n")
    code, out, err = command(
        "submit", "t.csv", "--run", "echo {x}", "--estimate", "--queue", "azureq://mystorage/reads"
    )
    assert (code, err) == (0, "")
    assert "one message for each 6 azure queue operations" in " ".join(out.split())

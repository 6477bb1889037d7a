"""Queue and table at Google from the queue's URL alone: `init`, `doctor`, a run, what it has cost; over Google's emulators."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from mtask.costs import prices_of
from mtask.registry import table_beside
from mtask.settings import Urls
from mtask_gcp import PRICES, diagnose
from tests.servers.gcp import Emulator

TASKS = 200


@pytest.fixture
def url(pubsub: Emulator, storage: str, command: Any) -> str:
    """Of a queue that isn't there yet; so is the table of its name."""
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(TASKS)))
    command.write("work.py", "def f(x: int) -> str:\n    return 'a' * x\n")
    return pubsub.url()


def test_one_url_is_enough(url: str, command: Any) -> None:
    name = url.rpartition("/")[2]
    assert table_beside(url) == f"firestore://test-project/{name}"
    looked = command("doctor", "--queue", url)
    assert looked.code == 1
    said = " ".join(looked.out.split())
    assert f"there is no subscription '{name}'" in said
    assert f"there is no table '{name}'" in said, "both are looked at, though the queue isn't there"

    made = command("init", url)
    assert made.code == 0, made.err
    lines = [line.split(maxsplit=1) for line in made.out.splitlines()]
    assert [line[0] for line in lines[:5]] == ["made"] * 5
    assert ["made", f"table firestore://test-project/{name}"] in lines
    assert ["made", f"bucket gs://test-project-mtask-{name}"] in lines
    assert command.read("mtask.toml") == f'queue = "{url}"\n'

    looked = command("doctor")
    assert looked.code == 0, looked.out
    said = " ".join(looked.out.split())
    assert said.count("credentials: ") == said.count("clock: ") == said.count("permissions: ") == 1
    assert "PUBSUB_EMULATOR_HOST" in said
    assert "FIRESTORE_EMULATOR_HOST" in said

    ran = command.process("run", "t.csv", "--call", "work:f", "-j", "2")
    assert ran.code == 0, ran.err
    assert [row.value for row in command.results("t")] == ["a" * n for n in range(TASKS)]


def test_costs_are_those_of_queue_and_table(url: str, command: Any) -> None:
    assert command("init", url).code == 0
    task = ("t.csv", "--call", "work:f", "--per-message", "10")
    estimate = json.loads(command("submit", *task, "--estimate", "--json").out)["packed"]["used"]
    assert estimate.keys() == {"pubsub bytes", "firestore writes"}
    assert command("submit", *task).code == 0
    assert command("worker", "-j", "2", "--max-tasks", str(TASKS)).code == 0
    cost = json.loads(command("status", "t", "--json").out)["cost"]
    for unit, count in estimate.items():
        assert count / 2 <= cost["used"][unit] <= 2.5 * count + 5000 * (unit == "pubsub bytes")
    assert cost["dollars"] == pytest.approx(
        sum(PRICES.dollars.get(unit, 0) * used for unit, used in cost["used"].items()), abs=1e-8
    )
    assert {"pubsub bytes", "firestore writes", "firestore reads"} <= cost["dollars_by_unit"].keys()
    told = " ".join(command("status", "t").out.split())
    assert told.count("prices of us-west1, 2026-11)") == 1
    assert prices_of(Urls(url, url.replace("pubsub:", "firestore:"))) == [PRICES]


def test_credentials_that_are_missing_are_said_once(
    url: str, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    """Of the two services, one is at an emulator here; the other needs credentials."""
    urls = [url, url.replace("pubsub:", "firestore:")]
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(command.folder / "none.json"))
    assert Counter(each.what for each in diagnose(urls, ["worker"]))["credentials"] == 1
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST")
    emulator, missing = diagnose(urls, ["worker"])
    assert (emulator.ok, missing.what, missing.ok, missing.stops) == (True, "credentials", False, True)
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    (missing,) = diagnose(urls, ["worker"])
    assert "gcloud auth application-default login" in missing.todo

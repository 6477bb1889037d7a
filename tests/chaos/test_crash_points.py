"""`kill -9` between every two writes of submit, work, split, drain, retry, repair, cancel,
and of adding to an open bag from outside and by a task (promise 3).

`crash_driver` does it; see there what is checked after each kill.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.crash_driver import MOST_POINTS, SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
LEAST_POINTS = {
    "submit": 20,
    "sent": 16,
    "work": 12,
    "split": 6,
    "drain": 4,
    "retry": 6,
    "repair": 2,
    "cancel": 6,
    "add": 24,
    "retry-open": 6,
    "spawn": 20,
    "then": 20,
}
"""Fewer would mean that the driver no longer reaches what it is to kill."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The driver's report on a scenario; two of them run at a time."""
    folder = tmp_path_factory.mktemp("crash")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_PROCESS")}

    def drive(scenario: str) -> dict[str, Any]:
        (folder / scenario).mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.crash_driver", scenario, str(folder / scenario)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {"stderr": done.stderr, **json.loads(done.stdout)}

    with ThreadPoolExecutor(2) as pool:
        futures = {scenario: pool.submit(drive, scenario) for scenario in SCENARIOS}
        yield lambda scenario: futures[scenario].result()
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_every_write_heals(scenario: str, reports: Callable[[str], dict[str, Any]]) -> None:
    report = reports(scenario)
    assert report["wrong"] == {}, report["stderr"]
    assert LEAST_POINTS[scenario] <= report["points"] < MOST_POINTS

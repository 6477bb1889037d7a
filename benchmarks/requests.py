"""What a bag takes of SQS and DynamoDB, and what that costs: counted by the client, on a moto server."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement, environment, sandbox, write_csv
from tests.servers.aws import MOTO

__all__ = ["CASES", "moto_server"]

TASKS = 10_000
MILLION = 1e6
MOST = 2
"""Repetitions: counts hardly differ, and moto takes minutes for them."""
START_S = 60.0
NAME = "mtask-requests"
QUEUE, TABLE = f"sqs://us-east-1/{NAME}", f"dynamodb://us-east-1/{NAME}"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""AWS's own example, which opens nothing."""
UNWANTED = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "MTASK_QUEUE",
    "MTASK_TABLE",
)


def requests(repeats: int) -> list[Measurement]:
    """No-op function tasks by way of SQS and DynamoDB, from `mtask submit` to the end of the worker."""
    found = []
    for what, options in (("", ()), (", 100 tasks a message", ("--per-message", "100"))):
        once = functools.partial(_run, options)
        runs = [sandbox(once) for _ in range(min(repeats, MOST))]
        found += _measurements(what, runs)
    return [*found, *_predicted()]


def _measurements(what: str, runs: list[dict[str, Any]]) -> list[Measurement]:
    def of_a_task(unit: str) -> list[float]:
        return [run["used"].get(unit, 0.0) / TASKS for run in runs]

    used = runs[0]["used"]
    parts = ", ".join(
        f"{unit.removeprefix('sqs ')} {count / TASKS:.4f}"
        for unit, count in used.items()
        if unit.startswith("sqs ") and "requests" not in unit
    )
    return [
        Measurement(
            f"SQS requests a task{what}",
            "requests",
            of_a_task("sqs requests"),
            goal=0.05,
            at_most=True,
            note=f"{TASKS:,} no-op calls; {parts}",
        ),
        Measurement(
            f"write units a result{what}",
            "units",
            of_a_task("dynamodb write units"),
            goal=1.1,
            at_most=True,
            note="blocks, bags and heartbeats included",
        ),
        Measurement(f"read units a result{what}", "units", of_a_task("dynamodb read units")),
        Measurement(
            f"a million tasks{what}",
            "dollars",
            [run["dollars_per_million"] for run in runs],
            note=f"prices of {runs[0]['prices']}",
        ),
    ]


def _predicted() -> list[Measurement]:
    """The predictor of the literature: one send, one receive, one put, one delete for each task."""
    from mtask_aws.prices import PRICES

    dollars = 3 * PRICES.million("sqs requests") + PRICES.million("dynamodb write units")
    note = "one send, one receive, one put, one delete each: 3 requests, 1 write unit"
    return [Measurement("a million tasks, as the literature predicts", "dollars", [dollars], note=note)]


def _run(options: Sequence[str], folder: Path) -> dict[str, Any]:
    """The cost that `mtask status` tells when all is done. Nobody looks meanwhile: moto answers a query by sorting
    the whole table."""
    write_csv(folder / "tasks.csv", TASKS)
    with moto_server(folder / "moto.log") as url:
        env = {name: value for name, value in environment().items() if name not in UNWANTED}
        env |= CREDENTIALS | {"AWS_ENDPOINT_URL": url}
        _in_python(env, "mtask_aws.setup_queue", "make_queue", QUEUE)
        _in_python(env, "mtask_aws.setup_table", "make_table", TABLE)
        _mtask(folder, env, "submit", "tasks.csv", "--call", "benchmarks.tasks:noop", *options)
        _mtask(folder, env, "worker", "-j", "2", "--max-tasks", str(TASKS), "--notices", "off")
        status = json.loads(_mtask(folder, env, "status", "tasks", "--json"))
    if status["done"] != TASKS:
        raise RuntimeError(f"{status['done']} of {TASKS} tasks are done")
    cost: dict[str, Any] = status["cost"]
    return cost


def _mtask(folder: Path, env: dict[str, str], *arguments: str) -> str:
    """The real command; what it prints. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "mtask", *arguments, "--queue", QUEUE, "--table", TABLE]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mtask {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def _in_python(env: dict[str, str], module: str, function: str, url: str) -> None:
    """In a process of its own, whose environment says where AWS is."""
    program = f"import {module}; {module}.{function}({url!r})"
    subprocess.run([sys.executable, "-c", program], env=env, check=True)


@contextlib.contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """The URL of a moto server on a free port of 127.0.0.1, until the end of the block."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(MOTO), "-", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, **CREDENTIALS},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline_s = time.monotonic() + START_S
        while not _answers(f"{url}/moto-api/"):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"moto did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


CASES = {"requests": requests}

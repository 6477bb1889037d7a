"""No-op tasks through a RabbitMQ broker of its own, on this machine, with SQLite as the table."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.measure import Measurement, run_mtask, sandbox, write_csv
from tests.servers.rabbitmq import PASSWORD, Broker, broker

__all__ = ["CASES"]

TASKS = 100_000
SINGLES = 2_000


def rabbitmq(repeats: int) -> list[Measurement]:
    """From a CSV file to all results durable, 2 slots: as mtask packs them, and with one task a message, which is what
    the broker's own work costs."""
    os.environ["MTASK_AMQP_PASSWORD"] = PASSWORD
    with tempfile.TemporaryDirectory(prefix="mtask-rabbit-") as folder, broker(Path(folder)) as server:
        packed = [TASKS / _run(server, TASKS) for _ in range(repeats)]
        singles = [SINGLES / _run(server, SINGLES, "--per-message", "1") for _ in range(repeats)]
    return [
        Measurement("RabbitMQ and SQLite", "tasks/s", packed, note=f"{TASKS:,} no-op calls"),
        Measurement(
            "the same, single tasks", "tasks/s", singles, note=f"{SINGLES:,}, each a message of its own"
        ),
    ]


def _run(server: Broker, rows: int, *options: str) -> float:
    """Seconds."""

    def once(folder: Path) -> float:
        places = ("--queue", server.url(), "--table", f"sqlite:///{folder}/t.db")
        write_csv(folder / "tasks.csv", rows)
        run_mtask(folder, "init", places[1], *places[2:], "--no-file")
        call = ("--call", "benchmarks.tasks:noop", "-j", "2", "--quiet")
        return run_mtask(folder, "run", "tasks.csv", *call, *options, *places).wall_s

    return sandbox(once)


CASES = {"rabbitmq": rabbitmq}

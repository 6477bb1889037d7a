"""Ray, a cluster on this machine."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.peer import SLOTS, Peer, Run, Table, Task, folder
from benchmarks.peers.tasks import noop, spawn

__all__ = ["PEERS", "client"]

PEERS = (
    Peer(
        "ray",
        settings=f"ray.init(num_cpus={SLOTS}), no dashboard; all tasks submitted, then one ray.get of all (Ray docs, "
        "Anti-pattern: calling ray.get in a loop; that of too fine-grained tasks says to batch them, which is left out "
        "here: each task is one of Ray's)",
        durable="nothing",
        requirements=("ray==2.60.0",),
    ),
)


@contextmanager
def client(name: str) -> Iterator[Run]:  # noqa: ARG001
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        object_store_memory=200 * 2**20,
        _temp_dir=str(folder() / "r"),  # its sockets' paths must be short
    )
    remote: dict[Task, Any] = {task: ray.remote(task) for task in (noop, spawn)}

    def run(task: Task, table: Table) -> list[int]:
        return list(ray.get([remote[task].remote(*row) for row in table.rows()]))

    try:
        yield run
    finally:
        ray.shutdown()

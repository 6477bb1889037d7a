"""`mtask`, with a queue and a table to which `$CHAOS` (JSON) does harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mtask.cli.work
from mtask.cli import main
from mtask.manager import Manager, connect
from mtask.testing.faults import Faults, FaultyQueue, FaultyTable, Rates


def connect_badly(queue: str | None, table: str | None, **_: Any) -> Manager:
    harm = json.loads(os.environ["CHAOS"])
    manager = connect(queue, table)
    faults = Faults(
        # Each worker has other chances, and the same seed the same ones.
        seed=harm["seed"] + os.getpid(),
        rates=Rates(**harm["rates"]),
        down=Path(harm["down"]),
        together=not harm["rates"],
    )
    manager.queue, manager.table = FaultyQueue(manager.queue, faults), FaultyTable(manager.table, faults)
    return manager


if __name__ == "__main__":
    mtask.cli.work.connect = connect_badly  # type: ignore[assignment]
    main()

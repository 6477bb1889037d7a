"""`mtask`, with a queue and a table to which `$CHAOS` (JSON) does harm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import mtask.cli.work
from mtask.cli import main
from mtask.errors import MessageError
from mtask.lanes import Lanes
from mtask.manager import Manager, connect
from mtask.model import Delivery, Message
from mtask.queue import Queue
from mtask.testing.faults import Faults, FaultyQueue, FaultyTable, Rates


class Told(Lanes):
    """Writes down what it receives, with the true time."""

    def __init__(self, main: Queue, log: Path) -> None:
        super().__init__(main)
        self._log = log

    def receive(self, **options: Any) -> list[Delivery]:
        deliveries = super().receive(**options)
        now = time.clock_gettime(time.CLOCK_REALTIME)
        for delivery in deliveries:
            try:
                message = Message.decode(delivery.body)
            except MessageError:
                continue
            span = f"{message.first} {message.first + message.count}"
            line = f"{message.bag} {span} {delivery.deliveries + message.deaths} {os.getpid()} {now:.6f}\n"
            with open(self._log, "a") as log:
                log.write(line)
        return deliveries


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
    manager.queue = Told(FaultyQueue(Lanes.over(manager.queue).main, faults), Path(harm["receipts"]))
    manager.table = FaultyTable(manager.table, faults)
    return manager


if __name__ == "__main__":
    mtask.cli.work.connect = connect_badly  # type: ignore[assignment]
    main()

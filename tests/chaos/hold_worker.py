"""`mtask`, with a queue in a file where nobody can hold a message for longer than `$HOLD_S`, as on SQS.

With `$COUNTS_RELEASES` it says that it counts what is given back, so that copies are sent instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

import mtask.cli.work
from mtask.cli import main
from mtask.manager import Manager, connect
from mtask.model import Delivery
from mtask.queue import Extension
from mtask.worker import guard
from mtask_sqlite import SqliteQueue

HOLD_S = float(os.environ.get("HOLD_S", "4"))
DELAY_S = 1.0


class ShortHoldQueue(SqliteQueue):
    """After `HOLD_S` a message is somebody else's, whatever its holder does."""

    limits = msgspec.structs.replace(
        SqliteQueue.limits,
        hold_s=HOLD_S,
        delay_s=DELAY_S,
        counts_releases="COUNTS_RELEASES" in os.environ,
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since_s: dict[int, float] = {}

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        deliveries = super().receive(max_messages=max_messages, lease_s=lease_s, wait_s=wait_s)
        self._since_s |= {each.token.id: time.monotonic() for each in deliveries}
        return deliveries

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        now_s = time.monotonic()
        over = [each for each in deliveries if now_s - self._since_s[each.token.id] > HOLD_S]
        held = [each for each in deliveries if each not in over]
        if over:
            super().release(over)
        extension = super().extend(held, lease_s=lease_s)
        return Extension(extension.extended, extension.lost + over)


def connect_shortly(queue: str | None, table: str | None, **_: Any) -> Manager:
    manager = connect(queue, table)
    main = manager.queue.main
    assert isinstance(main, SqliteQueue)
    manager.queue.main = ShortHoldQueue(main.database)
    return manager


if __name__ == "__main__":
    mtask.cli.work.connect = connect_shortly  # type: ignore[attr-defined]
    guard.SILENT_S, guard.CALM_S = float(os.environ.get("SILENT_S", "6")), 1.0
    main()

"""Queues and tables that fail, for tests: by chance from a seed, on demand, or at an exact point.

A wrapped queue or table does what the real one does, except that a call may

- raise UnavailableError before anything happened, or after it happened, when nobody can know;
- be slow; deliver in another order; send twice, or not at all;
- end the process by SIGKILL just before or just after a write (`crash_at`).

Unless told otherwise, the two are never written together: `transaction` is what it is on a cloud.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import msgspec

from mtask.errors import UnavailableError
from mtask.lanes import Lanes
from mtask.queue import Queue
from mtask.table import Table

__all__ = ["Faults", "FaultyQueue", "FaultyTable", "Rates"]

WRITES = {
    "queue": {"send", "delete", "release", "extend", "remove"},
    "table": {
        *("create_bag", "update_bag", "put_blocks", "record", "retract", "keep_attempts", "set_aside"),
        *("put_lanes", "remove_lane", "swap"),
    },
}
"""The calls after which another process sees something new. Heartbeats and receives are no points to crash at."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """How often, 0 to 1 of all calls, and how long."""

    before: float = 0.0
    """UnavailableError, and nothing happened."""
    after: float = 0.0
    """UnavailableError, though it happened."""
    duplicate: float = 0.0
    """Of sends: every message twice."""
    drop: float = 0.0
    """Of sends: half of the messages are lost without a word, as with a broker's disk."""
    delay: float = 0.0
    delay_s: float = 0.05


class Faults:
    """What goes wrong, in one process. The same seed gives the same chances to the same calls."""

    def __init__(
        self,
        *,
        seed: int = 0,
        rates: Rates | None = None,
        down: Path | None = None,
        crash_at: int | None = None,
        together: bool = False,
    ) -> None:
        """`down`: a folder; while the file `queue` or `table` is in it, that one is out of reach.
        `crash_at`: the process dies at this point; a write has two, before and after it, from 0.
        `together`: the table's `transaction` is the real one."""
        self.rates = rates or Rates()
        self.together = together
        self._rng = random.Random(seed)
        self._down, self._crash_at = down, crash_at
        self._lock = threading.Lock()
        self.points: list[str] = []
        """The points passed so far."""

    def call(self, side: str, name: str, real: Callable[[], Any]) -> Any:
        if self._down is not None and (self._down / side).exists():
            raise UnavailableError(f"the {side} is down, as the test wants it")
        with self._lock:
            chances = [self._rng.random() for _ in range(3)]
        if chances[0] < self.rates.delay:
            time.sleep(self.rates.delay_s)
        if chances[1] < self.rates.before:
            raise UnavailableError(f"a chance fault before {side}.{name}")
        is_write = name in WRITES[side]
        if is_write:
            self._point(f"before {side}.{name}")
        answer = real()
        if is_write:
            self._point(f"after {side}.{name}")
        if chances[2] < self.rates.after:
            raise UnavailableError(f"a chance fault after {side}.{name}")
        return answer

    def chance(self, rate: float) -> bool:
        with self._lock:
            return self._rng.random() < rate

    def shuffle(self, items: list[Any]) -> None:
        with self._lock:
            self._rng.shuffle(items)

    def _point(self, name: str) -> None:
        with self._lock:
            self.points.append(name)
            if self._crash_at is not None and len(self.points) > self._crash_at:
                os.kill(os.getpid(), signal.SIGKILL)


class _Faulty:
    """Passes every call on by way of the faults."""

    _side = ""

    def __init__(self, real: Any, faults: Faults) -> None:
        self._real, self._faults = real, faults

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._real, name)
        if not callable(attribute) or name in ("close", "wake"):
            return attribute
        return lambda *args, **kwargs: self._faults.call(self._side, name, lambda: attribute(*args, **kwargs))


class _FaultyQueue(_Faulty):
    _side = "queue"

    def send(self, messages: Any, *, delay_s: float = 0) -> None:
        if self._faults.chance(self._faults.rates.duplicate):
            messages = [*messages, *messages]
        if self._faults.chance(self._faults.rates.drop):
            messages = messages[1::2]
        self._faults.call("queue", "send", lambda: self._real.send(messages, delay_s=delay_s))

    def receive(self, **options: Any) -> Any:
        deliveries = self._faults.call("queue", "receive", lambda: self._real.receive(**options))
        self._faults.shuffle(deliveries)
        return deliveries

    def lane(self, name: str) -> Queue:
        return FaultyQueue(self._faults.call("queue", "lane", lambda: self._real.lane(name)), self._faults)


class _FaultyTable(_Faulty):
    _side = "table"

    def transaction(self, queue: Any) -> Any:
        if not self._faults.together:
            return nullcontext()
        main = queue.main if isinstance(queue, Lanes) else queue
        return self._real.transaction(getattr(main, "_real", main))


def FaultyQueue(queue: Queue, faults: Faults) -> Queue:
    """The same with faults; of `Lanes`, each physical queue has them."""
    if isinstance(queue, Lanes):
        return Lanes(FaultyQueue(queue.main, faults))
    return cast(Queue, _FaultyQueue(queue, faults))


def FaultyTable(table: Table, faults: Faults) -> Table:
    return cast(Table, _FaultyTable(table, faults))

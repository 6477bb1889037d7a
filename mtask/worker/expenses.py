"""What a worker uses of vendors who bill by use, shared among the bags it works for."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from mtask.costs import add, charge
from mtask.meter import Used, reading, since
from mtask.table import Table

__all__ = ["Expenses"]

ACCOUNT_S = 3600.0
"""How long something stays out of the bag's account at most."""
OVER_S = 60.0
"""A bag of which nothing was held or ended for so long has no more to come."""


class _Open:
    """What was used for a bag and isn't in its account yet."""

    def __init__(self, now_s: float) -> None:
        self.used: Used = {}
        self.charging: tuple[str, Used] | None = None
        """A charge that was tried, with its receipt: nobody knows whether it arrived."""
        self.since_s = self.busy_s = now_s

    def all(self) -> Used:
        return add(self.used, self.charging[1] if self.charging else {})


class Expenses:
    """Shares what the meters of queue and table count; `ended` may be called from any thread, the rest from one.

    What was used between two looks goes to the bags whose tasks ended meanwhile, by their numbers; where
    none ended, to those of which messages are held, each the same. In the first interval without either, what was
    still to be written and deleted goes where that before it went; after it the worker is idle, for
    nobody's bag.
    """

    def __init__(self, sources: Iterable[Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`sources`: a queue and a table, with a meter or without."""
        self._sources, self._clock = tuple(sources), clock
        self._last = reading(self._sources)
        self._ended: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._shares: dict[str, float] = {}
        self._open: dict[str, _Open] = {}

    def start(self) -> None:
        """Count from here on."""
        self._last = reading(self._sources)

    def ended(self, uid: str, tasks: int) -> None:
        """So many tasks of the bag with this uid."""
        with self._lock:
            self._ended[uid] += tasks

    def look(self, held: Collection[str]) -> None:
        """Share what was used since the last look; `held`: the uids of the bags of held messages."""
        now = reading(self._sources)
        used, self._last = since(self._last, now), now
        with self._lock:
            ended, self._ended = self._ended, Counter()
        shares, self._shares = self._shares, dict(ended) or dict.fromkeys(held, 1.0)
        shares = self._shares or shares
        whole = sum(shares.values())
        for uid, share in shares.items() if used else ():
            found = self._open.setdefault(uid, _Open(self._clock()))
            found.used = add(found.used, {unit: count * share / whole for unit, count in used.items()})
        for uid in {*ended, *held} & self._open.keys():
            self._open[uid].busy_s = self._clock()

    def by_bag(self) -> dict[str, Used]:
        """By uid, what isn't in the bag's account yet."""
        return {
            uid: {unit: round(count, 3) for unit, count in each.all().items()}
            for uid, each in self._open.items()
        }

    def settle(self, table: Table, *, everything: bool = False) -> None:
        """Put into the bags' accounts what is due, or all. Raises what the table raises; to be called again."""
        now_s = self._clock()
        for uid, each in list(self._open.items()):
            due = now_s - each.since_s >= ACCOUNT_S or now_s - each.busy_s >= OVER_S
            if not (due or everything):
                continue
            if each.charging is None:
                each.charging, each.used = (os.urandom(6).hex(), each.used), {}
            receipt, used = each.charging
            if not charge(table, uid, used, receipt):
                continue
            each.charging, each.since_s = None, now_s
            if not each.used:
                del self._open[uid]

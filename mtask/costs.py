"""What a bag has used of a vendor, and what that cost.

Queues and tables count what their vendor bills (`mtask.meter`). Whoever works for a bag adds what it used
to the bag's account, a small document in the table:

    cost/UID    {"used": {unit: count}, "receipts": [...]}

`submit`, `retry` and `repair` do so when they end; a worker when it stops, when it has nothing more of the bag,
and every hour. What a worker has used since is in its heartbeat. So the sum of the account and of the heartbeats is
what the bag has used. Of a worker that was killed, the last heartbeat counts as long as the table keeps it,
a day; after that, what it used since it last added to the account, an hour's at most, is missing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from mtask.errors import BackendError
from mtask.heartbeat import WorkerStatus
from mtask.meter import Prices, Tab, Used
from mtask.table import Table

if TYPE_CHECKING:
    from mtask.settings import Urls

__all__ = [
    "Bill",
    "Cost",
    "add",
    "charge",
    "cost_of",
    "cost_text",
    "count_text",
    "dollars_text",
    "prices_of",
    "used_by",
]

TRIES = 5
RECEIPTS = 64
"""So many of the last charges are remembered, so that one whose answer was lost isn't made twice."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What was used, and its price."""

    used: Used
    """Unit → count."""
    dollars_by_unit: Used
    """The units that have a price."""
    dollars: float
    """Of all of them."""
    dollars_per_million: float | None
    """For a million tasks at this rate; None: none has ended."""
    prices: str
    """Where and when the prices hold; empty: there are none."""


class _Account(msgspec.Struct):
    used: Used = {}
    receipts: list[str] = []


class Bill:
    """What this thread uses of queue and table within a `with` statement, for the bag named in it."""

    def __init__(self, queue: Any, table: Table) -> None:
        self._tab, self._table = Tab((getattr(queue, "main", queue), table)), table
        self.uid = ""
        """Of the bag; it may be known late."""

    def __enter__(self) -> Self:
        self._tab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tab.__exit__()
        used = self._tab.used()
        if self.uid and used and not isinstance(error, BackendError):
            with suppress(BackendError):  # the work is done, whatever becomes of its bill
                charge(self._table, self.uid, used, os.urandom(6).hex())


def charge(table: Table, uid: str, used: Used, receipt: str) -> bool:
    """Add to the account of the bag with this uid; False: too many did the same just now.

    The same receipt is added once, so this may be tried again. Raises what the table raises.
    """
    for number in range(TRIES):
        account, version = _read(table, uid)
        if receipt in account.receipts:
            return True
        account.used = add(account.used, used)
        account.receipts = [*account.receipts, receipt][-RECEIPTS:]
        if table.swap(f"cost/{uid}", msgspec.json.encode(account), version):
            return True
        time.sleep(random.uniform(0, 0.02 * 2**number))
    return False


def used_by(table: Table, uid: str, workers: Iterable[WorkerStatus]) -> Used:
    """By the bag with this uid so far: its account, and the heartbeats of these workers, dead ones included."""
    used = _read(table, uid)[0].used
    for worker in workers:
        used = add(used, worker.used.get(uid, {}))
    return used


def cost_of(used: Used, tasks: int, prices: Sequence[Prices]) -> Cost | None:
    """Of so many tasks that have ended; None: nothing was used that anybody bills."""
    if not used:
        return None
    priced = {
        unit: used[unit] * dollars
        for each in prices
        for unit, dollars in each.dollars.items()
        if used.get(unit)
    }
    dollars = sum(priced.values())
    return Cost(
        used={unit: round(count, 3) for unit, count in sorted(used.items())},
        dollars_by_unit={unit: round(each, 9) for unit, each in priced.items()},
        dollars=round(dollars, 9),
        dollars_per_million=round(dollars / tasks * 1e6, 6) if tasks else None,
        prices="; ".join(dict.fromkeys(f"{each.region}, {each.at}" for each in prices)),
    )


def prices_of(urls: Urls) -> list[Prices]:
    """Of the backends of queue and table; each once."""
    from mtask.registry import backend

    found = {id(prices): prices for url in urls if (prices := getattr(backend(url), "PRICES", None))}
    return list(found.values())


def add(one: Used, other: Used) -> Used:
    return {unit: one.get(unit, 0.0) + other.get(unit, 0.0) for unit in one | other}


def cost_text(cost: Cost) -> str:
    """One line for people: the units that have a price, and the dollars."""
    units = cost.dollars_by_unit or cost.used
    text = ", ".join(f"{count_text(cost.used[unit])} {unit}" for unit in units)
    if not cost.dollars_by_unit:
        return text
    rate = cost.dollars_per_million
    million = "" if rate is None else f"{dollars_text(rate)} a million tasks; "
    return f"{text}: {dollars_text(cost.dollars)} ({million}prices of {cost.prices})"


def dollars_text(dollars: float) -> str:
    """`$12.34`; what is less than ten cents, with two digits that count, as `$0.0041`."""
    if dollars >= 0.095 or not dollars:
        return f"${dollars:,.2f}"
    return f"${dollars:.2g}" if dollars >= 0.0001 else "less than $0.0001"


def count_text(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def _read(table: Table, uid: str) -> tuple[_Account, int]:
    raw, version = table.shared(f"cost/{uid}")
    return (msgspec.json.decode(raw, type=_Account) if raw else _Account()), version

"""A vendor that bills by use: SQLite's queue and table, whose calls are counted, with prices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mtask_sqlite
from mtask import registry
from mtask.estimate import Load
from mtask.meter import Meter, Prices, Used

PRICES = Prices(dollars={"requests": 0.01, "writes": 0.001}, region="nowhere", at="2026-01")
WRITES = ("record", "put_blocks", "beat", "swap", "create_bag", "update_bag")
REQUESTS = ("send", "receive", "extend", "delete", "release")


class Metered:
    """Passes all calls on, and counts them."""

    def __init__(self, real: Any, unit: str, counted: tuple[str, ...]) -> None:
        self.real, self.meter = real, Meter()
        self._unit, self._counted = unit, counted
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        """Called with the name of each call that is counted; may raise."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.real, name)
        if name not in self._counted:
            return attribute

        def call(*args: Any, **options: Any) -> Any:
            self.before(name)
            answer = attribute(*args, **options)
            self.calls.append(name)
            self.meter.add(self._unit, 1)
            return answer

        return call


def open_queue(url: str) -> Any:
    return Metered(mtask_sqlite.open_queue(url.replace("metered:", "sqlite:")), "requests", REQUESTS)


def open_table(url: str) -> Any:
    return Metered(mtask_sqlite.open_table(url.replace("metered:", "sqlite:")), "writes", WRITES)


def queue_units(url: str, load: Load) -> Used:
    assert url.startswith("metered:")
    return {"requests": 3.0 * load.messages}


def table_units(url: str, load: Load) -> Used:
    assert url.startswith("metered:")
    return {"writes": load.tasks * (1.0 if load.alone else 0.5)}


def use(patch: pytest.MonkeyPatch) -> None:
    """From now on, `metered:` is a scheme like any other."""
    patch.setitem(registry.BUILTIN, "metered", (__name__, ""))

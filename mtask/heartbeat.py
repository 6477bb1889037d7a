"""What a worker says of itself, every few seconds, in the table."""

from __future__ import annotations

from typing import Literal

import msgspec

from mtask.requirements import Capabilities

__all__ = ["Running", "WorkerStatus"]


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a worker runs now."""

    bag: str
    index: int
    since: float
    """UTC."""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's heartbeat."""

    worker: str
    host: str
    pid: int
    slots: int
    state: Literal["working", "draining", "stopped"] = "working"
    running: tuple[Running, ...] = ()
    done: int = 0
    failed: int = 0
    """Failed attempts."""
    rate: float = 0.0
    """Tasks that ended a second, of late."""
    can: Capabilities = Capabilities()
    """All of its slots together."""
    roles: tuple[str, ...] | None = None
    """Those of its tags that a bag must ask for to be served; None: it serves all bags."""
    takes: str = ""
    """From where it has its role: `auto`, `by-backlog`; empty: it was started with it."""
    cannot: dict[str, str] = {}
    """Bags, by uid, whose tasks it gives back to others, and why."""
    used: dict[str, dict[str, float]] = {}
    """What it has used for bags, by uid, that isn't in their accounts yet: unit → count. See `mtask.costs`."""
    started_at: float = 0.0
    beat_at: float = 0.0
    """UTC, by the table's clock where it has one."""
    interval_s: float = 5.0
    """The next beat comes within this time; after three without one the worker counts as dead."""
    version: str = ""

    def alive(self, now: float) -> bool:
        return self.state != "stopped" and now - self.beat_at < 3 * self.interval_s

"""Fleets: workers that something else starts and stops, as many as there is work for.

What starts them is a place: a backend with `open_fleet(place, folder)`. The engine says how many there should be
(`workers_for`), from what is in the queue (`backlog_of`); a place keeps that number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from mtask.errors import UsageError
from mtask.lanes import Lanes
from mtask.model import BagState
from mtask.requirements import DEFAULT_LANE, Capabilities, Lane, Requirements, front_of
from mtask.table import Table, leave_out

__all__ = [
    "FOLDER",
    "Backlog",
    "Fleet",
    "FleetSpec",
    "FleetStatus",
    "Load",
    "backlog_of",
    "workers_for",
]

FOLDER = ".mtask/fleets"
"""Below the working folder: a folder for each fleet, with what its workers are started from."""


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for. Holds no secrets: the URLs of queue and table travel with the environment.

    Raises ValueError for numbers that make no sense together.
    """

    name: str
    queue: str = ""
    """For people, without its password."""
    least: int = 0
    """So many workers, also when there is nothing to do."""
    most: int = 1
    slots: int = 1
    """Of each worker."""
    cpus: float = 1.0
    memory_bytes: int = 0
    """For its tasks; 0: what the place gives when nothing is asked for."""
    gpus: int = 0
    disk_bytes: int = 0
    tags: tuple[str, ...] = ()
    """What its workers say that they have."""
    require: str = ""
    """On which machines alone, in the place's own language."""
    python: str = ""
    """The interpreter where the workers run; empty: one that fits is looked for."""
    image: str = ""
    """The container that the workers run in."""
    path: tuple[str, ...] = ()
    """Where an interpreter on a shared disk finds mtask and the user's modules."""
    shipped: bool = False
    """They come along instead."""
    checkpoints: str = ""
    max_runtime_s: float | None = None
    idle_exit_s: float = 60.0
    grace_s: float = 30.0
    every_s: float = 30.0
    """How often the number of workers is adjusted."""
    lost_after_s: float = 300.0
    """A worker whose machine isn't heard of for so long is replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(
                f"the least number of workers ({self.least}) must be from 0 to the most ({self.most})"
            )
        if self.slots < 1 or self.most < 1:
            raise ValueError("a fleet has at least one worker, and a worker at least one slot")
        if re.search(r"://[^/@]*:[^/@]*@", self.checkpoints):
            raise ValueError(
                "a password in --checkpoints would be seen in the workers' command lines: fsspec finds it in its own "
                "configuration or in the environment (-e NAME)"
            )

    @property
    def can(self) -> Capabilities:
        """Of one worker. Memory that wasn't asked for is unknown: as much as any task wants."""
        return Capabilities(
            cpus=self.cpus,
            memory_bytes=self.memory_bytes or 2**62,
            gpus=tuple(map(str, range(self.gpus))),
            tags=self.tags,
        )


class Load(NamedTuple):
    """Messages whose tasks need the same."""

    messages: int
    needs: Requirements
    most: int | None = None
    """So many of their tasks run at a time, on all workers together."""


class Backlog(NamedTuple):
    """What waits for the workers of a fleet, and what is being run."""

    loads: tuple[Load, ...]
    unserved: tuple[Load, ...] = ()
    """What none of its workers could run."""

    @property
    def messages(self) -> int:
        return sum(load.messages for load in self.loads)


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a fleet stands."""

    name: str
    place: str
    queue: str
    least: int
    most: int
    wanted: int | None
    """Workers that the backlog asks for; None: that isn't known."""
    backlog: int | None
    """Messages."""
    running: int = 0
    waiting: int = 0
    """For a machine."""
    held: int = 0
    """Set aside after a fault."""
    leaving: int = 0
    down: bool = False
    """It was told to stop; what is still there is about to end."""
    troubles: tuple[str, ...] = ()
    """What is wrong, and what to do."""


@runtime_checkable
class Fleet(Protocol):
    """A fleet at a place. Methods block; they raise UnavailableError when the place is out of reach, and
    BackendError when it refuses."""

    def up(self, spec: FleetSpec, environment: Mapping[str, str], code: Path | None) -> None:
        """Make it, or change the one that is there; the same again changes nothing. Whatever dies, the number is kept.

        `environment` holds secrets: nobody but the owner may read it, wherever it goes. `code`: what `mtask.shipping`
        packed."""
        ...

    def keep(self, wanted: int) -> None:
        """Bring the number of workers near `wanted`, once."""
        ...

    def status(self) -> FleetStatus:
        """Raises UsageError when there is no such fleet."""
        ...

    def down(self, *, now: bool) -> int:
        """Start no more, and have those that are there drain, or, with `now`, die. Returns how many."""
        ...


def backlog_of(queue: Lanes, table: Table, can: Capabilities) -> Backlog:
    """What is in the queue for workers of these capabilities. Raises as queue and table do.

    Where the queue doesn't know how much is there, held by workers or not, each task without a row counts as a message.
    """
    listed = {lane.name: lane for lane, _ in table.lanes()}
    front = front_of(DEFAULT_LANE)
    served, unserved = list[Load](), list[Load]()
    for lane in (DEFAULT_LANE, *listed.values(), *(() if front.name in listed else (front,))):
        messages = _messages(queue, lane)
        if messages is None:
            return _of_table(table)
        if messages:
            load = Load(messages, lane.requires, lane.max_running)
            (unserved if can.lacks(lane.requires) else served).append(load)
    return Backlog(tuple(served), tuple(unserved))


def _messages(queue: Lanes, lane: Lane) -> int | None:
    depth = queue.lane(lane.name).depth()
    return None if depth.ready is None or depth.leased is None else depth.ready + depth.leased


def _of_table(table: Table) -> Backlog:
    bags = table.bags(skipped=leave_out)
    left = sum(table.counts(bag.name).left for bag in bags if bag.state is not BagState.CANCELLED)
    return Backlog((Load(left, Requirements()),) if left else ())


def workers_for(spec: FleetSpec, backlog: Backlog) -> int:
    """How many there should be, so that each message that can run now has a slot."""
    workers = 0.0
    for messages, needs, most in backlog.loads:
        at_a_time = min(spec.slots, int(spec.cpus / needs.cpus))
        if needs.memory_bytes and spec.memory_bytes:
            at_a_time = min(at_a_time, spec.memory_bytes // needs.memory_bytes)
        if needs.gpus:
            at_a_time = min(at_a_time, spec.gpus // needs.gpus)
        together = messages if most is None else min(messages, most)
        workers += together / max(1, at_a_time)
    return max(spec.least, min(spec.most, math.ceil(workers - 1e-9)))


def check_name(name: str) -> str:
    """Raises UsageError."""
    if (
        not name
        or not all(each.isascii() and (each.isalnum() or each in "-_.") for each in name)
        or name[0] in "-."
    ):
        raise UsageError(f"{name!r} can't be the name of a fleet: it has letters, digits, '-', '_' and '.'")
    return name

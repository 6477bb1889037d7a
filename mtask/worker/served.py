"""The lanes that a worker serves: which there are, and which comes next."""

from __future__ import annotations

import time
from collections.abc import Callable

from mtask.errors import BackendError
from mtask.requirements import DEFAULT_LANE, Capabilities, Lane, lacking
from mtask.table import Table
from mtask.worker.notes import Notes
from mtask.worker.turns import Turns

__all__ = ["ServedLanes"]

FRONT_S = 60.0
"""A front lane that was empty isn't looked into for so long while others have something: it mostly is, and each
look is a request."""
READ_S = 1.0
"""How old the list may be; a new lane is served after this time at the latest."""
POLLS = 5
"""The same, in times of a table's `poll_s`, if it has one."""


class ServedLanes:
    """Reads the list of lanes from the table, now and then; lives in the receiver's thread."""

    def __init__(
        self,
        table: Table,
        can: Capabilities,
        notes: Notes,
        *,
        roles: tuple[str, ...] | None = None,
        listed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`roles`: as of Options. `listed`: all of the list; else only the queue itself."""
        self._table, self._notes = table, notes
        self._serving = can, roles
        self.changed = False
        """Is it to serve others than those that it returned last?"""
        self._listed = listed
        self._turns, self._clock = Turns(clock), clock
        self._known = [DEFAULT_LANE]
        self._lanes = self._served() if listed else self._known
        self._came = 0
        """How many messages, since the last round began."""
        self._front_at_s: dict[str, float] = {}
        """When to look into a front lane again (by name)."""
        self._every_s = max(READ_S, POLLS * getattr(table, "poll_s", 0.0))
        self._read_s = -self._every_s

    def serve(self, can: Capabilities, roles: tuple[str, ...]) -> None:
        """Others than before, from the next turn on; from any thread."""
        self._serving, self.changed = (can, roles), True

    def in_turn(self) -> list[Lane]:
        """In which order to look into them."""
        if self._listed and time.monotonic() - self._read_s >= self._every_s:
            self._read()
        if self.changed:
            self.changed = False
            self._lanes = self._served()
            self._turns.forget(self._lanes)
        came, self._came = self._came, 0
        if len(self._lanes) < 2:
            return self._lanes
        due = [lane for lane in self._lanes if not (lane.front and came and self._is_early(lane))]
        lanes, latest = self._turns.order(due), self._turns.latest
        if not lanes:
            return []
        # It is the last that is waited at: there the next message is likely.
        if latest not in lanes or latest.front:
            latest = next((lane for lane in reversed(lanes) if not lane.front), lanes[-1])
        return lanes if latest == lanes[-1] else [*lanes, latest]

    def _is_early(self, lane: Lane) -> bool:
        return self._clock() < self._front_at_s.get(lane.name, 0.0)

    def _read(self) -> None:
        try:
            self._known = [DEFAULT_LANE, *(lane for lane, _ in self._table.lanes())]
        except BackendError as error:
            self._notes.trouble("table", error)
        else:
            self._notes.well("table")
            self.changed = True
        self._read_s = time.monotonic()

    def _served(self) -> list[Lane]:
        can, roles = self._serving
        # Also with less than a CPU: its tasks ask for nothing.
        return [
            lane
            for lane in self._known
            if not lacking(can, roles, lane.requires) or (roles is None and lane == DEFAULT_LANE)
        ]

    def room_to_make(self, lane: Lane) -> int:
        """Of a lane whose tasks don't fit beside those that run: 1 if it has been passed over for long enough."""
        return int(bool(lane.name) and self._turns.pass_over(lane))

    def answered(self, lane: Lane, messages: int) -> None:
        """So many came from it."""
        self._came += messages
        if messages:
            self._turns.received(lane, messages)
        else:
            self._turns.empty(lane)
        if lane.front:
            self._front_at_s[lane.name] = 0.0 if messages else self._clock() + FRONT_S

"""Guarded messages: of tasks that a worker runs for longer than their message can be held (`limits.hold_s`).

That worker has sent a copy, with its name in it, and deleted the original. Whoever receives the copy looks at its
heartbeat, which names these tasks until their rows are written:

- they have rows: the copy is dropped;
- the worker lives and runs them: the copy is given back, for `GUARD_S` or as long as the queue can;
- the worker lives and runs them no more: the attempt failed and is to be tried again, or was given back;
- the worker is gone: they are run again, and if it died, that is a death with them.

The heartbeat is read before the rows. So rows that weren't there yet when it was written are not missed.
"""

from __future__ import annotations

import time
from enum import Enum, auto

from mtask.model import WorkerStatus
from mtask.table import Table
from mtask.worker.held import Held

__all__ = ["GUARD_S", "Guard", "Verdict", "without_row"]

GUARD_S = 900.0
SKEW_S = 60.0
"""Clocks of hosts may differ by so much."""


class Verdict(Enum):
    """What is to be done with a guarded message."""

    RUN = auto()
    WAIT = auto()
    DROP = auto()
    """It has ended, and its worker sees to what comes after it."""
    END = auto()
    """It has ended, and its worker is gone."""


class Guard:
    """Looks at guarded messages; raises what the table raises."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def look(self, held: Held) -> Verdict:
        """If it is to be run, its message is made an ordinary one."""
        message = held.message
        status = next((each for each in self._table.workers() if each.worker == message.runs_at), None)
        alive = status is not None and status.alive(time.time())
        rest = without_row(self._table, held)
        if not rest:
            return Verdict.DROP if alive else Verdict.END
        if status is not None and alive and _may_run(status, held, rest):
            return Verdict.WAIT
        held.unguard(
            attempt=self._attempts(held) if message.count == 1 else message.attempt,
            died=not alive and (status is None or status.state != "stopped"),
        )
        return Verdict.RUN

    def _attempts(self, held: Held) -> int:
        """How many attempts of its one task have failed until now."""
        message = held.message
        failed = message.attempt
        for attempt in self._table.attempts(held.bag.name, after=message.first - 1):
            if attempt.index != message.first:
                break
            # Others may be of before a `retry`.
            if (attempt.finished_at or 0.0) >= message.sent_at - SKEW_S:
                failed = max(failed, attempt.attempt)
        return failed


def without_row(table: Table, held: Held) -> list[int]:
    """Those of the message's tasks that have no row in the table."""
    first = held.message.first
    indexes = range(first, first + held.message.count)
    return sorted(set(indexes) - table.recorded(held.bag.name, indexes))


def _may_run(status: WorkerStatus, held: Held, indexes: list[int]) -> bool:
    """Does a worker that lives run these tasks, or was its heartbeat written too early to tell?"""
    if status.beat_at < held.message.sent_at + min(status.interval_s, SKEW_S):
        return True
    return any(each.bag == held.bag.name and each.index in indexes for each in status.running)

"""Guarded messages: of tasks that a worker runs for longer than their message can be held (`limits.hold_s`).

That worker has sent a copy, with its name in it, and deleted the original. Whoever receives the copy looks at its
heartbeat, which names these tasks until their rows are written and what comes after them is sent:

- they have rows: the copy is dropped;
- the worker lives and runs them: the copy is given back, for `GUARD_S` or as long as the queue can;
- the worker lives and runs them no more: the attempt failed and is to be tried again, or was given back;
- the worker is gone: they are run again, and if it died, that is a death with them;
- their last attempts failed since the copy was made, and yet they have no rows: they were sent by a `retry`.

The heartbeat is read before the rows. So rows that weren't there yet when it was written are not missed. Nobody is in a hurry
to call a worker dead here: its heartbeat must be old by the table's clock, at a time when the table can be written.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from enum import Enum, auto

from mtask.heartbeat import WorkerStatus
from mtask.model import Result
from mtask.retry import is_last
from mtask.table import Table
from mtask.worker.held import Held
from mtask.worker.notes import Notes

__all__ = ["GUARD_S", "Guard", "Verdict", "without_row"]

GUARD_S = 900.0
SKEW_S = 60.0
"""Clocks of hosts may differ by so much."""
SILENT_S = 300.0
"""A worker without a heartbeat for so long, or for three of its intervals, is dead."""
CALM_S = 60.0
"""If the table was away, the others have so long to write their heartbeats before they are called dead."""
ROUNDED_S = 1.0
"""More than `sent_at` was rounded up by."""


class Verdict(Enum):
    """What is to be done with a guarded message."""

    RUN = auto()
    WAIT = auto()
    DROP = auto()
    """It has ended, and its worker sees to what comes after it."""
    END = auto()
    """It has ended, and its worker died before it had seen to that, perhaps."""


class Guard:
    """Looks at guarded messages; raises what the table raises."""

    def __init__(self, table: Table, worker: str, notes: Notes) -> None:
        """For this worker, whose `notes` tell when the table was away."""
        self._table, self._worker, self._notes = table, worker, notes

    def look(self, held: Held) -> Verdict:
        """If it is to be run, its message is made an ordinary one."""
        message = held.message
        workers = {each.worker: each for each in self._table.workers()}
        status = workers.get(message.runs_at)
        stopped = status is not None and status.state == "stopped"
        silent = not stopped and _is_silent(status, workers.get(self._worker))
        died = silent and self._notes.calm_s() >= CALM_S
        rest = without_row(self._table, held)
        waits = silent and not died
        if status is not None and not (stopped or silent):
            waits = _may_run(status, held, rest)
        if not rest:
            if message.then is None or stopped:
                return Verdict.DROP
            if died:
                return Verdict.END
            return Verdict.WAIT if waits else Verdict.DROP
        if waits:
            return Verdict.WAIT
        attempts = self._attempts(held)
        if set(rest) <= {each.index for each in attempts if _was_last(each, held)}:
            return Verdict.DROP
        failed = message.attempt
        if message.count == 1:
            failed = max([failed, *(each.attempt for each in attempts)])
        held.unguard(attempt=failed, died=died)
        return Verdict.RUN

    def _attempts(self, held: Held) -> list[Result]:
        """Those of its tasks that failed since it was sent; by a clock that may differ, some of before a `retry`."""
        message, found = held.message, []
        for attempt in self._table.attempts(held.bag.name, after=message.first - 1):
            if attempt.index >= message.first + message.count:
                break
            if (attempt.finished_at or 0.0) >= message.sent_at - SKEW_S:
                found.append(attempt)
        return found


def without_row(table: Table, held: Held) -> list[int]:
    """Those of the message's tasks that have no row in the table."""
    first = held.message.first
    indexes = range(first, first + held.message.count)
    return sorted(set(indexes) - table.recorded(held.bag.name, indexes))


def _is_silent(status: WorkerStatus | None, own: WorkerStatus | None) -> bool:
    """Was there no heartbeat of this worker for long? By the clock that stamps heartbeats, if our `own` tells it."""
    if status is None:
        return True
    now = time.time() if own is None or own.state == "stopped" else own.beat_at
    return status.beat_at < now - max(3 * status.interval_s, SILENT_S)


def _was_last(attempt: Result, held: Held) -> bool:
    """Was it the end of the very task that the message guards? The same worker, and clock, has stamped both."""
    message = held.message
    return (
        attempt.worker == message.runs_at
        and (attempt.finished_at or 0.0) >= message.sent_at - ROUNDED_S
        and is_last(held.bag.spec, attempt)
    )


def _may_run(status: WorkerStatus, held: Held, rest: Collection[int]) -> bool:
    """Does a worker that lives run those without a row (or see to what follows, when all have one), or was its
    heartbeat written too early to tell?"""
    message = held.message
    if status.beat_at < message.sent_at + min(status.interval_s, SKEW_S):
        return True
    indexes = rest or range(message.first, message.first + message.count)
    return any(each.bag == held.bag.name and each.index in indexes for each in status.running)

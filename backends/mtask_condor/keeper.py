"""Keeps the number of a fleet's workers at what the backlog asks for, until the fleet is told to stop.

    python -m mtask_condor.keeper PLACE FOLDER

A job on the schedd's machine, started again by the schedd whenever it ends otherwise. Killing it, or running two, does no
harm: all it knows is in the queue, the table and the schedd, and it looks at them anew each time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from mtask.errors import BackendError, MtaskError, UsageError
from mtask.fleet import FleetSpec, backlog_of, workers_for
from mtask.manager import Manager, connect
from mtask_condor.fleet import CondorFleet, Record, Seen

__all__ = ["main"]


def main(place: str, folder: str) -> int:
    """SIGTERM kills it: to end with a status would tell the schedd not to start it again."""
    fleet = CondorFleet(place, Path(folder))
    manager: Manager | None = None
    settings = ""
    while True:
        record = fleet.record()
        if record.down:
            break
        if manager is None or record.settings != settings:
            if manager is not None:
                manager.close()
            manager, settings = None, record.settings
        manager = step(fleet, record, manager)
        time.sleep(record.spec.every_s)
    if manager is not None:
        manager.close()
    return 0


def step(fleet: CondorFleet, record: Record, manager: Manager | None) -> Manager | None:
    """Look, and bring the number near what it should be; returns what is open, for the next time."""
    before = fleet.seen()
    try:
        if manager is None:
            manager = _connect(fleet.folder)
        seen = _look(record.spec, manager)
    except UsageError:
        raise  # nothing will cure that: the job is held, and its owner told
    except MtaskError as error:
        _say(str(error), before.problem)
        if manager is not None:
            manager.close()
        manager = None
        seen = msgspec.structs.replace(before, at=time.time(), problem=str(error), wanted=before.wanted)
    try:
        fleet.keep(record.spec.least if seen.wanted is None else seen.wanted)
    except BackendError as error:
        _say(str(error), before.problem)
        seen = msgspec.structs.replace(seen, problem=str(error))
    fleet.note(seen)
    return manager


def _look(spec: FleetSpec, manager: Manager) -> Seen:
    backlog = backlog_of(manager.queue, manager.table, spec.can)
    return Seen(
        at=time.time(),
        backlog=backlog.messages,
        wanted=workers_for(spec, backlog),
        unserved=tuple(f"{load.messages:,} need {load.needs}" for load in backlog.unserved),
    )


def _connect(folder: Path) -> Manager:
    try:
        environment = msgspec.json.decode((folder / "environment.json").read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        raise BackendError("the fleet was told to stop") from None
    os.environ.update(environment)
    return connect(environment["MTASK_QUEUE"], environment["MTASK_TABLE"])


def _say(text: str, before: str) -> None:
    if text != before:
        print(f"mtask: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except MtaskError as error:
        print(f"mtask: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

"""HTCondor as the queue: each message becomes a job, and HTCondor does the rest.

    condor:///reads                          the schedd of this machine
    condor://submit.example.org/reads        another one, which sees the same disk; ?pool=HOST:PORT if another pool knows it
    condor:///reads?python=/usr/bin/python3&path=/shared/mtask:/shared/my-code     what there is on the nodes
    condor:///reads?table=direct             the nodes write to the table themselves; else HTCondor brings results
                                             back, and a job on the schedd's machine records them
    condor:///reads?collect=no               without that job: then `mtask wait` or `mtask collect` does it
    condor:///reads?folder=/scratch/reads    where messages and results lie  [.mtask/condor/SCHEDD/reads]
    …&disk=2GB&grace_s=40&split_after_s=60   what jobs ask for; the time to stop when a node is taken away; how long
                                             a message may take before it is cut into smaller ones  [60 s]

A job is started on its message by HTCondor alone: there is no worker that receives. Retries, and the pieces of a
message that is cut, are brought back with the results, and sent by whoever records these (collecting.py).

HTCondor also starts workers for any other queue: `mtask fleet up condor`, see `mtask_condor.fleet`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtask_condor.fleet import CondorFleet
    from mtask_condor.queue import CondorQueue

__all__ = ["CondorQueue", "open_fleet", "open_queue"]

# Nothing is imported here before it is used: this package is imported on execute nodes, too, in each job.


def __getattr__(name: str) -> object:
    if name == "CondorQueue":
        from mtask_condor.queue import CondorQueue

        return CondorQueue
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_queue(url: str) -> CondorQueue:
    """Raises UsageError for a URL that makes no sense. The schedd is asked when it is needed."""
    from mtask_condor.address import address_of
    from mtask_condor.queue import CondorQueue

    _require_client()
    return CondorQueue(address_of(url))


def open_fleet(place: str, folder: Path) -> CondorFleet:
    """As mtask.registry says. Raises UsageError for a place that makes no sense; the schedd is asked when it is needed."""
    from mtask_condor.fleet import CondorFleet

    _require_client()
    return CondorFleet(place, folder)


def _require_client() -> None:
    if importlib.util.find_spec("htcondor2") is None:
        from mtask.errors import UsageError

        raise UsageError(
            "the backend of condor:// is not installed (no module 'htcondor2'): pip install 'mtask[condor]'"
        )

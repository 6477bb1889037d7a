"""HTCondor as a fleet: `mtask fleet up condor`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mtask.errors import UsageError

if TYPE_CHECKING:
    from mtask_condor.fleet import CondorFleet

__all__ = ["open_fleet"]

# None of these imports htcondor2: this package is imported on execute nodes, too, where there is none.


def open_fleet(place: str, folder: Path) -> CondorFleet:
    """As mtask.registry says. Raises UsageError for a place that makes no sense; the schedd is asked when it is needed."""
    from mtask_condor.fleet import CondorFleet

    if importlib.util.find_spec("htcondor2") is None:
        raise UsageError(
            "fleets on HTCondor need its client (no module 'htcondor2'): pip install 'mtask[condor]'"
        )
    return CondorFleet(place, folder)

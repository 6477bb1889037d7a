"""HTCondor's own client, imported when it is used: execute nodes don't have it."""

from __future__ import annotations

from typing import Any

__all__ = ["client"]


def client() -> Any:
    """The module htcondor2. It reads CONDOR_CONFIG when it is imported."""
    import htcondor2

    return htcondor2

"""What submit machine and node agree on."""

from __future__ import annotations

import msgspec

from mtask.model import Bag

__all__ = ["STOPPED", "Order"]

STOPPED = 75
"""Exit status of a worker that leaves something to do, as EX_TEMPFAIL of sysexits.h."""


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the messages of a batch have in common."""

    bag: Bag
    table: str | None = None
    """Its URL, if the node is to write to it."""
    path: tuple[str, ...] = ()
    """In front of the search path of the processes that run functions."""
    grace_s: float = 30.0
    """Between SIGTERM and SIGKILL."""
    split_after_s: float | None = None
    """A message that has taken longer is cut; None: none is, for the pieces wait for somebody to collect them."""

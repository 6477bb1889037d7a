"""How a worker works."""

from __future__ import annotations

import msgspec

__all__ = ["Options"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works; durations in seconds."""

    slots: int = 1
    lease_s: float | None = None
    """Instead of what the bags say."""
    split_after_s: float = 10.0
    """A message held for longer is cut, and what isn't running is sent back as smaller ones."""
    grace_s: float = 30.0
    """How long running tasks may go on when the worker drains."""
    idle_exit_s: float | None = None
    max_runtime_s: float | None = None
    max_tasks_per_child: int | None = None
    max_tasks: int | None = None
    """Drain when so many attempts have ended."""
    checkpoints: str = ".mtask/checkpoints"
    """Folder, or fsspec URL, where tasks may save their state for their next attempt."""
    notices: str = "off"
    """Whose notices, that this machine will be taken away, to ask for: a cloud's name, `auto` or `off`."""
    path: tuple[str, ...] = ()
    """Goes first in the children's sys.path."""

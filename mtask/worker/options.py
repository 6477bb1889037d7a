"""How a worker works."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["LEAST_TO_SAVE_S", "Options", "time_to_save_s"]

LEAST_TO_SAVE_S = 2.0
"""Between SIGTERM and SIGKILL when a worker drains, however short the grace is."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works; durations in seconds."""

    slots: int = 1
    lease_s: float | None = None
    """Instead of what the bags say."""
    split_after_s: float = 10.0
    """A message held for longer is cut, and what isn't running is sent back as smaller ones."""
    grace_s: float = 30.0
    """How long running tasks may go on when the worker drains; see `time_to_save_s`."""
    idle_exit_s: float | None = None
    max_runtime_s: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child_bytes: int | None = None
    """A function's process that holds more when a task has ended is renewed. No limit by default: what a
    function keeps on purpose, such as a model, would be loaded again for each task."""
    max_tasks: int | None = None
    """Drain when so many attempts have ended."""
    checkpoints: str = ".mtask/checkpoints"
    """Folder, or fsspec URL, where tasks may save their state for their next attempt."""
    notices: str = "off"
    """Whose notices, that this machine will be taken away, to ask for: a cloud's name, `auto` or `off`."""
    path: tuple[str, ...] = ()
    """Goes first in the children's sys.path."""
    cpus: float | None = None
    """What its tasks may take together; None: as many as slots."""
    memory_bytes: int | None = None
    """None: what the machine has."""
    gpus: tuple[str, ...] | None = None
    """Their ids; None: what the machine has."""
    tags: tuple[str, ...] = ()
    """What its tasks may ask for by name."""
    roles: tuple[str, ...] | None = None
    """It serves bags that ask for one of these tags, which it has then, and no others. None: all bags."""
    takes: Literal["", "auto", "by-backlog"] = ""
    """From where it takes such a tag, and another one while it runs: see `mtask.roles`."""
    pin: bool = False
    """Give each task CPUs of its own."""
    timeout_s: float | None = None
    """No attempt may take longer, whatever its bag says: where the worker itself has only so much time, a task
    that needs more would be interrupted for ever."""
    lanes: bool = True
    """Serve all lanes of the table's list. False: only the queue itself; nothing is given back in front of it,
    where nobody might look."""
    orphans: bool = True
    """Have a process beside it that ends what it leaves behind if it is killed. Not where a batch system does."""
    forks: bool = False
    """May the first function's process be a copy of this one, if it is made before anything else is started? Not
    with a vendor's library in it."""
    submits: bool = True
    """May its tasks submit tasks? Not where the queue ends with the worker."""
    alone: bool = True
    """Is there no other worker? What this one doesn't know how to run fails then, instead of being given back."""


def time_to_save_s(grace_s: float) -> float:
    """The last part of the grace: SIGTERM tells a task that it begins, and to save its state."""
    return max(LEAST_TO_SAVE_S, min(10.0, grace_s / 3))

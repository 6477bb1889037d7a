"""What a worker still has free: it never runs more than its CPUs, memory and GPUs allow."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from mtask.requirements import Capabilities, Requirements

__all__ = ["Room", "Share", "Space"]


class Share(NamedTuple):
    """What one task has of its worker while it runs."""

    cpus: float
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    """Ids of its own GPUs."""
    cores: tuple[int, ...] = ()
    """Numbers of its own CPUs; empty: it isn't pinned."""


class Space(NamedTuple):
    """What is free at a moment."""

    slots: int
    cpus: float
    memory_bytes: int
    gpus: int

    def copies(self, needs: Requirements) -> int:
        """How many such tasks could start."""
        fit = [self.slots, int(self.cpus / needs.cpus + 1e-9)]
        if needs.memory_bytes:
            fit.append(self.memory_bytes // needs.memory_bytes)
        if needs.gpus:
            fit.append(self.gpus // needs.gpus)
        return max(0, min(fit))


class Room:
    """The ledger of one worker; a share is taken before a task starts, and given back after it."""

    def __init__(self, total: Capabilities, slots: int, *, cores: Collection[int] = ()) -> None:
        """`cores`: to be handed out one for each CPU that a task takes, if tasks are to be pinned."""
        self.total, self.slots = total, slots
        self._all_cores = tuple(sorted(cores))
        self._taken: list[Share] = []

    @property
    def free_gpus(self) -> tuple[str, ...]:
        taken = {gpu for share in self._taken for gpu in share.gpus}
        return tuple(gpu for gpu in self.total.gpus if gpu not in taken)

    def space(self) -> Space:
        """What is free now."""
        taken = self._taken
        # From the shares each time: a running difference of fractions would drift.
        return Space(
            slots=self.slots - len(taken),
            cpus=self.total.cpus - math.fsum(share.cpus for share in taken),
            memory_bytes=self.total.memory_bytes - sum(share.memory_bytes for share in taken),
            gpus=len(self.total.gpus) - sum(len(share.gpus) for share in taken),
        )

    def copies(self, needs: Requirements) -> int:
        """How many such tasks could start now."""
        return self.space().copies(needs)

    def take(self, needs: Requirements, *, prefer_gpus: Collection[str] = ()) -> Share | None:
        """A share for such a task; None: it doesn't fit now."""
        if not self.copies(needs):
            return None
        gpus = sorted(self.free_gpus, key=lambda gpu: gpu not in prefer_gpus)
        share = Share(needs.cpus, needs.memory_bytes, tuple(gpus[: needs.gpus]), self._cores(needs.cpus))
        self._taken.append(share)
        return share

    def give(self, share: Share) -> None:
        """Back; raises ValueError for one that isn't taken."""
        self._taken.remove(share)

    def _cores(self, cpus: float) -> tuple[int, ...]:
        """As many as the task has CPUs, those with the fewest tasks first; fractions share."""
        users = dict.fromkeys(self._all_cores, 0)
        for share in self._taken:
            for core in share.cores:
                users[core] += 1
        return tuple(sorted(sorted(users, key=users.__getitem__)[: math.ceil(cpus)]))

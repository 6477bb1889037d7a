"""Which jobs the schedd still has: what it hasn't is over, even if the event log that should say so is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtask.errors import BackendError
from mtask_condor.batch import Batch
from mtask_condor.jobs import Jobs, quoted

__all__ = ["Census", "Present"]

COUNT_S = 30.0
"""After so long the schedd is asked again."""


class Present(NamedTuple):
    """What the schedd has of a batch."""

    numbers: set[int]
    """Of messages that are jobs now."""
    begun: float
    """Messages from this number on are no jobs yet."""

    @property
    def is_gone(self) -> bool:
        return not self.numbers and self.begun == math.inf

    def is_over(self, number: int) -> bool:
        return number < self.begun and number not in self.numbers


class Census:
    """Asks now and then."""

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        self._jobs, self._folder = jobs, folder
        self._asked_s = -math.inf
        """Monotonic clock."""

    def of(self, batches: Sequence[Batch]) -> dict[str, Present]:
        """Of those that were submitted to this schedd; empty when it was asked just before, or doesn't answer.

        Whoever calls this sees to it that nothing is submitted meanwhile, and reads the logs afterwards.
        """
        if not batches or time.monotonic() < self._asked_s + COUNT_S:
            return {}
        try:
            name, present = self._jobs.schedd(), self._present()
        except BackendError:
            return {}
        self._asked_s = time.monotonic()
        nothing = Present(set(), math.inf)
        return {
            batch.id: present.get(batch.id, nothing)
            for batch in batches
            if batch.cluster() is not None and batch.schedd() in ("", name)
        }

    def _present(self) -> dict[str, Present]:
        """By the batch; one that isn't there has left the queue, whole.

        How far each has come is asked first: what becomes a job between the two questions isn't taken for over.
        """
        before, now = self._ads(), self._ads()
        found = {str(ad["MtaskBatch"]): Present(set(), math.inf) for ad in (*before, *now)}
        for ad in before:
            if "ProcId" not in ad and "TotalSubmitProcs" in ad:
                name = str(ad["MtaskBatch"])
                found[name] = Present(set(), int(ad.get("JobMaterializeNextProcId", 0)))
        for ad in now:
            if "ProcId" in ad:
                found[str(ad["MtaskBatch"])].numbers.add(int(ad["ProcId"]))
        return found

    def _ads(self) -> list[dict[str, Any]]:
        """Of jobs, and of clusters, which have no ProcId."""
        wanted = ("MtaskBatch", "TotalSubmitProcs", "JobMaterializeNextProcId")
        return self._jobs.ads(f"MtaskFolder == {quoted(str(self._folder))}", wanted)

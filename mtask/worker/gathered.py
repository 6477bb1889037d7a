"""Results on their way to the recorder, which takes as long to write one as to write fifty."""

from __future__ import annotations

import math
import time

from mtask.model import Result
from mtask.portion import Portion
from mtask.worker.held import Held
from mtask.worker.recorder import Recorder

__all__ = ["Gathered"]

GATHER_S = 0.05
"""Results of quick tasks are written together, this often: whoever kills a worker makes no more of them run again."""


class Gathered:
    """Keeps results back for a moment, but none that nothing has preceded for so long."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._results: dict[Held, list[Result]] = {}
        self._told: list[tuple[Held, Portion]] = []
        self._bytes = 0
        self._last_s = 0.0
        self.due_s = math.inf
        """When they have to go (monotonic clock); infinite: there are none."""

    @property
    def awaited(self) -> bool:
        """Does anybody wait for something of it?"""
        return bool(self._results)

    def add(self, held: Held, results: list[Result], size_bytes: int) -> None:
        if not self._results:
            self.due_s = min(self.due_s, self._last_s + GATHER_S)
        self._results.setdefault(held, []).extend(results)
        self._bytes += size_bytes

    def add_told(self, held: Held, portion: Portion) -> None:
        """Whoever waited for these has them already: they would only be in the way of what comes next."""
        if not self._told:
            self.due_s = min(self.due_s, time.monotonic() + GATHER_S)
        self._told.append((held, portion))

    def pass_on(self) -> None:
        told, self._told = self._told, []
        for held, portion in told:
            self._recorder.portion_done(held, portion)
        gathered, self._results = self._results, {}
        size_bytes, self._bytes = self._bytes, 0
        self.due_s = math.inf
        if gathered:
            self._last_s = time.monotonic()
        for held, results in gathered.items():
            self._recorder.attempts_ended(held, results, size_bytes)
            size_bytes = 0

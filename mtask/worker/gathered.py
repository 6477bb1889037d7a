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
ENOUGH_BYTES = 256 * 1024
"""So many are written at once."""


class Gathered:
    """Keeps results back for a moment, but none that nothing has preceded for so long."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._results: dict[Held, list[Result]] = {}
        self._portions: list[tuple[Held, Portion]] = []
        self._results_bytes = self._portions_bytes = 0
        self._last_s = 0.0
        self.awaited = False
        """Does anybody wait for something of it?"""
        self.due_s = math.inf
        """When they have to go (monotonic clock); infinite: there are none."""

    def add(self, held: Held, results: list[Result], size_bytes: int) -> None:
        self._is_awaited()
        self._results.setdefault(held, []).extend(results)
        self._results_bytes += size_bytes

    def add_portion(self, held: Held, portion: Portion, *, told: bool = False) -> None:
        """`told`: whoever waited for these has them already, and they would be in the way of what comes next."""
        if not told:
            self._is_awaited()
        elif not self._portions:
            self.due_s = min(self.due_s, time.monotonic() + GATHER_S)
        self._portions.append((held, portion))
        self._portions_bytes += len(portion.lines)
        if self._portions_bytes >= ENOUGH_BYTES:
            self.due_s = 0.0

    def _is_awaited(self) -> None:
        if not self.awaited:
            self.awaited = True
            self.due_s = min(self.due_s, self._last_s + GATHER_S)

    def pass_on(self) -> None:
        if self.awaited:
            self._last_s = time.monotonic()
        self.awaited, self.due_s = False, math.inf
        portions, self._portions, self._portions_bytes = self._portions, [], 0
        for held, portion in portions:
            self._recorder.portion_done(held, portion)
        gathered, self._results = self._results, {}
        size_bytes, self._results_bytes = self._results_bytes, 0
        for held, results in gathered.items():
            self._recorder.attempts_ended(held, results, size_bytes)
            size_bytes = 0

"""From which lane a worker receives next."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from mtask.requirements import Lane

__all__ = ["LOWER_FIRST", "PATIENCE_S", "STAY_S", "Turns"]

LOWER_FIRST = 10
"""After so many messages less one of the highest priority, a lane of a lower one is asked first."""
STAY_S = 2.0
"""A lane keeps its turn for so long before one of the same priority whose tasks need something else: a
function's process is renewed for each change."""
PATIENCE_S = 5.0
"""A lane whose tasks don't fit beside those that run is passed over for so long; then room is made."""


class Turns:
    """Higher priorities first; lanes of the same in turn; the lower ones get their share.

    Of the same priority, every other time first those where what was given back is.

    Tells also when a lane of big tasks has been passed over for long enough: what runs in the small
    ones' place would otherwise never end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, int] = {}
        """Lane → how many messages had come when one came from it last."""
        self._count = self._since_lower = self._top = 0
        self._lower_first = False
        self.latest: Lane | None = None
        """From which the latest messages came."""
        self._stay_until_s = 0.0
        self._passed_over: dict[str, float] = {}

    def order(self, lanes: Collection[Lane]) -> list[Lane]:
        """In which order to look into them."""
        stays = self.latest if self._clock() < self._stay_until_s else None
        # What comes from a front lane may be what never ends before it is interrupted.
        others_turn = self.latest is not None and self.latest.front
        ordered = sorted(
            lanes,
            key=lambda lane: (
                -lane.priority,
                stays is None or lane.requires != stays.requires,
                lane.front is others_turn,
                self._last.get(lane.name, -1),
                lane.name,
            ),
        )
        self._top = ordered[0].priority if ordered else 0
        lower = [lane for lane in ordered if lane.priority < self._top]
        self._lower_first = bool(lower) and self._since_lower >= LOWER_FIRST - 1
        if self._lower_first:
            lower.sort(key=lambda lane: self._last.get(lane.name, -1))
            ordered = lower + [lane for lane in ordered if lane.priority == self._top]
        return ordered

    def received(self, lane: Lane, messages: int) -> None:
        """So many messages came from this lane."""
        self._count += messages
        if (
            self.latest is None
            or self.latest.requires != lane.requires
            or self._clock() >= self._stay_until_s
        ):
            self._stay_until_s = self._clock() + STAY_S
        self.latest = lane
        self._last[lane.name] = self._count
        # One of the middle that came because nothing was above it has been in the way of those below it.
        was_their_turn = self._lower_first and lane.priority < self._top
        self._since_lower = 0 if was_their_turn else self._since_lower + messages
        self._passed_over.pop(lane.name, None)

    def empty(self, lane: Lane) -> None:
        """It has nothing just now: that was its turn."""
        self._last[lane.name] = self._count
        self._passed_over.pop(lane.name, None)

    def pass_over(self, lane: Lane) -> bool:
        """Its tasks don't fit just now. True: it has been so for too long, room must be made."""
        return self._clock() - self._passed_over.setdefault(lane.name, self._clock()) >= PATIENCE_S

    def forget(self, lanes: Sequence[Lane]) -> None:
        """All others have gone."""
        names = {lane.name for lane in lanes}
        for kept in (self._last, self._passed_over):
            for name in kept.keys() - names:
                del kept[name]

"""How long messages of late took a slot: that says what may wait behind the one that it runs."""

from __future__ import annotations

__all__ = ["LEAD_S", "Pace"]

QUEUED_S = 0.1
"""A slot is given so much work in advance, by the pace of late: enough that it never waits for the
next message, too little to be missed elsewhere."""
MOST_QUEUED = 32
LEAD_S = 0.03
"""Long messages, where one takes as long as another: so soon before its end a slot is given the next."""
_OF_LATE = 0.2
"""The weight of the newest."""


class Pace:
    """Of all slots together."""

    def __init__(self) -> None:
        self._took_s: float | None = None
        self._spread_s = 0.0
        """By how much one differed from the next."""

    def over(self, took_s: float) -> None:
        """A message has been run to its end, in so many seconds."""
        if self._took_s is None:
            self._took_s = self._spread_s = took_s
        else:
            self._spread_s += _OF_LATE * (abs(took_s - self._took_s) - self._spread_s)
            self._took_s += _OF_LATE * (took_s - self._took_s)

    def forget(self) -> None:
        """What comes now is of another kind."""
        self._took_s = None

    def room_behind(self) -> int:
        """How many messages may wait behind the one that a slot runs."""
        if not self._took_s or self._took_s > QUEUED_S / 2:
            return 0
        return min(MOST_QUEUED, int(QUEUED_S / self._took_s))

    @property
    def steady(self) -> bool:
        """Can one tell when a message will end?"""
        return self._took_s is not None and self._spread_s < LEAD_S / 2

    def ends_s(self, began_s: float) -> float:
        """When a message that began then is expected to end; of a steady pace."""
        return began_s + (self._took_s or 0.0)

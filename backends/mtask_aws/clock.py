"""The server's clock, as far as it can be known: DynamoDB has no function that tells the time, but its answers do.

The HTTP header `Date` has whole seconds (RFC 9110, 6.6.1): an answer with 12:00:07 was sent between 12:00:07 and
12:00:08, so it bounds by how much the server's clock is ahead of ours. Each answer may narrow the bounds.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

__all__ = ["ServerClock"]

_RESOLUTION_S = 1.0


class ServerClock:
    """Says the server's time. Our own clock is corrected only as far as the answers prove it wrong."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._least, self._most = -math.inf, math.inf
        """The server's clock is ahead of ours by so many seconds."""

    def local(self) -> float:
        """Our own time; take it before a request, for `saw`."""
        return self._clock()

    def saw(self, date: str | None, asked_at: float) -> None:
        """`date`: the header of an answer to what was asked at `asked_at`, by our clock."""
        now = self._clock()
        try:
            server = parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError):
            return
        least, most = server - now, server + _RESOLUTION_S - asked_at
        with self._lock:
            self._least, self._most = max(self._least, least), min(self._most, most)
            if self._least > self._most:  # one of the clocks was set meanwhile
                self._least, self._most = min(least, most), max(least, most)

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        with self._lock:
            return self._clock() + min(max(0.0, self._least), self._most)

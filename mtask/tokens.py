"""Who holds a message, as far as this process knows: for queues whose vendor gives no new handle with an extension, and may
take an old one.

Each delivery's token knows until when it holds, by this process's monotonic clock and from before the request that gave the
lease, and becomes void with the next extension. What is over here is never sent.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

__all__ = ["Lease", "Token"]

_ENDED_S = float("-inf")


class Lease:
    """Of one delivery; shared by all of its tokens, and safe to use from any thread."""

    __slots__ = ("_lock", "_serial", "until_s")

    def __init__(self, until_s: float) -> None:
        """`until_s`: by the monotonic clock, as all times here."""
        self.until_s = until_s
        self._serial = 0
        self._lock = threading.Lock()

    def token(self) -> Token:
        with self._lock:
            return Token(self, self._serial)

    def holds(self, token: Token, now_s: float) -> bool:
        with self._lock:
            return token.serial == self._serial and now_s < self.until_s

    def extended(self, until_s: float) -> Token:
        """The new token; the old ones are void."""
        with self._lock:
            self._serial += 1
            self.until_s = until_s
            return Token(self, self._serial)

    def end(self) -> None:
        """All tokens are void."""
        with self._lock:
            self._serial += 1
            self.until_s = _ENDED_S

    @property
    def ended(self) -> bool:
        """Was it deleted or given back?"""
        with self._lock:
            return self.until_s == _ENDED_S


class Token(NamedTuple):
    """Of a delivery."""

    lease: Lease
    serial: int

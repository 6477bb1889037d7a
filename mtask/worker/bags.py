"""The bags whose tasks a worker runs, read once from the table and refreshed while in use."""

from __future__ import annotations

import threading
import time

from mtask.errors import BagNotFoundError
from mtask.model import Bag, BagState, Message
from mtask.table import Table

__all__ = ["Bags"]

KEEP_S = 60.0


class Bags:
    """Bags by uid; safe to call from any thread."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._bags: dict[str, tuple[Bag, float]] = {}
        self._lock = threading.Lock()

    def of(self, message: Message) -> Bag | None:
        """The message's bag; None when it is gone, or another one has its name now."""
        with self._lock:
            known = self._bags.get(message.uid)
            if known is not None:
                self._bags[message.uid] = known[0], time.monotonic()
                return known[0]
        try:
            bag = self._table.bag(message.bag)
        except BagNotFoundError:
            return None
        with self._lock:
            self._bags[bag.uid] = bag, time.monotonic()
        return bag if bag.uid == message.uid else None

    def refresh(self) -> set[str]:
        """Read the bags in use again; returns the uids of those that were cancelled or are gone."""
        over = set()
        with self._lock:
            items = list(self._bags.items())
        for uid, (bag, used_s) in items:
            try:
                now = self._table.bag(bag.name)
            except BagNotFoundError:
                now = None
            if now is None or now.uid != uid or now.state is BagState.CANCELLED:
                over.add(uid)
            with self._lock:
                if now is None or now.uid != uid or time.monotonic() - used_s > KEEP_S:
                    self._bags.pop(uid, None)
                else:
                    self._bags[uid] = now, self._bags.get(uid, (now, used_s))[1]
        return over

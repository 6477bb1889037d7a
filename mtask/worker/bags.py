"""The bags whose tasks a worker runs, read once from the table and refreshed while in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

import msgspec

from mtask.errors import BagNotFoundError
from mtask.model import Bag, BagState, Message
from mtask.table import Table

__all__ = ["Bags"]

KEEP_S = 60.0
ELSEWHERE_S = 2.0
"""What this worker can't run is left to others for so long."""
SKEW_S = 60.0
"""Clocks of hosts may differ by so much."""
TRY_AGAIN_S = 60.0
"""And it looks again whether it can run it by now."""


class Bags:
    """Bags by uid; safe to call from any thread."""

    def __init__(self, table: Table, timeout_s: float | None = None) -> None:
        """`timeout_s`: as of Options."""
        self._table, self._timeout_s = table, timeout_s
        self._bags: dict[str, tuple[Bag, float]] = {}
        self._given_back: dict[str, tuple[Bag, str, float]] = {}
        self._lock = threading.Lock()

    def give_back(self, bag: Bag, why: str) -> None:
        """This worker can't run the bag's tasks, for this reason."""
        with self._lock:
            self._given_back[bag.uid] = bag, why, time.monotonic()

    def given_back(self) -> dict[str, str]:
        """By uid, why this worker doesn't run a bag's tasks."""
        with self._lock:
            old = [
                uid for uid, (_, _, at_s) in self._given_back.items() if time.monotonic() - at_s > TRY_AGAIN_S
            ]
            for uid in old:
                del self._given_back[uid]
            return {uid: why for uid, (_, why, _) in self._given_back.items()}

    def known(self) -> list[Bag]:
        """Those of which there were messages of late."""
        with self._lock:
            return [bag for bag, _ in self._bags.values()]

    def of(self, message: Message) -> Bag | None:
        """The message's bag; None when it is gone, or another one has its name now."""
        with self._lock:
            known = self._bags.get(message.uid)
            # A bag that was open may have grown since; a cancelled one may have been taken up again.
            if (
                known is not None
                and message.bag == known[0].name
                and message.first + message.count <= known[0].total
                and message.generation <= known[0].generation
            ):
                self._bags[message.uid] = known[0], time.monotonic()
                return known[0]
        try:
            bag = self._read(message.bag)
        except BagNotFoundError:
            return None
        if bag.uid != message.uid:
            return None
        with self._lock:
            self._bags[bag.uid] = bag, time.monotonic()
        return bag

    def is_gone(self, bag: Bag) -> bool:
        """Has it expired, so that its name may be another bag's by now? Asks the table of nothing else: one that is kept
        for ever keeps its name."""
        keep_s = bag.spec.keep_s
        if keep_s is None or time.time() < bag.created_at + keep_s - SKEW_S:
            return False
        try:
            return self._table.bag(bag.name).uid != bag.uid
        except BagNotFoundError:
            return True

    def refresh(self, in_use: Collection[str]) -> dict[str, int]:
        """Read the bags again; returns, by uid, up to which generation they were cancelled or are gone.

        Forgets those not asked for lately, but not the uids `in_use`: their tasks may run for hours.
        """
        over = {}
        with self._lock:
            known = list(self._bags.values())
        for bag, used_s in known:
            try:
                now = self._read(bag.name)
            except BagNotFoundError:
                now = bag
                over[bag.uid] = bag.generation
            if now.uid != bag.uid or now.state is BagState.CANCELLED:
                over[bag.uid] = now.generation
            elif now.generation:  # cancelled and taken up again, perhaps while nobody looked
                over[bag.uid] = now.generation - 1
            with self._lock:
                if bag.uid not in in_use and (now.uid != bag.uid or time.monotonic() - used_s > KEEP_S):
                    self._bags.pop(bag.uid, None)
                elif now.uid == bag.uid:
                    self._bags[bag.uid] = now, self._bags.get(bag.uid, (now, used_s))[1]
        return over

    def _read(self, name: str) -> Bag:
        """With no longer timeout than this worker's."""
        bag = self._table.bag(name)
        longest_s, timeout_s = self._timeout_s, bag.spec.timeout_s
        if longest_s is None or (timeout_s is not None and timeout_s <= longest_s):
            return bag
        return msgspec.structs.replace(bag, spec=msgspec.structs.replace(bag.spec, timeout_s=longest_s))

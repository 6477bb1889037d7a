"""Keeps the leases of all held messages while their tasks run, whatever the tasks do."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

from mtask.errors import BackendError
from mtask.queue import Queue
from mtask.worker.held import Held
from mtask.worker.notes import Notes
from mtask.worker.service import Service

__all__ = ["LeaseKeeper"]

RETRY_S = 1.0
HELD_FOR = 0.9
"""What nears the longest time that it can be held is handed on after this part of it, and a lease before."""
ALONG = 1 / 8
"""What is due takes along all leases of which so much is over: a request for ten costs as much as one for one."""


class LeaseKeeper(Service):
    """Extends each lease at a third of its life; tries a failing extension again until it is over.

    Liveness is judged by the monotonic clock, from before the request that gave the lease: so this
    side believes a lease over a little before the queue does, never after.
    """

    def __init__(
        self,
        queue: Queue,
        on_lost: Callable[[Held], None],
        notes: Notes,
        on_nearing: Callable[[Held], None] = lambda _: None,
    ) -> None:
        """`on_nearing`: is told, once, of what can't be held for much longer (`limits.hold_s`)."""
        super().__init__("leases")
        self._queue, self._on_lost, self._notes = queue, on_lost, notes
        self._on_nearing = on_nearing
        self._held: set[Held] = set()
        self._let_go: set[Held] = set()
        self._wake = threading.Condition()
        self._extending = threading.Lock()
        self._looks_s = 0.0
        """When the thread will look again."""
        self._stopped = False

    def add(self, held: Iterable[Held]) -> None:
        with self._wake:
            for each in held:
                if each.let_go or each.lost:
                    continue
                self._held.add(each)
                if _due_s(each) < self._looks_s:
                    self._wake.notify()

    def forget(self, held: Iterable[Held]) -> None:
        """Stop extending these; returns when no extension of theirs is under way, so that their tokens hold."""
        with self._extending, self._wake:
            self._held.difference_update(held)
            self._let_go.difference_update(held)

    def let_go(self, held: Held) -> None:
        """Its tasks run on, and its message is held no more, until it is forgotten."""
        with self._wake:
            if held.lost:  # its tasks are stopped
                return
            held.let_go = True
            self._held.discard(held)
            self._let_go.add(held)

    def held(self) -> list[Held]:
        """All whose lease is kept now, or whose tasks run on without."""
        with self._wake:
            return [*self._held, *self._let_go]

    def running_on(self) -> list[Held]:
        """Those without a lease."""
        with self._wake:
            return list(self._let_go)

    def count(self, uid: str) -> int:
        """How many of both are of the limited bag with this uid."""
        with self._wake:
            return sum(held.lane.uid == uid for held in (*self._held, *self._let_go))

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def work(self) -> None:
        while True:
            with self._wake:
                if self._stopped:
                    return
                self._looks_s = min(map(_due_s, self._held), default=math.inf)
                wait_s = self._looks_s - time.monotonic()
                if wait_s > 0:
                    self._wake.wait(None if math.isinf(wait_s) else wait_s)
                    continue
            with self._extending:
                self._extend()

    def _extend(self) -> None:
        now = time.monotonic()
        with self._wake:
            due = [held for held in self._held if now >= held.renewed_s + ALONG * held.lease_s]
            nearing = [held for held in self._held if not held.nears_its_end and now >= self._nearing_s(held)]
        for held in nearing:
            held.nears_its_end = True
            self._on_nearing(held)
        gone: set[Held] = set()
        if self._queue.limits.extends:
            for lease_s in {held.lease_s for held in due}:
                gone |= self._extend_batch([held for held in due if held.lease_s == lease_s], lease_s)
        for held in due:
            if held.renewed_s < now:  # it met a fault, or can't be extended: it is looked at again shortly
                held.renewed_s = now - held.lease_s / 3 + min(RETRY_S, held.lease_s / 10)
                if time.monotonic() >= held.expires_s:
                    gone.add(held)
        with self._wake:
            for held in gone:
                held.lost = True
            self._held.difference_update(gone)
        for held in gone:
            self._on_lost(held)

    def confirm(self, held: Iterable[Held]) -> None:
        """Have those extended that may be over, unseen while this process or its host stood still; marks the lost.

        What a stale holder sends would be run beside what another one holds. No answer is no news.
        """
        now_s = time.monotonic()
        doubtful = {each for each in held if now_s >= each.expires_s and not each.lost and not each.let_go}
        if not doubtful or not self._queue.limits.extends:
            return
        with self._extending:
            for lease_s in {each.lease_s for each in doubtful}:
                batch = [each for each in doubtful if each.lease_s == lease_s]
                for lost in self._extend_batch(batch, lease_s):
                    with self._wake:
                        lost.lost = True
                        self._held.discard(lost)
                    self._on_lost(lost)

    def _nearing_s(self, held: Held) -> float:
        """When it is to be handed on, by the monotonic clock."""
        hold_s = self._queue.limits.hold_s
        return held.received_s + max(hold_s / 2, HELD_FOR * hold_s - held.lease_s)

    def _extend_batch(self, batch: list[Held], lease_s: float) -> set[Held]:
        """Returns those whose lease is lost for good."""
        asked_s = time.monotonic()
        try:
            extension = self._queue.extend([held.delivery for held in batch], lease_s=lease_s)
        except BackendError as error:
            self._notes.trouble("queue", error)
            return set()
        self._notes.well("queue")
        held_by = {id(held.delivery): held for held in batch}
        for old, new in extension.extended:
            held = held_by[id(old)]
            held.delivery, held.renewed_s, held.expires_s = new, asked_s, asked_s + lease_s
        return {held_by[id(delivery)] for delivery in extension.lost}


def _due_s(held: Held) -> float:
    """When it is to be extended, by the monotonic clock."""
    return held.renewed_s + held.lease_s / 3

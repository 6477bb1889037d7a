"""Takes messages from the queue, when the slots want some, and has each looked at before it is run."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mtask.errors import BackendError, UnavailableError
from mtask.giveback import give_back
from mtask.lanes import Lanes
from mtask.model import Delivery
from mtask.requirements import DEFAULT_LANE, Capabilities, Lane, Requirements
from mtask.table import Table
from mtask.worker.bags import Bags
from mtask.worker.held import Job
from mtask.worker.inspection import Inspector, Lease
from mtask.worker.leases import LeaseKeeper
from mtask.worker.limits import Limits
from mtask.worker.notes import Notes
from mtask.worker.options import Options
from mtask.worker.recorder import Recorder
from mtask.worker.room import Space
from mtask.worker.served import ServedLanes
from mtask.worker.service import Service

__all__ = ["Receiver", "Wish"]

LONG_POLL_S = 20.0
SHORT_POLL_S = 1.0
"""Of a queue that sets no longest wait: to ask it costs next to nothing, and there may be a new lane."""
ROLES_POLL_S = 4.0
"""Of a worker that may be told to serve other lanes: not every queue can be woken."""
LANES_POLL_S = 1.0
LANES_SHORT_POLL_S = 0.1
"""With several lanes, so that none is waited at while there is something in another; the short one where each look costs
next to nothing, and nobody tells what comes into the others."""
LOOK_S = 2.0
"""Between two looks at how much is in the lanes whose limits are used up."""


class Wish(NamedTuple):
    """What the slots can use."""

    space: Space
    queued: Mapping[Requirements, int] = {}
    """Messages that may wait behind others, whose tasks need the same."""

    def messages(self, lane: Lane) -> int:
        """How many from this lane."""
        copies = self.space.copies(lane.requires)
        # What waits would count as running.
        return copies if lane.limited else copies + self.queued.get(lane.requires, 0)


class Receiver(Service):
    """Receives what is wished for, lane by lane, and hands each message to `on_job` once it is fit to run."""

    def __init__(
        self,
        queue: Lanes,
        table: Table,
        *,
        bags: Bags,
        keeper: LeaseKeeper,
        recorder: Recorder,
        notes: Notes,
        on_job: Callable[[Job], None],
        on_round: Callable[[], None],
        worker: str,
        lease_s: float | None,
        can: Capabilities | None = None,
        limits: Limits | None = None,
        options: Options | None = None,
    ) -> None:
        """`on_round` is called when all messages of one request have been looked at. `can`: with its roles."""
        super().__init__("receiver")
        self._queue, self._notes, self._on_round = queue, notes, on_round
        options = options or Options()
        self._long_poll_s = ROLES_POLL_S if options.takes else LONG_POLL_S
        self._idle_poll_s = math.inf if options.idle_exit_s is None else max(0.1, options.idle_exit_s / 2)
        self._lanes = ServedLanes(
            table, can or Capabilities(), notes, roles=options.roles, listed=options.lanes
        )
        self._limits = limits or Limits(table, worker, lambda _: 0)
        self._wish: Wish | None = None
        self._rounds = 0
        self._asking = False
        self._looked_s = -LOOK_S
        self.ended = False
        """Will no further message come?"""
        self.vain_s = -math.inf
        """When the last request began to which the answer was that there is nothing (monotonic clock)."""
        self.held_back = False
        """Is there something in a lane that this worker serves, which only a limit keeps from starting?"""
        self._wake = threading.Condition()
        self._stopped = threading.Event()
        self._inspector = Inspector(
            queue,
            table,
            bags=bags,
            keeper=keeper,
            recorder=recorder,
            notes=notes,
            on_job=on_job,
            worker=worker,
            lease_s=lease_s,
            stopped=self._stopped,
        )

    def want(self, wish: Wish | None, rounds: int) -> None:
        """What the slots can use, as of the end of so many `rounds`; None: nothing.

        Without the rounds, messages on their way to the slots would be asked for twice.
        """
        with self._wake:
            if rounds != self._rounds or wish == self._wish:
                return
            self._wish = wish
            self._wake.notify()
            waits = self._asking and wish is None
        if waits:
            self._queue.wake()

    def serve(self, can: Capabilities, roles: tuple[str, ...]) -> None:
        """From now on what bags send that ask for these roles."""
        with self._wake:
            self._lanes.serve(can, roles)
            self._wake.notify()
        self._queue.wake()

    def hand(self, delivery: Delivery, *, lease_s: float, asked_s: float) -> None:
        """Have one looked at in the caller's thread, who has received it from the main lane."""
        try:
            self._inspector.look_at(delivery, Lease(length_s=lease_s, asked_s=asked_s, received_s=asked_s))
        except BackendError as problem:
            self._notes.trouble("table", problem)
            give_back(self._queue, [delivery])

    def quiet(self, rounds: int) -> bool:
        """Is nothing asked for, and nothing on its way to one who has seen so many `rounds`?"""
        with self._wake:
            return rounds == self._rounds and self._wish is None and not self._asking

    def stop(self) -> None:
        """Receive no more; the thread ends after the present request."""
        with self._wake:
            self._stopped.set()
            self._wake.notify()
        self._queue.wake()

    def work(self) -> None:
        try:
            self._serve()
        finally:
            self.ended = True
            self._on_round()

    def _serve(self) -> None:
        pause_s = 0.1
        while True:
            with self._wake:
                self._asking = False
                while not self._stopped.is_set() and self._wish is None:
                    self._wake.wait()
                if self._stopped.is_set():
                    return
                self._asking, wish = True, self._wish
            assert wish is not None
            lease_s = min(self._inspector.next_lease_s, self._queue.limits.lease_s)
            began_s = time.monotonic()
            try:
                lane, asked_s, deliveries = self._receive(wish, lease_s)
            except BackendError as error:
                self._notes.trouble("queue", error)
                self._stopped.wait(pause_s)
                pause_s = min(2 * pause_s, 10.0)
                continue
            self._notes.well("queue")
            pause_s = 0.1
            if deliveries:
                with self._wake:
                    self._rounds += 1
                    self._wish = None
                started = self._accept_all(deliveries, asked_s, lease_s)
                try:
                    self._limits.arrived(lane, len(deliveries), started)
                except BackendError as error:
                    self._notes.trouble("table", error)
                self._on_round()
            else:
                self.vain_s = began_s

    def _receive(self, wish: Wish, lease_s: float) -> tuple[Lane, float, list[Delivery]]:
        """From the first lane, in turn, that has something for this wish: (lane, time before the request,
        deliveries)."""
        limits = self._queue.limits
        # A lease may begin with the request or with the answer: it must be long enough for both.
        patient, lanes = limits.wait_s < 3600, self._lanes.in_turn()
        wait_s = min(self._long_poll_s if patient else SHORT_POLL_S, limits.wait_s, lease_s / 4)
        wait_s = min(wait_s, self._idle_poll_s)
        if len({lane.name for lane in lanes if not lane.front}) > 1:
            wait_s = min(wait_s, LANES_POLL_S if patient or limits.hears_lanes else LANES_SHORT_POLL_S)
        if not lanes:  # it has no role, or nobody asks for it
            wait_s = LANES_POLL_S
        waits, refused = True, []
        for number, lane in enumerate(lanes):
            last = number == len(lanes) - 1
            want = wish.messages(lane) or self._lanes.room_to_make(lane)
            if want and lane.limited:
                want = self._limits.allow(lane, want)
                if not want:
                    refused.append(lane)
                    wait_s = min(wait_s, self._limits.pause_s(lane))
            if not want:
                continue
            waits = waits and not last
            asked_s = time.monotonic()
            try:
                deliveries = self._queue.receive(
                    max_messages=min(want, limits.receive_batch),
                    lease_s=lease_s,
                    wait_s=wait_s if last else 0.0,
                    lane=lane.name,
                )
            except BackendError:
                self._limits.arrived(lane, 0)
                raise
            if not deliveries:
                self._limits.arrived(lane, 0)
            self._lanes.answered(lane, len(deliveries))
            if deliveries:
                return lane, asked_s, deliveries
        self._look_for_held_back(refused)
        if waits:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._stopped.is_set() or self._wish != wish or self._lanes.changed,
                    min(wait_s, LANES_SHORT_POLL_S) if lanes else wait_s,
                )
        return DEFAULT_LANE, 0.0, []

    def _look_for_held_back(self, refused: list[Lane]) -> None:
        """Now and then; a lane that can't tell what is in it may have something."""
        if refused and time.monotonic() - self._looked_s < LOOK_S:
            return
        self.held_back = False
        for lane in refused:
            self._looked_s = time.monotonic()
            with contextlib.suppress(BackendError):
                self.held_back = self.held_back or self._queue.lane(lane.name).depth().ready != 0

    def _accept_all(self, deliveries: list[Delivery], asked_s: float, lease_s: float) -> int:
        """How many are to be run. The table may be away just now: their leases are kept meanwhile, for a lease
        that runs out would look like the death of a worker."""
        waiting, pause_s, started, failed = deque(deliveries), 0.1, 0, False
        lease = Lease(length_s=lease_s, asked_s=asked_s, received_s=asked_s)
        while waiting:
            try:
                started += self._inspector.look_at(waiting[0], lease)
            except BackendError as problem:
                self._notes.trouble("table", problem)
                passing, failed = isinstance(problem, UnavailableError), True
            else:
                waiting.popleft()
                if failed:  # else the table may not have been asked at all
                    self._notes.well("table")
                failed = False
                continue
            if self._stopped.wait(pause_s):
                with contextlib.suppress(BackendError):
                    give_back(self._queue, list(waiting))
                return started
            pause_s = min(2 * pause_s, 5.0, lease_s / 4)
            now_s = time.monotonic()
            if passing and self._queue.limits.extends and now_s >= lease.asked_s + lease_s / 3:
                with contextlib.suppress(BackendError):
                    waiting = self._extended(waiting, lease_s)
                    lease = lease._replace(asked_s=now_s)
            if now_s >= lease.asked_s + lease_s:
                break
        return started

    def _extended(self, waiting: deque[Delivery], lease_s: float) -> deque[Delivery]:
        """The same with longer leases, but for those that are lost."""
        extension = self._queue.extend(list(waiting), lease_s=lease_s)
        new = {id(old): delivery for old, delivery in extension.extended}
        return deque(new[id(delivery)] for delivery in waiting if id(delivery) in new)

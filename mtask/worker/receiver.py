"""Takes messages from the queue, when the slots want some, and looks at each before it is run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

from mtask.errors import BackendError, MessageError
from mtask.model import Bag, BagState, DeadMessage, Delivery, Failure, Message, Reason, Result
from mtask.packing import single, unfold
from mtask.queue import Queue
from mtask.table import Table
from mtask.worker.bags import Bags
from mtask.worker.held import Held, Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.recorder import Recorder

__all__ = ["Receiver"]

LONG_POLL_S = 20.0
SHORT_POLL_S = 0.1
"""Of a queue that sets no longest wait: to ask it costs next to nothing."""
DEFAULT_LEASE_S = 60.0


class Receiver(threading.Thread):
    """Receives as many messages as `want` says, and hands each to `on_job` once it is fit to run."""

    def __init__(
        self,
        queue: Queue,
        table: Table,
        *,
        bags: Bags,
        keeper: LeaseKeeper,
        recorder: Recorder,
        notes: Notes,
        on_job: Callable[[Job], None],
        worker: str,
        lease_s: float | None,
    ) -> None:
        super().__init__(name="mtask-receiver", daemon=True)
        self._queue, self._table, self._bags = queue, table, bags
        self._keeper, self._recorder, self._notes = keeper, recorder, notes
        self._on_job, self._worker = on_job, worker
        self._lease_s = lease_s
        self._next_lease_s = lease_s or DEFAULT_LEASE_S
        self._want, self._stopped = 0, False
        self._wake = threading.Condition()
        self.handed = 0
        """Jobs given to `on_job` so far."""

    def want(self, messages: int) -> None:
        """How many more messages the slots can use now."""
        with self._wake:
            self._want = messages
            self._wake.notify()

    def stop(self) -> None:
        """Receive no more; the thread ends after the present request."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def run(self) -> None:
        limits = self._queue.limits
        wait_s = SHORT_POLL_S if limits.wait_s > 3600 else min(limits.wait_s, LONG_POLL_S)
        pause_s = 0.1
        while True:
            with self._wake:
                while not self._stopped and self._want <= 0:
                    self._wake.wait()
                if self._stopped:
                    return
                want = min(self._want, limits.receive_batch)
            asked_s, lease_s = time.monotonic(), min(self._next_lease_s, limits.lease_s)
            try:
                deliveries = self._queue.receive(max_messages=want, lease_s=lease_s, wait_s=wait_s)
            except BackendError as error:
                self._notes.trouble("queue", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 10.0)
                continue
            self._notes.well("queue")
            pause_s = 0.1
            with self._wake:
                self._want -= len(deliveries)
            for delivery in deliveries:
                self._accept_patiently(delivery, asked_s, lease_s)

    def _accept_patiently(self, delivery: Delivery, received_s: float, lease_s: float) -> None:
        """The table may be away just now: then the lease simply runs out, and somebody else gets it."""
        pause_s = 0.1
        while time.monotonic() < received_s + lease_s:
            try:
                self._accept(delivery, received_s, lease_s)
            except BackendError as error:
                self._notes.trouble("table", error)
            else:
                self._notes.well("table")
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    def _accept(self, delivery: Delivery, received_s: float, lease_s: float) -> None:
        try:
            message = Message.decode(delivery.body)
        except MessageError as error:
            return self._set_aside(delivery, str(error))
        bag = self._bags.of(message)
        if bag is None:
            return self._set_aside(delivery, f"there is no bag {message.bag!r} with the uid {message.uid!r}")
        body = delivery.body
        if not message.has_rows:
            try:
                message = unfold(message, self._table.block(bag.name, message.block))
            except KeyError:
                return self._set_aside(delivery, f"bag {bag.name!r} has no block {message.block}")
            body = message.encode()
        held = Held(delivery, message, bag, lease_s, received_s, body)
        wanted_s = min(self._lease_s or bag.spec.lease_s, self._queue.limits.lease_s)
        if wanted_s != lease_s:
            # The first message of a bag comes with another bag's lease: corrected at the next extension.
            self._next_lease_s = held.lease_s = wanted_s
            held.renewed_s = 0.0
        self._keeper.add([held])
        if self._fit_to_run(held, message, bag, delivery):
            self.handed += 1
            self._on_job(Job(held, 0, message.count))

    def _fit_to_run(self, held: Held, message: Message, bag: Bag, delivery: Delivery) -> bool:
        if bag.state is BagState.CANCELLED:
            self._recorder.drop(held)
            return False
        if message.not_before is not None and (early_s := message.not_before - time.time()) > 0:
            self._recorder.release(held, delay_s=min(early_s, self._queue.limits.delay_s))
            return False
        lost = message.deaths + delivery.deliveries - 1
        return not (lost or message.check) or self._careful(held, lost)

    def _careful(self, held: Held, lost: int) -> bool:
        """Some of these tasks may have been done, or have killed a worker: run only those without a
        row, one task a message, so that one that kills its worker is found."""
        message, spec = held.message, held.bag.spec
        indexes = range(message.first, message.first + message.count)
        rest = sorted(set(indexes) - self._table.recorded(held.bag.name, indexes))
        if not rest:
            self._recorder.drop(held)
            return False
        if not lost and len(rest) == message.count:
            return True
        if message.count > 1:
            copies = [
                msgspec.structs.replace(single(message, held.rows, index), deaths=lost, check=True) for index in rest
            ]
            held.unsettled = len(rest)
            self._recorder.hand_on(held, copies)
            return False
        if lost >= spec.max_deliveries:
            self._recorder.final(held, [_lost(held, lost, self._worker)])
            return False
        return True

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        self._notes.once(f"a message can't be read and is set aside (see `mtask dead`): {reason}")
        self._recorder.set_aside(
            delivery, DeadMessage(body=delivery.body, reason=reason, worker=self._worker, at=time.time())
        )


def _lost(held: Held, lost: int, worker: str) -> Result:
    error = Failure(
        reason=Reason.LOST, type="lost", message=f"{lost} workers died with this task (max_deliveries)"
    )
    return Result.failed(
        held.bag.name,
        held.message.first,
        error,
        attempt=held.message.attempt + 1,
        worker=worker,
        queued_at=held.message.sent_at,
        finished_at=time.time(),
    )

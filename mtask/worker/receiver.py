"""Takes messages from the queue, when the slots want some, and looks at each before it is run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import msgspec

from mtask.errors import BackendError, MessageError
from mtask.model import Bag, BagState, DeadMessage, Delivery, Failure, Message, Reason, Result
from mtask.packing import unfold
from mtask.queue import Queue
from mtask.table import Table
from mtask.worker.bags import Bags
from mtask.worker.held import Held, Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.recorder import Recorder
from mtask.worker.service import Service

__all__ = ["Receiver"]

LONG_POLL_S = 20.0
SHORT_POLL_S = 0.1
"""Of a queue that sets no longest wait: to ask it costs next to nothing."""
DEFAULT_LEASE_S = 60.0


class Receiver(Service):
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
        on_round: Callable[[], None],
        worker: str,
        lease_s: float | None,
    ) -> None:
        """`on_round` is called when all messages of one request have been looked at."""
        super().__init__("receiver")
        self._queue, self._table, self._bags = queue, table, bags
        self._keeper, self._recorder, self._notes = keeper, recorder, notes
        self._on_job, self._on_round, self._worker = on_job, on_round, worker
        self._lease_s = lease_s
        self._next_lease_s = lease_s or DEFAULT_LEASE_S
        self._want = self._rounds = 0
        self._asking = False
        self._wake = threading.Condition()
        self._stopped = threading.Event()

    def want(self, messages: int, rounds: int) -> None:
        """How many more messages the slots can use, as of the end of so many `rounds`.

        Without the rounds, messages on their way to the slots would be asked for twice.
        """
        with self._wake:
            if rounds == self._rounds:
                self._want = messages
                self._wake.notify()

    def quiet(self, rounds: int) -> bool:
        """Is nothing asked for, and nothing on its way to one who has seen so many `rounds`?"""
        with self._wake:
            return rounds == self._rounds and self._want <= 0 and not self._asking

    def stop(self) -> None:
        """Receive no more; the thread ends after the present request."""
        with self._wake:
            self._stopped.set()
            self._wake.notify()

    def work(self) -> None:
        limits = self._queue.limits
        pause_s = 0.1
        while True:
            with self._wake:
                self._asking = False
                while not self._stopped.is_set() and self._want <= 0:
                    self._wake.wait()
                if self._stopped.is_set():
                    return
                self._asking = True
                want = min(self._want, limits.receive_batch)
            asked_s, lease_s = time.monotonic(), min(self._next_lease_s, limits.lease_s)
            # A lease may begin with the request or with the answer: it must be long enough for both.
            wait_s = min(LONG_POLL_S if limits.wait_s < 3600 else SHORT_POLL_S, limits.wait_s, lease_s / 4)
            try:
                deliveries = self._queue.receive(max_messages=want, lease_s=lease_s, wait_s=wait_s)
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
                    self._want = 0
                for delivery in deliveries:
                    self._accept_patiently(delivery, asked_s, lease_s)
                self._on_round()

    def _accept_patiently(self, delivery: Delivery, asked_s: float, lease_s: float) -> None:
        """The table may be away just now: then the lease simply runs out, and somebody else gets it."""
        pause_s = 0.1
        while time.monotonic() < asked_s + lease_s:
            try:
                self._accept(delivery, asked_s, lease_s)
            except MessageError as error:
                return self._set_aside(delivery, str(error))
            except BackendError as error:
                self._notes.trouble("table", error)
            else:
                return self._notes.well("table")
            if self._stopped.wait(pause_s):
                with contextlib.suppress(BackendError):
                    self._queue.release([delivery])
                return None
            pause_s = min(2 * pause_s, 5.0)

    def _accept(self, delivery: Delivery, asked_s: float, lease_s: float) -> None:
        """Raises MessageError for a message to be set aside, BackendError when the table is away."""
        message, body = Message.decode(delivery.body), delivery.body
        bag = self._bags.of(message)
        if bag is None:
            raise MessageError(f"there is no bag {message.bag!r} with the uid {message.uid!r}")
        if message.first + message.count > bag.total:
            raise MessageError(f"bag {bag.name!r} has {bag.total} tasks, and the message more")
        if not message.has_rows:
            try:
                message = unfold(message, self._table.block(bag.name, message.block))
            except KeyError:
                raise MessageError(f"bag {bag.name!r} has no block {message.block}") from None
            body = message.encode()
        held = Held(delivery, message, bag, body=body, lease_s=lease_s, asked_s=asked_s)
        wanted_s = min(self._lease_s or bag.spec.lease_s, self._queue.limits.lease_s)
        if wanted_s != lease_s:
            # The first message of a bag comes with another bag's lease: corrected at the next extension.
            self._next_lease_s = held.lease_s = wanted_s
            held.renewed_s = 0.0
        if self._fit_to_run(held, bag):
            self._on_job(Job(held, 0, message.count))

    def _fit_to_run(self, held: Held, bag: Bag) -> bool:
        message = held.message
        rest = self._without_row(held) if held.deaths or message.check else None
        self._keeper.add([held])
        if bag.state is BagState.CANCELLED or message.generation < bag.generation:
            self._recorder.drop(held)
        elif held.is_expired:
            rest = self._without_row(held) if rest is None else rest
            held.unsettled = len(rest)
            if rest:
                self._recorder.final(held, [held.expired(index, self._worker) for index in rest])
            else:
                self._recorder.drop(held)
        elif message.not_before is not None and (early_s := message.not_before - time.time()) > 0:
            self._recorder.release(held, delay_s=min(early_s, self._queue.limits.delay_s))
        else:
            return rest is None or self._careful(held, rest)
        return False

    def _without_row(self, held: Held) -> list[int]:
        """Those of the message's tasks that have no row in the table."""
        first = held.message.first
        indexes = range(first, first + held.message.count)
        return sorted(set(indexes) - self._table.recorded(held.bag.name, indexes))

    def _careful(self, held: Held, rest: list[int]) -> bool:
        """Some of these tasks may have been done, or have killed a worker: run only those without a
        row, one task a message, so that one that kills its worker is found."""
        message, lost = held.message, held.deaths
        if not rest:
            self._recorder.drop(held)
        elif message.count == 1 and lost >= held.bag.spec.max_deliveries:
            self._recorder.final(held, [_lost(held, lost, self._worker)])
        elif message.count > 1 and (lost or len(rest) < message.count):
            held.unsettled = len(rest)
            self._recorder.hand_on(
                held, [msgspec.structs.replace(held.single(index), check=True) for index in rest]
            )
        else:
            return True
        return False

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        self._notes.once(f"a message can't be read and is set aside (see `mtask dead`): {reason}")
        dead = DeadMessage(body=delivery.body, reason=reason, worker=self._worker, at=time.time())
        self._recorder.set_aside(delivery, dead)


def _lost(held: Held, lost: int, worker: str) -> Result:
    error = Failure(
        reason=Reason.LOST, type="lost", message=f"{lost} workers died with this task (max_deliveries)"
    )
    return Result.failed(
        held.bag.name,
        held.message.first,
        error,
        id=held.id_of(0),
        attempt=held.message.attempt + 1,
        worker=worker,
        queued_at=held.message.sent_at,
        finished_at=time.time(),
    )

"""What becomes of a message that was received: it is run, put off, given back, handed on, dropped, or set aside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from mtask.errors import BagNotFoundError, MessageError, NewerMessageError
from mtask.giveback import Common, give_back
from mtask.lanes import Lanes
from mtask.model import Bag, BagState, DeadMessage, Delivery, Failure, Message, Reason, Result
from mtask.packing import check_rows, unfold
from mtask.requirements import find_lane
from mtask.table import Table
from mtask.worker.bags import ELSEWHERE_S, Bags
from mtask.worker.guard import GUARD_S, Guard, Verdict, without_row
from mtask.worker.held import Held, Job
from mtask.worker.leases import LeaseKeeper
from mtask.worker.notes import Notes
from mtask.worker.recorder import Recorder

__all__ = ["Inspector", "Lease"]

AFTER_YOU_S = 0.3
"""Who has given back what it can't run is slower to ask again than those that may be able to."""
NEWER_S = 10.0
"""What only a newer mtask can read is left to others for so long: this one will not read it before it is upgraded."""
DEFAULT_LEASE_S = 60.0
MOST_REASON = 500
"""Characters: a reason may quote the message."""


class Lease(NamedTuple):
    """Of messages that came with one request. Times are of the monotonic clock."""

    length_s: float
    asked_s: float
    """Before the request for it, or for its last extension."""
    received_s: float
    """Before the request that brought the messages."""


class Inspector:
    """Hands each message that is fit to run to `on_job`; for the receiver's thread."""

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
        worker: str,
        lease_s: float | None,
        stopped: threading.Event,
    ) -> None:
        """`stopped` ends its pauses; `lease_s`: of all messages, else their bags say it."""
        self._queue, self._table, self._bags = queue, table, bags
        self._keeper, self._recorder, self._notes = keeper, recorder, notes
        self._on_job, self._worker, self._stopped = on_job, worker, stopped
        self._guard = Guard(table, worker, notes)
        self._lease_s = lease_s
        self.next_lease_s = lease_s or DEFAULT_LEASE_S
        """What the next message is likely to want: as the last one."""

    def look_at(self, delivery: Delivery, lease: Lease) -> bool:
        """Is it to be run? Raises BackendError when the table is away."""
        try:
            return self._accept(delivery, lease)
        except MessageError as error:
            if isinstance(error, NewerMessageError) and self._is_awaited(delivery.body):
                self._notes.once(f"given back to other workers: {error}")
                give_back(self._queue, [delivery], delay_s=NEWER_S)
                self._stopped.wait(AFTER_YOU_S)
            else:
                self._set_aside(delivery, str(error))
            return False

    def _is_awaited(self, body: bytes) -> bool:
        """Does it belong to a bag that isn't over, whatever else it says?"""
        try:
            name = msgspec.json.decode(body, type=Common)
            bag = self._table.bag(name.bag)
        except (ValueError, RecursionError, BagNotFoundError):
            return False
        over = bag.uid != name.uid or bag.state is BagState.CANCELLED
        return not over and self._table.counts(bag.name).left > 0

    def _accept(self, delivery: Delivery, lease: Lease) -> bool:
        """Raises MessageError for a message to be set aside, BackendError when the table is away."""
        message, body = Message.decode(delivery.body), delivery.body
        bag = self._bags.of(message)
        if bag is None:
            raise MessageError(f"there is no bag {message.bag!r} with the uid {message.uid!r}")
        if message.columns != bag.columns:
            raise MessageError(f"its columns are not those of bag {bag.name!r}")
        if find_lane(message.lane, bag.lanes) is None:
            raise MessageError(f"bag {bag.name!r} has no lane {message.lane!r}")
        if message.expires_at is not None and bag.spec.expires_s is None:
            raise MessageError(f"it expires, and bag {bag.name!r} doesn't")
        if message.first + message.count > bag.total:
            raise MessageError(f"bag {bag.name!r} has {bag.total} tasks, and the message more")
        if not message.has_rows:
            try:
                message = unfold(message, self._table.block(bag.name, message.block))
            except KeyError:
                raise MessageError(f"bag {bag.name!r} has no block {message.block}") from None
            body = message.encode()
        held = Held(
            delivery,
            message,
            bag,
            body=body,
            lease_s=lease.length_s,
            asked_s=lease.asked_s,
            received_s=lease.received_s,
        )
        wanted_s = min(self._lease_s or bag.spec.lease_s, self._queue.limits.lease_s)
        if wanted_s != lease.length_s:
            # The first message of a bag comes with another bag's lease: corrected at the next extension.
            self.next_lease_s = held.lease_s = wanted_s
            held.renewed_s = 0.0
        fit = self._fit_to_run(held, bag)
        if fit:
            self._on_job(Job(held, 0, message.count))
        return fit

    def _fit_to_run(self, held: Held, bag: Bag) -> bool:
        message = held.message
        if message.runs_at and message.generation >= bag.generation and bag.state is not BagState.CANCELLED:
            return self._unguarded(held) and self._fit_to_run(held, bag)
        careful = held.deaths > 0 or message.check
        if careful or held.is_expired:
            check_rows(message)  # else whoever runs them does, while the message is still in one piece
        rest = without_row(self._table, held) if careful else None
        self._keeper.add([held])
        if bag.state is BagState.CANCELLED or message.generation < bag.generation:
            self._recorder.drop(held, ended=False)
        elif held.is_expired:
            rest = without_row(self._table, held) if rest is None else rest
            held.unsettled = len(rest)
            if rest:
                self._recorder.final(held, [held.expired(index, self._worker) for index in rest])
            else:
                self._recorder.drop(held)
        elif bag.uid in self._bags.given_back():
            self._recorder.release(held, delay_s=ELSEWHERE_S)
            self._stopped.wait(AFTER_YOU_S)
        elif message.not_before is not None and (early_s := message.not_before - time.time()) > 0:
            self._recorder.release(held, delay_s=min(early_s, self._queue.limits.delay_s))
        else:
            return rest is None or self._careful(held, rest)
        return False

    def _unguarded(self, held: Held) -> bool:
        """Of what another worker runs, or ran: is it nobody's now?"""
        verdict = self._guard.look(held)
        if verdict is Verdict.RUN:
            return True
        self._keeper.add([held])
        if verdict is Verdict.WAIT:
            self._recorder.release(held, delay_s=min(self._queue.limits.delay_s, GUARD_S))
        else:
            self._recorder.drop(held, ended=verdict is Verdict.END)
        return False

    def _careful(self, held: Held, rest: list[int]) -> bool:
        """Some of these tasks may have been done, or have killed a worker: run only those without a
        row, one task a message, so that one that kills its worker is found."""
        message, lost = held.message, held.deaths
        if not rest:
            self._recorder.drop(held)
        elif message.count == 1 and lost >= held.bag.spec.max_deliveries:
            self._recorder.final(held, [_lost(held, lost, self._worker)])
        elif held.lost_its_place or (message.count > 1 and (lost or len(rest) < message.count)):
            held.unsettled = len(rest)
            self._recorder.hand_on(
                held, [msgspec.structs.replace(held.single(index), check=True) for index in rest]
            )
        else:
            return True
        return False

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        """Raises BackendError when it can't be written just now."""
        reason = reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]}…"
        self._notes.once(f"a message can't be read and is set aside (see `mtask dead`): {reason}")
        dead = DeadMessage(body=delivery.body, reason=reason, worker=self._worker, at=time.time())
        with self._table.transaction(self._queue):
            self._table.set_aside([dead])
            self._queue.delete([delivery])


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

"""A queue on Pub/Sub, pulled message by message; what lies there is in `mtask_gcp.names`.

A lease is an ack deadline, which mtask sets after each pull and extends itself; who holds what is in `mtask_gcp.tokens`. Requests
and their limits: https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.errors import BackendError, UnavailableError
from mtask.meter import Meter
from mtask.model import DeadMessage, Delivery, Message
from mtask.queue import Depth, Extension, QueueLimits
from mtask_gcp.address import Address
from mtask_gcp.bell import Bell
from mtask_gcp.client import Client, MissingError
from mtask_gcp.dead import dead_messages
from mtask_gcp.delays import Due, Kind, Received, ServerTime, sort_out
from mtask_gcp.names import Envelope, address_of, physical, subscription_path
from mtask_gcp.requests import (
    BATCH,
    BATCH_BYTES,
    MESSAGE_BYTES,
    OVERHEAD_BYTES,
    PULL,
    AckError,
    Requests,
    ack_batches,
    batches,
)
from mtask_gcp.sender import Sender
from mtask_gcp.setup_queue import find_subscription, make_lane
from mtask_gcp.tokens import Lease, lease_of

__all__ = ["PubSubQueue"]

LEASE_S = 600.0
"""The longest ack deadline of one request."""
LIMITS = QueueLimits(
    message_bytes=MESSAGE_BYTES,
    send_batch=BATCH,
    receive_batch=PULL,
    lease_s=LEASE_S,
    delay_s=7 * 86_400.0,
    wait_s=20.0,
    knows_depth=False,
)
LEAST_ACK_S = 10
"""The shortest deadline that a subscription can have."""
PULL_S = 3.0
"""A longer wait is several requests, so that one who is to stop stops soon; they cost next to nothing."""
LEAST_WAIT_S = 0.05
LOOK_S = 5.0
"""Of a receive that doesn't wait: so long does it put off what is early, to find something else."""
PAUSES_S = (0.05, 0.5)
"""After an answer that came at once and had nothing in it, as the emulator's: at first, and at most."""


class PubSubQueue:
    """A topic and its subscription, or a lane of them. Messages may come twice, and in any order.

    `wake` has a `receive` end with its present request: what a request that is broken off had taken would be held by nobody
    until the subscription's deadline.
    """

    limits = LIMITS

    def __init__(
        self,
        address: Address,
        requests: Requests,
        *,
        lane: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes over one use of the requests' client. The clock measures leases."""
        self.address, self.name, self.meter = address, physical(address, lane), requests.meter
        self.subscription = subscription_path(address, self.name)
        self._requests, self._lane, self._clock = requests, lane, clock
        self._sender = Sender(address, requests, lane)
        self.topic = self._sender.topic
        self._time = ServerTime()
        self._first_s = float(LEAST_ACK_S)
        """The subscription's own deadline: so long is what was pulled held at first."""
        self._closed = threading.Event()
        self._bell = Bell()

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.monotonic) -> PubSubQueue:
        """The queue at `url`.

        Raises UsageError for a URL that can't be used, UnusableError where there is no such queue, or no right to it.
        """
        address = address_of(url)
        requests = Requests(Client(address), Meter())
        try:
            found = find_subscription(requests.client, address, physical(address))
        except BaseException:
            requests.client.close()
            raise
        queue = cls(address, requests, clock=clock)
        if found is not None:
            queue._first_s = float(found.ack_deadline_seconds)
        if found is not None and not found.dead_letter_policy.dead_letter_topic:
            queue.limits = msgspec.structs.replace(LIMITS, counts_deliveries=False)
        return queue

    # -- sending ------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        self._check_open()
        self._sender.send(messages, min(delay_s, LIMITS.delay_s))

    # -- receiving ----------------------------------------------------------------------------------

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:
        self._check_open()
        started_s = time.monotonic()
        deadline_s = started_s + min(wait_s, self.limits.wait_s)
        pause_s, rings = PAUSES_S[0], self._bell.rings
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            asked_s = self._clock()
            try:
                got = self._requests.pull(self.subscription, max_messages, min(left_s, PULL_S))
            except MissingError:
                if not self._lane:
                    raise self._sender.deleted() from None
                self._bell.wait(left_s, rings)  # it was removed: there is nothing in it
                return []
            taken = self._take(got, lease_s, asked_s + self._first_s)
            now_s = time.monotonic()
            if taken or self._bell.rings != rings or (now_s >= deadline_s - LEAST_WAIT_S and not got):
                return taken
            if now_s >= max(deadline_s, started_s + LOOK_S):
                return []
            if not got:
                if self._bell.wait(min(pause_s, deadline_s - now_s), rings):
                    return []
                pause_s = min(2 * pause_s, PAUSES_S[1])

    def _take(self, received: Sequence[Any], lease_s: float, until_s: float) -> list[Delivery]:
        """Of what was pulled, and is held until then, that whose time has come, leased; the rest is put off."""
        if not received:
            return []
        found = [Received.of(each) for each in received]
        self._time.saw(max(each.published_at for each in found))
        sorted_out = [sort_out(each, self._time.now()) for each in found]
        ready = [each for each in sorted_out if each.kind is Kind.READY]
        taken = self._lease(ready, lease_s, until_s)
        self._put_off([each for each in sorted_out if each.kind is not Kind.READY], until_s)
        return taken

    def _lease(self, ready: Sequence[Due], lease_s: float, until_s: float) -> list[Delivery]:
        """Raises UnavailableError: then they come again after the subscription's own deadline. Past that, as when this process
        stood still, Pub/Sub says yes to an extension that has no effect: what may be so is left to others."""
        seconds, found = _whole(lease_s), []
        for run in ack_batches([each.ack_id for each in ready]):
            asked_s, ids = self._clock(), [ready[number].ack_id for number in run]
            lost: set[str] = set()
            try:
                self._requests.persist(self._requests.modify, self.subscription, ids, seconds)
            except AckError as error:
                lost = error.final | error.passing
            if self._clock() >= until_s:
                break
            for number in run:
                if ready[number].ack_id not in lost:
                    lease = Lease(ready[number].ack_id, asked_s + seconds)
                    found.append(ready[number].delivery(lease.token()))
        return found

    def _put_off(self, early: Sequence[Due], until_s: float) -> None:
        """Hide what is early; publish anew what was early once, so that those looks don't count as deliveries, and what
        was looked at so often that it would soon be dead. A fault, or to be too late, is no matter: it comes again."""
        by_hold: dict[int, list[str]] = {}
        anew = [each for each in early if each.kind is Kind.ANEW]
        for each in early:
            if each.kind is Kind.EARLY:
                by_hold.setdefault(_whole(min(each.early_s, LEASE_S)), []).append(each.ack_id)
        try:
            for hold_s, ids in by_hold.items():
                for run in ack_batches(ids):
                    if self._clock() >= until_s:
                        return
                    self._requests.modify(self.subscription, [ids[number] for number in run], hold_s)
            self._replace([(each.ack_id, each.envelope) for each in anew], until_s)
        except BackendError:
            return

    def _replace(self, pairs: Sequence[tuple[str, Envelope]], until_s: float) -> None:
        """First the copy, then the end of the original: a crash between doubles, and never loses. What is over isn't ended:
        somebody else may hold it."""
        sizes = [len(envelope.body) + OVERHEAD_BYTES for _, envelope in pairs]
        for run in batches(sizes, BATCH, BATCH_BYTES):
            if self._clock() >= until_s:
                return
            batch = [pairs[number] for number in run]
            taken = self._sender.publish([envelope for _, envelope in batch])
            if self._clock() >= until_s:
                return
            self._acknowledge([ack_id for ack_id, _ in batch[:taken]])
            if taken < len(batch):
                raise UnavailableError(
                    f"{self._sender.shown}: {len(batch) - taken} messages were not given back"
                )

    def handed(self, received: Received, lease_s: float) -> tuple[Due, Delivery]:
        """A message that was pushed to this process, which may hold it for so long."""
        due = sort_out(received, self._time.now())
        return due, due.delivery(Lease("", self._clock() + lease_s).token())

    def publish_anew(self, envelope: Envelope) -> None:
        """For one who will end the original. Raises BackendError."""
        self._check_open()
        if not self._sender.publish([envelope]):
            raise UnavailableError(f"{self._sender.shown}: Pub/Sub gave no id for a message")

    def wake(self) -> None:
        self._bell.ring()

    # -- leases -------------------------------------------------------------------------------------

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        result = Extension([], [])
        held, seconds = self._held(deliveries, result.lost), _whole(lease_s)
        fault: BackendError | None = None
        for run in ack_batches([lease_of(each).ack_id for each in held]):
            batch, asked_s = [held[number] for number in run], self._clock()
            final, passing = set[str](), set[str]()
            try:
                self._requests.modify(self.subscription, [lease_of(each).ack_id for each in batch], seconds)
            except MissingError:
                final = {lease_of(each).ack_id for each in batch}
            except AckError as error:
                final, passing = error.final, error.passing
            except BackendError as error:
                fault = error  # the others' new tokens must not be lost with it
                continue
            for delivery in batch:
                lease = lease_of(delivery)
                # An extension that came too late is answered like any other, and has no effect.
                if lease.ack_id in final or self._clock() >= lease.until_s:
                    lease.end()
                    result.lost.append(delivery)
                elif lease.ack_id not in passing:
                    token = lease.extended(asked_s + seconds)
                    result.extended.append((delivery, msgspec.structs.replace(delivery, token=token)))
        if fault is not None and not result.extended and not result.lost:
            raise fault
        return result

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(self._held(deliveries, []))

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        """By a copy: what is given back to Pub/Sub counts as one more delivery, a copy doesn't."""
        held = self._held(deliveries, [])
        delay_s = min(delay_s, LIMITS.delay_s)
        for run in batches([len(each.body) + OVERHEAD_BYTES for each in held], BATCH, BATCH_BYTES):
            batch = self._lasting([held[number] for number in run])
            if not batch:
                continue
            taken = self._sender.publish(
                [Envelope(each.body, delay_s, each.deliveries - 1) for each in batch]
            )
            self._settle(batch[:taken])
            if taken < len(batch):
                raise UnavailableError(
                    f"{self._sender.shown}: {len(batch) - taken} messages were not given back"
                )

    def _settle(self, held: Sequence[Delivery]) -> None:
        """But for those that are over by now. Raises UnavailableError if some could not be ended just now; the others are."""
        by_id = {lease_of(each).ack_id: lease_of(each) for each in held}
        for lease in [each for each in map(lease_of, held) if not each.ack_id]:
            lease.end()
        by_id.pop("", None)
        ids: list[str] = list(by_id)
        fault: BackendError | None = None
        for run in ack_batches(ids):
            now_s, passing = self._clock(), set[str]()
            batch = [ids[number] for number in run if by_id[ids[number]].lasts(now_s)]
            if not batch:
                continue
            try:
                self._acknowledge(batch)
            except MissingError:
                pass
            except AckError as error:
                passing = error.passing
            except BackendError as error:
                fault = error
                continue
            for ack_id in batch:
                if ack_id not in passing:
                    by_id[ack_id].end()
            if passing:
                fault = UnavailableError(f"{self._sender.shown}: {len(passing)} messages were not settled")
        if fault is not None:
            raise fault

    def _acknowledge(self, ack_ids: Sequence[str]) -> None:
        self._requests.acknowledge(self.subscription, ack_ids)

    def _held(self, deliveries: Sequence[Delivery], lost: list[Delivery]) -> list[Delivery]:
        """Those whose tokens hold, each once; the others go to `lost`."""
        self._check_open()
        now_s, held = self._clock(), {}
        for delivery in deliveries:
            lease = lease_of(delivery)
            if not lease.holds(delivery.token, now_s):
                lost.append(delivery)
            else:
                held[id(lease)] = delivery
        return list(held.values())

    def _lasting(self, held: Sequence[Delivery]) -> list[Delivery]:
        """Of those that were held a while ago. Their tokens may be void by now, of somebody who extended them."""
        now_s = self._clock()
        return [each for each in held if lease_of(each).lasts(now_s)]

    # -- the queue itself ---------------------------------------------------------------------------

    def depth(self) -> Depth:
        """Pub/Sub doesn't say; Cloud Monitoring does, some minutes late."""
        self._check_open()
        return Depth(None, None, None)

    def dead(self) -> Iterator[DeadMessage]:
        """What Pub/Sub has taken out of the queue and its lanes, because it was delivered too often; it stays there."""
        self._check_open()
        return dead_messages(self._requests, self.address)

    def lane(self, name: str) -> PubSubQueue:
        self._check_open()
        make_lane(self._requests.client, self.address, name)
        self._requests.client.share()
        lane = type(self)(self.address, self._requests, lane=name, clock=self._clock)
        lane.limits, lane._first_s = self.limits, self._first_s
        return lane

    def remove(self) -> bool:
        """It can't be known to be empty."""
        return False

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.wake()
            self._requests.client.close()

    # -- inside -------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise BackendError(f"the queue {self._sender.shown} is closed")


def _whole(seconds: float) -> int:
    """Never less than asked for, but for the limit; 0 would give it back."""
    return max(1, min(math.ceil(seconds), int(LEASE_S)))

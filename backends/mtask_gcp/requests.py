"""Requests to Pub/Sub: batched below its limits, and counted as it bills them.

The limits: https://cloud.google.com/pubsub/quotas#resource_limits. The requests for messages go past the retries of
Google's client, which would try for a minute while leases run out: mtask's engine tries again by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.api_core import exceptions
from google.api_core.gapic_v1 import routing_header
from google.pubsub_v1 import types

from mtask.errors import BackendError, UnavailableError
from mtask.meter import Meter
from mtask_gcp.client import Client
from mtask_gcp.names import Envelope
from mtask_gcp.prices import BYTES, billed

__all__ = ["BATCH", "BATCH_BYTES", "MESSAGE_BYTES", "PULL", "AckError", "Requests", "ack_batches", "batches"]

BATCH = 1000
"""Most messages of one Publish."""
BATCH_BYTES = 10_000_000
"""Most bytes of one Publish, all in all."""
MESSAGE_BYTES = 9_000_000
"""Most bytes of a message's data, so that there is room for what comes with it."""
OVERHEAD_BYTES = 200
"""At most so many come with a message in a request."""
PULL = 1000
"""Most messages of one Pull."""
ACK_BYTES = 512_000
"""Most bytes of one Acknowledge or ModifyAckDeadline; Pub/Sub takes 524,288."""
REQUEST_S = 30.0
"""A request that takes longer has failed."""
SETTLE_S = 10.0
"""The same of one about leases: they are extended often enough to try again."""
AT_ONCE_S = 0.5
"""A wait that is shorter is none: a request that ends before its answer can come leaves messages that nobody holds."""
TRIES = 3
PAUSE_S = 0.2

CONSUME = "pubsub.subscriptions.consume"
PUBLISH = "pubsub.topics.publish"

from_grpc_error: Any = exceptions.from_grpc_error
to_grpc_metadata: Any = routing_header.to_grpc_metadata
_PublishRequest: Any = types.PublishRequest.pb()
_PubsubMessage: Any = types.PubsubMessage.pb()
_PullRequest: Any = types.PullRequest.pb()
_PullResponse: Any = types.PullResponse
_AcknowledgeRequest: Any = types.AcknowledgeRequest.pb()
_ModifyAckDeadlineRequest: Any = types.ModifyAckDeadlineRequest.pb()


class AckError(BackendError):
    """Of a subscription with exactly-once delivery: some ack ids were refused, the others of the request were not.

    The format: https://cloud.google.com/pubsub/docs/exactly-once-delivery, an ErrorInfo whose metadata has, for each of these ids,
    PERMANENT_FAILURE_… or TRANSIENT_FAILURE_….
    """

    def __init__(self, final: set[str], passing: set[str]) -> None:
        """`final`: they are over for good; `passing`: nothing became of them, and trying again may help."""
        self.final, self.passing = final, passing
        super().__init__(f"{len(final | passing)} ack ids were refused")


class Requests:
    """What is asked of Pub/Sub by one queue and its lanes."""

    def __init__(self, client: Client, meter: Meter) -> None:
        self.client, self.meter = client, meter

    def publish(self, topic: str, envelopes: Sequence[Envelope]) -> int:
        """One batch; how many of its first ones were taken: all, says Pub/Sub. Raises as `Client.errors`."""
        request = _PublishRequest(
            topic=topic,
            messages=[_PubsubMessage(data=each.body, attributes=each.attributes) for each in envelopes],
        )
        answer = self._ask("publisher", "publish", request, PUBLISH, topic, "topic", REQUEST_S)
        self._count("pubsub publishes", len(envelopes), sum(map(_payload, envelopes)))
        return len(answer.message_ids)

    def pull(self, subscription: str, most: int, wait_s: float) -> list[Any]:
        """Up to `most` ReceivedMessage, or none after `wait_s` or sooner. Raises as `Client.errors`."""
        at_once = wait_s < AT_ONCE_S
        request = _PullRequest(subscription=subscription, max_messages=min(most, PULL))
        if at_once:
            # "Discouraged"; but nothing else looks into a lane without waiting.
            request.return_immediately = True
        started_s = time.monotonic()
        try:
            answer = self._ask(
                "subscriber",
                "pull",
                request,
                CONSUME,
                subscription,
                "subscription",
                SETTLE_S if at_once else wait_s,
            )
        except _TimeoutError:
            if at_once or time.monotonic() - started_s < wait_s / 2:
                raise
            self._count("pubsub pulls", 0, 0)
            return []
        found = list(_PullResponse.pb(answer).received_messages)
        size = sum(_size(each.message) for each in found)
        self._count("pubsub pulls", len(found), size)
        return found

    def acknowledge(self, subscription: str, ack_ids: Sequence[str]) -> None:
        """One batch. Raises AckError, and as `Client.errors`."""
        request = _AcknowledgeRequest(subscription=subscription, ack_ids=ack_ids)
        self._ask("subscriber", "acknowledge", request, CONSUME, subscription, "subscription", SETTLE_S)
        self.meter.add("pubsub acks", 1)

    def modify(self, subscription: str, ack_ids: Sequence[str], seconds: int) -> None:
        """One batch, held for so long from now on; 0: given back. Raises as `acknowledge`."""
        request = _ModifyAckDeadlineRequest(
            subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds
        )
        self._ask(
            "subscriber", "modify_ack_deadline", request, CONSUME, subscription, "subscription", SETTLE_S
        )
        self.meter.add("pubsub extensions", 1)

    def persist(self, what: Callable[..., None], *arguments: Any) -> None:
        """Call it again, with pauses, when it fails for a while. Raises what it raises at last."""
        for number in range(TRIES):
            try:
                what(*arguments)
                return
            except UnavailableError:
                if number == TRIES - 1:
                    raise
                time.sleep(PAUSE_S * 3**number)

    def _ask(
        self, client: str, method: str, request: Any, permission: str, on: str, field: str, timeout_s: float
    ) -> Any:
        with self.client.errors(permission, on):
            transport: Any = getattr(self.client, client).transport
            try:
                return getattr(transport, method)(
                    request, timeout=timeout_s, metadata=[to_grpc_metadata({field: on})]
                )
            except ValueError as error:
                # gRPC's word for a channel that was closed meanwhile.
                raise BackendError(f"{on}: {error}") from None
            except grpc.RpcError as problem:
                answer = from_grpc_error(problem)
                _look_for_ids(answer)
                if isinstance(answer, exceptions.DeadlineExceeded):
                    raise _TimeoutError(f"{on}: no answer within {timeout_s:g} s") from None
                raise

    def _count(self, what: str, messages: int, payload_bytes: int) -> None:
        self.meter.add(BYTES, billed(messages, payload_bytes))
        self.meter.add(what, 1)


class _TimeoutError(UnavailableError):
    pass


def _look_for_ids(error: exceptions.GoogleAPICallError) -> None:
    """Raises AckError."""
    refused: dict[str, str] = error.metadata or {}
    final = {each for each, why in refused.items() if why.startswith("PERMANENT_FAILURE")}
    passing = {each for each, why in refused.items() if why.startswith("TRANSIENT_FAILURE")}
    if final or passing:
        raise AckError(final, passing)


def batches(sizes: Sequence[int], most: int, most_bytes: int) -> Iterator[range]:
    """Cuts a sequence of things of these sizes into runs of at most so many, and so many bytes."""
    first, total = 0, 0
    for number, size in enumerate(sizes):
        if number > first and (number - first == most or total + size > most_bytes):
            yield range(first, number)
            first, total = number, 0
        total += size
    if first < len(sizes):
        yield range(first, len(sizes))


def ack_batches(ack_ids: Sequence[str]) -> Iterator[range]:
    """The same of ids for one request each."""
    return batches([len(each) + 8 for each in ack_ids], max(1, len(ack_ids)), ACK_BYTES)


def _payload(envelope: Envelope) -> int:
    return len(envelope.body) + sum(len(name) + len(value) for name, value in envelope.attributes.items())


def _size(message: Any) -> int:
    return len(message.data) + sum(
        len(name.encode()) + len(value.encode()) for name, value in message.attributes.items()
    )

"""Reads the dead letters of a queue without taking any out.

What Pub/Sub adds to a dead letter is in its attributes: https://cloud.google.com/pubsub/docs/handling-failures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from mtask.errors import BackendError
from mtask.model import DeadMessage
from mtask_gcp.address import Address
from mtask_gcp.client import MissingError
from mtask_gcp.delays import Received
from mtask_gcp.names import physical, subscription_path
from mtask_gcp.requests import ACK_BYTES, PULL, Requests, batches

__all__ = ["dead_messages"]

READ_S = 60.0
"""Reading takes at most so long, a part of the time for which what was read is hidden."""
WAIT_S = 1.0
COUNT, SOURCE = "CloudPubSubDeadLetterSourceDeliveryCount", "CloudPubSubDeadLetterSourceSubscription"


def dead_messages(requests: Requests, address: Address) -> Iterator[DeadMessage]:
    """Those of the queue and its lanes, oldest first. Raises BackendError."""
    path, read = subscription_path(address, physical(address, dead=True)), dict[str, Received]()
    until_s, ids = time.monotonic() + READ_S, list[str]()
    try:
        while time.monotonic() < until_s:
            pulled = requests.pull(path, PULL, WAIT_S)
            ids += [each.ack_id for each in pulled]
            read |= {each.message.message_id: Received.of(each) for each in pulled}
            if not pulled:
                break
    except MissingError:
        return iter(())
    finally:
        for run in batches([len(each) + 8 for each in ids], len(ids), ACK_BYTES):
            with contextlib.suppress(BackendError):  # then they are hidden for a while
                requests.modify(path, [ids[number] for number in run], 0)
    return iter(sorted(map(_dead, read.values()), key=lambda each: each.at))


def _dead(received: Received) -> DeadMessage:
    source = received.attributes.get(SOURCE, "the queue")
    times = received.attributes.get(COUNT, "too many")
    return DeadMessage(
        body=received.body,
        reason=f"delivered {times} times and never deleted; Pub/Sub has moved it here from {source}",
        at=received.published_at,
    )

"""Reads a dead-letter queue without taking anything out of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from mtask.errors import BackendError
from mtask.model import DeadMessage
from mtask_aws.address import Address
from mtask_aws.bodies import from_text
from mtask_aws.names import physical
from mtask_aws.requests import BATCH, NoQueueError, Requests

__all__ = ["dead_messages"]

HIDDEN_S = 120
"""What was read is hidden while the rest is, and is given back then. Reading takes half of that at most."""


class _Policy(msgspec.Struct):
    target: str = msgspec.field(name="deadLetterTargetArn")


def dead_messages(requests: Requests, address: Address) -> Iterator[DeadMessage]:
    """Those in the dead-letter queue that the queue at `address` names, oldest first; none, if it names none.

    Of a FIFO queue, ten of each bag. Raises BackendError.
    """
    found = _dead_queue(requests, address)
    if found is None:
        return iter(())
    name, url = found
    shown = f"sqs://{address.region}/{name}"
    read: dict[str, dict[str, Any]] = {}
    until_s = time.monotonic() + HIDDEN_S / 2
    try:
        while time.monotonic() < until_s:
            messages = _receive(requests, shown, url)
            read |= {message["MessageId"]: message for message in messages}
            if not messages:
                break
    finally:
        _give_back(requests, shown, url, [message["ReceiptHandle"] for message in read.values()])
    dead = [_dead(message, name) for message in read.values()]
    return iter(sorted(dead, key=lambda each: each.at))


def _dead_queue(requests: Requests, address: Address) -> tuple[str, str] | None:
    """Its name and URL, from the main queue's redrive policy."""
    main = physical(address)
    shown = f"sqs://{address.region}/{main}"
    try:
        url = requests.ask("GetQueueUrl", on=shown, QueueName=main)["QueueUrl"]
        answer = requests.ask("GetQueueAttributes", on=shown, QueueUrl=url, AttributeNames=["RedrivePolicy"])
        policy = answer.get("Attributes", {}).get("RedrivePolicy")
        if not policy:
            return None
        name = msgspec.json.decode(policy, type=_Policy).target.rpartition(":")[2]
        return name, requests.ask("GetQueueUrl", on=f"sqs://{address.region}/{name}", QueueName=name)[
            "QueueUrl"
        ]
    except NoQueueError:
        return None


def _receive(requests: Requests, shown: str, url: str) -> list[dict[str, Any]]:
    answer = requests.ask(
        "ReceiveMessage",
        on=shown,
        QueueUrl=url,
        MaxNumberOfMessages=BATCH,
        VisibilityTimeout=HIDDEN_S,
        WaitTimeSeconds=1,  # 0 would look at some of SQS's machines only
        MessageSystemAttributeNames=["SentTimestamp"],
    )
    messages: list[dict[str, Any]] = answer.get("Messages", [])
    return messages


def _give_back(requests: Requests, shown: str, url: str, handles: list[str]) -> None:
    for start in range(0, len(handles), BATCH):
        entries = [
            {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
            for number, handle in enumerate(handles[start : start + BATCH])
        ]
        with contextlib.suppress(BackendError):  # then they are hidden for a while
            requests.batch("ChangeMessageVisibilityBatch", entries, on=shown, QueueUrl=url)


def _dead(message: dict[str, Any], name: str) -> DeadMessage:
    return DeadMessage(
        body=from_text(message["Body"]),
        reason=f"received too often and never deleted; SQS has moved it to {name}",
        at=int(message.get("Attributes", {}).get("SentTimestamp", 0)) / 1000,
    )

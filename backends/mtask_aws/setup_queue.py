"""Makes queues: `mtask init` the queue and its dead-letter queue, workers the lanes.

A message that was received `RECEIPTS` times goes to the dead-letter queue, as a last net below mtask's own: tasks that
kill their workers end after `max_deliveries`, and what can't be read is set aside. SQS counts each receipt, also of
what was given back at once (by workers that are too old for a message, for one), so the number is the
largest that SQS takes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mtask.errors import UnusableError
from mtask.meter import Meter
from mtask_aws.address import Address
from mtask_aws.client import Client
from mtask_aws.names import address_of, physical
from mtask_aws.requests import BATCH_BYTES, NoQueueError, QueueExistsError, Requests

__all__ = ["RECEIPTS", "RETENTION_S", "make_lane", "make_queue"]

RECEIPTS = 1000
RETENTION_S = 14 * 86400
"""The longest that there is. What was in the queue for longer is found by `mtask repair`."""

_LIKE_MAIN = (
    "ContentBasedDeduplication",
    "DeduplicationScope",
    "DelaySeconds",
    "FifoQueue",
    "FifoThroughputLimit",
    "KmsDataKeyReusePeriodSeconds",
    "KmsMasterKeyId",
    "MaximumMessageSize",
    "MessageRetentionPeriod",
    "ReceiveMessageWaitTimeSeconds",
    "RedrivePolicy",
    "SqsManagedSseEnabled",
    "VisibilityTimeout",
)
"""The others are numbers, dates, the queue's own name, or a policy that names it."""


def make_queue(url: str) -> list[tuple[str, str]]:
    """Make the queue at `url` and its dead-letter queue, unless they are there already.

    Returns, for each, (what, "made" | "was there" | "changed"). A queue that is there is changed only where it could
    lose messages: kept for less than 14 days, smaller than mtask's messages, without a dead-letter queue. Its
    other settings are its owner's. Raises UsageError, UnusableError (no right to it), UnavailableError.
    """
    address = address_of(url)
    client = Client("sqs", address)
    requests = Requests(client, Meter(), "sqs requests")
    kept = {"MessageRetentionPeriod": str(RETENTION_S), "MaximumMessageSize": str(BATCH_BYTES)}
    fifo = {"FifoQueue": "true"} if "fifo" in address.options else {}
    fast = {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"} if fifo else {}
    try:
        dead = physical(address, dead=True)
        dead_url, dead_outcome = _make(requests, address, dead, kept | fifo)
        policy = {
            "deadLetterTargetArn": _arn(requests, address, dead, dead_url),
            "maxReceiveCount": str(RECEIPTS),
        }
        redrive = {"RedrivePolicy": msgspec.json.encode(policy).decode()}
        name = physical(address)
        _, outcome = _make(requests, address, name, kept | redrive | fifo | fast)
    finally:
        client.close()
    return [
        (f"dead-letter queue {dead} in {address.region}", dead_outcome),
        (f"queue {name} in {address.region}", outcome),
    ]


def make_lane(requests: Requests, address: Address, lane: str) -> str:
    """The URL of this lane's queue; it is made like the main one when it isn't there.

    Raises UnusableError without a main queue, UnavailableError while SQS still keeps the name of one that was removed.
    """
    name = physical(address, lane)
    try:
        return _url(requests, address, name)
    except NoQueueError:
        pass
    main = physical(address)
    try:
        main_url = _url(requests, address, main)
        attributes = _attributes(requests, address, main, main_url)
        tags = requests.ask("ListQueueTags", on=_shown(address, main), QueueUrl=main_url).get("Tags", {})
    except NoQueueError:
        raise UnusableError(
            f"there is no queue {main!r} in {address.region}; make it with `mtask init`"
        ) from None
    alike = {key: attributes[key] for key in _LIKE_MAIN if attributes.get(key)}
    if "KmsMasterKeyId" in alike:
        alike.pop("SqsManagedSseEnabled", None)  # SQS takes one of the two
    return _create(requests, address, name, alike, tags)


def _make(requests: Requests, address: Address, name: str, wanted: dict[str, str]) -> tuple[str, str]:
    """(URL, what became of it)."""
    try:
        url = _url(requests, address, name)
    except NoQueueError:
        return _create(requests, address, name, wanted, {}), "made"
    present = _attributes(requests, address, name, url)
    changes = {
        key: wanted[key]
        for key in ("MessageRetentionPeriod", "MaximumMessageSize")
        if int(present.get(key, wanted[key])) < int(wanted[key])
    }
    if "RedrivePolicy" in wanted and not present.get("RedrivePolicy"):
        changes["RedrivePolicy"] = wanted["RedrivePolicy"]
    if not changes:
        return url, "was there"
    requests.ask("SetQueueAttributes", on=_shown(address, name), QueueUrl=url, Attributes=changes)
    return url, "changed"


def _create(
    requests: Requests, address: Address, name: str, attributes: dict[str, str], tags: dict[str, str]
) -> str:
    """The URL; many may do the same at once."""
    options: dict[str, Any] = {"tags": tags} if tags else {}
    try:
        answer = requests.ask(
            "CreateQueue", on=_shown(address, name), QueueName=name, Attributes=attributes, **options
        )
    except QueueExistsError:
        return _url(requests, address, name)
    url: str = answer["QueueUrl"]
    return url


def _url(requests: Requests, address: Address, name: str) -> str:
    url: str = requests.ask("GetQueueUrl", on=_shown(address, name), QueueName=name)["QueueUrl"]
    return url


def _attributes(requests: Requests, address: Address, name: str, url: str) -> dict[str, str]:
    answer = requests.ask(
        "GetQueueAttributes", on=_shown(address, name), QueueUrl=url, AttributeNames=["All"]
    )
    attributes: dict[str, str] = answer.get("Attributes", {})
    return attributes


def _arn(requests: Requests, address: Address, name: str, url: str) -> str:
    return _attributes(requests, address, name, url)["QueueArn"]


def _shown(address: Address, name: str) -> str:
    """For people."""
    return f"sqs://{address.region}/{name}"

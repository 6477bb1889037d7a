"""Requests to SQS: each is counted, and of a batch each entry's own answer is looked at.

A batch is answered with 200 even if entries of it failed: these are in the list `Failed` (API references of
SendMessageBatch, DeleteMessageBatch and ChangeMessageVisibilityBatch).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from botocore import xform_name
from botocore.exceptions import ClientError

from mtask.errors import BackendError, UnavailableError
from mtask.meter import Meter
from mtask_aws.client import BUSY, Client, code_of
from mtask_aws.prices import REQUEST_BYTES

__all__ = [
    "BATCH",
    "BATCH_BYTES",
    "NO_QUEUE",
    "NoQueueError",
    "QueueExistsError",
    "Refusal",
    "Requests",
    "batches",
    "is_gone",
]

BATCH = 10
"""Most entries of a batch, and most messages of one ReceiveMessage."""
BATCH_BYTES = 1_048_576
"""Most bytes of a message, and of all messages of a batch together."""
NO_QUEUE = {"NonExistentQueue", "QueueDoesNotExist"}
_GONE = {"ReceiptHandleIsInvalid", "MessageNotInflight"}
_EXISTS = {"QueueAlreadyExists", "QueueNameExists"}
TRIES = 4
"""Of entries of a batch that failed by no fault of theirs."""
PAUSE_S = 0.1
"""Before the second try; each further pause is three times as long."""

_ACTIONS = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
}
"""Of batches the names of the permissions are those of the single requests."""
_COUNTED = {
    "SendMessageBatch": "sqs sends",
    "ReceiveMessage": "sqs receives",
    "ChangeMessageVisibilityBatch": "sqs visibility changes",
    "DeleteMessageBatch": "sqs deletes",
}


class Refusal(NamedTuple):
    """Why an entry of a batch failed in the end."""

    code: str
    text: str
    final: bool
    """It would fail again."""

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


class NoQueueError(UnavailableError):
    """There is no queue at this URL, or there is none any more."""


class QueueExistsError(BackendError):
    """There is a queue of this name already, with other attributes."""


class Requests:
    """What is asked of one region's SQS by one queue and its lanes."""

    def __init__(self, client: Client, meter: Meter, unit: str) -> None:
        """`unit`: in which `PRICES` has the requests."""
        self.client, self.meter, self._unit = client, meter, unit

    def ask(self, operation: str, *, on: str | None = None, sent_bytes: int = 0, **parameters: Any) -> Any:
        """The answer; `on` is what the request is about, for errors, and `sent_bytes` its payload.

        Raises NoQueueError, QueueExistsError, and what `Client.errors` raises.
        """
        action = f"sqs:{_ACTIONS.get(operation, operation)}"
        with self.client.errors(action, on):
            try:
                answer = getattr(self.client.get(), xform_name(operation))(**parameters)
            except ClientError as error:
                self._count(operation, 1 + _retries(error.response), sent_bytes)
                code, shown = code_of(error), on or self.client.address.url
                if code in NO_QUEUE:
                    raise NoQueueError(f"{shown}: there is no such queue") from None
                if code in _EXISTS:
                    raise QueueExistsError(f"{shown}: there is such a queue with other attributes") from None
                if code == "QueueDeletedRecently":
                    raise UnavailableError(
                        f"{shown} was deleted, and SQS keeps its name for 60 seconds: trying again"
                    ) from None
                raise
        received = sum(len(each["Body"].encode("utf-8", "replace")) for each in answer.get("Messages", ()))
        self._count(operation, 1 + _retries(answer), sent_bytes + received)
        return answer

    def batch(
        self,
        operation: str,
        entries: Sequence[dict[str, Any]],
        *,
        size: Callable[[Any], int] = lambda _: 0,
        **parameters: Any,
    ) -> dict[str, Refusal]:
        """Send one batch; entries that failed by no fault of theirs are sent again, with backoff.

        Returns, by their ids, those that failed in the end. Raises as `ask`, if the first request fails as a whole.
        """
        left, pause_s = {entry["Id"]: entry for entry in entries}, PAUSE_S
        refused: dict[str, Refusal] = {}
        for number in range(TRIES):
            try:
                sent_bytes = sum(map(size, left.values()))
                answer = self.ask(operation, sent_bytes=sent_bytes, Entries=list(left.values()), **parameters)
            except UnavailableError as error:
                if not number:
                    raise
                passing = {each: Refusal("unavailable", str(error), False) for each in left}
                return refused | passing
            failed = {each["Id"]: _refusal(each) for each in answer.get("Failed", ())}
            refused |= {each: refusal for each, refusal in failed.items() if refusal.final}
            left = {each: left[each] for each, refusal in failed.items() if not refusal.final}
            if not left:
                return refused
            if number < TRIES - 1:
                time.sleep(pause_s)
                pause_s *= 3
        return refused | {each: failed[each] for each in left}

    def _count(self, operation: str, requests: int, payload_bytes: int) -> None:
        """A request is billed once for each 64 KiB of payload, or a part of them; so is one that got nothing."""
        self.meter.add(self._unit, requests * max(1, -(-payload_bytes // REQUEST_BYTES)))
        if operation in _COUNTED:
            self.meter.add(_COUNTED[operation], requests)


def batches(entries: Iterable[dict[str, Any]], size: Callable[[Any], int]) -> Iterator[list[dict[str, Any]]]:
    """As many in each as a batch may have, by number and by bytes."""
    batch: list[dict[str, Any]] = []
    total = 0
    for entry in entries:
        each = size(entry)
        if batch and (len(batch) == BATCH or total + each > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(entry)
        total += each
    if batch:
        yield batch


def _refusal(failed: dict[str, Any]) -> Refusal:
    code = failed.get("Code", "").removeprefix("AWS.SimpleQueueService.")
    return Refusal(code, failed.get("Message", ""), bool(failed.get("SenderFault")) and code not in BUSY)


def _retries(answer: dict[str, Any]) -> int:
    retries: int = answer.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return retries


def is_gone(refusal: Refusal) -> bool:
    """Does it say that the lease is over, rather than that something is wrong just now?

    "Value … for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility
    timeout change", or, of a FIFO queue, "The receipt handle has expired".
    """
    return refusal.code in _GONE or (
        refusal.code.startswith("InvalidParameterValue") and "ReceiptHandle" in refusal.text
    )

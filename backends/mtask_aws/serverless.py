"""Functions for AWS Lambda: one runs the messages of an SQS event, one submits the objects of an S3 event.

The formats of the events, and of the answer: AWS Lambda Developer Guide, "Using Lambda with Amazon SQS",
"Handling errors for an SQS event source", and Amazon S3 User Guide, "Event message structure".
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from urllib.parse import unquote_plus

import msgspec

from mtask.errors import BackendError, BagExistsError, MtaskError, UsageError
from mtask_aws.address import Address

if TYPE_CHECKING:
    from mtask.manager import Manager
    from mtask.model import Delivery
    from mtask.sources import Chunk, Source
    from mtask_aws.queue import SqsQueue

__all__ = ["lambda_handler", "submit_handler"]

SUBMIT = "MTASK_SUBMIT"
_SUFFIX = re.compile(r"(\.(csv|tsv|jsonl|ndjson|parquet|pq))?(\.(gz|zst))?$", re.IGNORECASE)
MOST_NAME = 100
"""Characters of a bag's name."""
_NAME = f"lambda-{os.environ.get('AWS_LAMBDA_FUNCTION_NAME', '')}-{secrets.token_hex(4)}".replace("--", "-")
"""Of the worker, as long as Lambda keeps this process for one event after another: else `mtask status` would show
a worker an event."""


class Context(Protocol):
    """What Lambda passes as the second argument, as far as it is used here."""

    def get_remaining_time_in_millis(self) -> int: ...


def lambda_handler(event: Mapping[str, Any], context: Context) -> dict[str, list[dict[str, str]]]:
    """Run the tasks of the messages in an SQS event; `ReportBatchItemFailures` must be set for the function.

    The answer names the messages that are to go to another invocation: those that there was no time for.
    Queue and table are those of MTASK_QUEUE (else the one that the event is from) and MTASK_TABLE; the code
    that the tasks call must be in the function's package, or a layer.
    Raises MtaskError when no message could be dealt with; Lambda then calls less often.
    """
    from mtask.oneshot import OneShotQueue
    from mtask.serverless import options_within
    from mtask.worker.supervisor import Worker

    records = event.get("Records", [])
    if not records:
        return {"batchItemFailures": []}
    left_s = context.get_remaining_time_in_millis() / 1000
    options = options_within(left_s, "its timeout")
    manager = _manager(*_urls(records))
    given, later = _deliveries(manager, records, left_s)
    queue = OneShotQueue([delivery for _, delivery in given], manager.queue.main)
    try:
        Worker(queue, manager.table, options, name=_NAME).run(until=queue.settled)
        queue.give_back_rest()
    except MtaskError as error:
        if len(queue.undone()) == len(given):
            raise
        print(f"mtask: {error}", file=sys.stderr, flush=True)
    undone = [*later, *(given[at][0] for at in queue.undone())]
    return {"batchItemFailures": [{"itemIdentifier": each} for each in undone]}


def submit_handler(event: Mapping[str, Any], context: Context) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG001
    """Submit the tasks listed in each object (CSV, JSON Lines, Parquet) that an S3 event says was created.

    What to run is said by MTASK_SUBMIT, never by the object: a JSON object of arguments as `Manager.submit`
    takes them, as {"call": "blast:align", "retries": 3}. The bag is named after the object's key. The same event
    again submits nothing again; another object of the same key becomes a bag with another name.
    Returns, as "submitted", what was made of each object. Raises MtaskError, when all objects were looked at, if one
    could not be submitted; Lambda then tries again, and goes on where this was.
    """
    arguments = _arguments()
    submitted, failure = [], None
    for record in event.get("Records", []):
        if record.get("eventName", "").startswith("ObjectCreated:"):
            listed = Listed.of(record)
            try:
                submitted.append(_submit(listed, arguments))
            except MtaskError as error:
                print(f"mtask: {listed.url}: {error}", file=sys.stderr, flush=True)
                failure = failure or error
    if failure is not None:
        raise failure
    return {"submitted": submitted}


# -- messages ---------------------------------------------------------------------------------------


def _urls(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Queue and table. Raises UsageError for messages of another queue, whose receipts aren't valid here."""
    from mtask.settings import find_urls
    from mtask_aws.names import FIFO, address_of, physical

    _, _, _, region, _, name = records[0]["eventSourceARN"].split(":")
    fifo = "?fifo=1" if name.endswith(FIFO) else ""
    source = f"sqs://{region}/{name.removesuffix(FIFO)}{fifo}"
    urls = find_urls(os.environ.get("MTASK_QUEUE") or source)
    wanted = address_of(urls.queue)
    if (wanted.region, physical(wanted)) != (region, name):
        raise UsageError(
            f"the messages are from {source}, and MTASK_QUEUE is {urls.queue}; have the function triggered by that queue"
        )
    return urls.queue, urls.table


def _deliveries(
    manager: Manager, records: Sequence[Mapping[str, Any]], left_s: float
) -> tuple[list[tuple[str, Delivery]], list[str]]:
    """With their messages' ids; and the ids of those whose time hasn't come.

    The queue hides a message for longer than the function may run: Lambda sees to that.
    """
    queue = cast("SqsQueue", manager.queue.main)
    given, later = [], []
    for record in records:
        delivery = queue.handed(record["body"], record["attributes"], record["receiptHandle"], left_s)
        if delivery is None:
            later.append(record["messageId"])
        else:
            given.append((record["messageId"], delivery))
    return given, later


@functools.cache
def _manager(queue: str, table: str) -> Manager:
    """Opened once for all events that Lambda gives this process."""
    from mtask.manager import connect

    return connect(queue, table)


# -- objects ----------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """An object that lists tasks."""

    region: str
    bucket: str
    key: str
    etag: str
    version: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Listed:
        stored = record["s3"]["object"]
        return cls(
            region=record["awsRegion"],
            bucket=record["s3"]["bucket"]["name"],
            key=unquote_plus(stored["key"]),
            etag=stored.get("eTag", ""),
            version=stored.get("versionId") or "",
        )

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def source(self) -> str:
        """Of just this content."""
        return f"{self.url} ({self.etag})" if self.etag else self.url

    @property
    def bag(self) -> str:
        """The key as the name of a bag, without the suffix."""
        name = re.sub(r"[^\w.-]+", "-", _SUFFIX.sub("", self.key)).strip("-_.")
        return name[:MOST_NAME].rstrip("-_.") or "tasks"

    @property
    def other_bag(self) -> str:
        """The same where that name is taken by another content."""
        return f"{self.bag[: MOST_NAME - 9]}-{self.etag[:8]}"


class Named:
    """A source by another name than that of the file it was copied to."""

    def __init__(self, source: Source, name: str) -> None:
        self.name, self._source = name, source
        self.columns, self.textual, self.repeatable = source.columns, source.textual, source.repeatable

    def chunks(self) -> Iterator[Chunk]:
        return self._source.chunks()


def _arguments() -> dict[str, Any]:
    """Of `Manager.submit`. Raises UsageError."""
    text, example = os.environ.get(SUBMIT, ""), '{"call": "blast:align", "retries": 3}'
    try:
        arguments = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"{SUBMIT} must say what to run, as JSON like {example}; {error}") from None
    if len({"call", "run", "shell"} & arguments.keys()) != 1:
        # The column `command` would let everybody who may write to the bucket run anything.
        raise UsageError(f"{SUBMIT} needs one of call, run and shell, as in {example}")
    if "bag" in arguments:
        raise UsageError(f"{SUBMIT}: a bag is named after the key of its object, so leave out 'bag'")
    return arguments


def _submit(listed: Listed, arguments: Mapping[str, Any]) -> dict[str, Any]:
    from mtask.settings import find_urls
    from mtask.sources import open_source

    manager = _manager(*find_urls())
    with tempfile.TemporaryDirectory(prefix="mtask-submit-") as folder:
        path = os.path.join(folder, os.path.basename(listed.key.rstrip("/")) or "tasks")
        if not _fetch(listed, path):
            return {"object": listed.url, "bag": None, "why": "it is gone, or was replaced by another one"}
        for name in (listed.bag, listed.other_bag):
            try:
                handle = manager.submit(Named(open_source(path), listed.source), bag=name, **arguments)
            except BagExistsError as error:
                if manager.info(name).source == listed.source:
                    return {"object": listed.url, "bag": name, "why": f"it was submitted before; {error}"}
                taken = error
            else:
                return {"object": listed.url, "bag": name, "tasks": handle.info.total}
        raise taken


def _fetch(listed: Listed, path: str) -> bool:
    """Just the content that the event is about; False: it isn't there any more."""
    from mtask_aws.client import Client, code_of

    client = Client("s3", Address("s3", listed.region, listed.bucket, {}))
    wanted = {"VersionId": listed.version} if listed.version else {}
    if listed.etag:
        wanted["IfMatch"] = f'"{listed.etag}"'
    try:
        with client.errors("s3:GetObject", listed.url), open(path, "wb") as file:
            from botocore.exceptions import ClientError

            try:
                answer = client.get().get_object(Bucket=listed.bucket, Key=listed.key, **wanted)
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "404", "412"):
                    return False
                raise
            shutil.copyfileobj(answer["Body"], file)
    except OSError as error:
        raise BackendError(
            f"{listed.url} can't be kept in {os.path.dirname(path)}: {error.strerror}"
        ) from None
    finally:
        client.close()
    return True

"""Tables in a DynamoDB server of tests, and what goes wrong on the way to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import boto3
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from mtask_aws import DynamoTable, open_table
from mtask_aws.table import ATTRIBUTES, KEY_SCHEMA


def new_url() -> str:
    """Of a table that isn't there yet."""
    return f"dynamodb://us-east-1/t-{uuid4().hex[:12]}"


def create(url: str = "") -> str:
    """A new table without a bucket, since dynalite has neither S3 nor a time to live; its URL."""
    url = url or new_url()
    with closing(boto3.client("dynamodb", region_name="us-east-1")) as client:
        client.create_table(
            TableName=url.rpartition("/")[2],
            KeySchema=KEY_SCHEMA,
            AttributeDefinitions=ATTRIBUTES,
            BillingMode="PAY_PER_REQUEST",
        )
    return url


def hook(table: DynamoTable, event: str, handler: Callable[..., Any]) -> None:
    """Have botocore call `handler` at an event, `before-send.dynamodb` for example."""
    table._db.client.get().meta.events.register(event, handler)


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


@contextmanager
def killed_at(url: str, request: int) -> Iterator[DynamoTable]:
    """A client of the table that is killed just before its request of this number, from 0; the errors of
    its death end with the block."""
    with closing(open_table(url)) as table:
        lock, sent = threading.Lock(), 0

        def count(**_: Any) -> None:
            nonlocal sent
            with lock:
                sent += 1
                if sent > request:
                    raise Killed

        hook(table, "before-send.dynamodb", count)
        try:
            yield table
        except Killed:
            table.died = True  # type: ignore[attr-defined]


def lose_first_answers(table: DynamoTable) -> list[str]:
    """Each request takes effect, but its first answer never arrives; boto3 sends it again. The list tells which."""
    seen: set[str] = set()
    lost: list[str] = []
    session = URLLib3Session()

    def send(request: Any, event_name: str, **_: Any) -> None:
        invocation = request.headers["amz-sdk-invocation-id"]
        if str(invocation) not in seen:
            seen.add(str(invocation))
            session.send(request)
            lost.append(event_name.rpartition(".")[2])
            raise ConnectionClosedError(endpoint_url=request.url)

    hook(table, "before-send.dynamodb", send)
    return lost

"""`mtask doctor` at AWS: who this is, what is there, and whether each action is allowed.

An action is tried, in a way that can change nothing: with a condition that can't hold, on an item that isn't there,
with a receipt that nobody has. Any answer but "access denied" is a yes: conditions and the entries of a
batch are looked at when the request as a whole is allowed. Only of ReceiveMessage, which would count a
receipt, the request itself is wrong; so that is also tried rightly, on an empty queue beside yours. (The policy
simulator of IAM would tell without trying, but only to those who may read policies, which workers needn't.)
What remains: for seconds, that queue, NAME-doctorXXXX; for a day, an object of a few bytes.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import boto3
import msgspec
from botocore.exceptions import ClientError

from mtask.doctor import Finding, clock_findings
from mtask.errors import MtaskError
from mtask.meter import Meter
from mtask.registry import ROLES
from mtask_aws.address import Address
from mtask_aws.bucket import Bucket
from mtask_aws.client import BUSY, DENIED, EXPIRED, UNKNOWN_KEYS, Client, code_of
from mtask_aws.names import address_of, physical
from mtask_aws.policies import GRANTS
from mtask_aws.requests import BATCH_BYTES, NO_QUEUE
from mtask_aws.setup_queue import RETENTION_S

__all__ = ["diagnose"]

_DAY_S = 86400
_NOBODYS = "AQEBmtaskdoctor"
"""A receipt handle that SQS never gave to anybody."""
_NO_KEY = {"pk": {"S": "doctor"}, "sk": {"S": "nothing"}}
"""No item has it."""
_NEVER = {"ConditionExpression": "attribute_exists(pk)"}


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says."""
    from mtask_aws.table import address_of as table_address_of

    queue = next((address_of(url) for url in urls if url.startswith("sqs:")), None)
    table = next((table_address_of(url) for url in urls if url.startswith("dynamodb:")), None)
    address = queue or table
    if address is None:
        return
    for finding in _identity(address):
        yield finding
        if finding.stops:
            return
    if queue is not None:
        yield from _queue(queue, roles)
    if table is not None:
        yield from _table(table, roles)


# -- who and where ----------------------------------------------------------------------------------


def _identity(address: Address) -> Iterator[Finding]:
    try:
        client = Client("sts", address)
    except MtaskError as error:
        yield Finding.problem("region", error, stops=True)
        return
    try:
        with client.errors("sts:GetCallerIdentity", "this account"):
            sts, asked_s = client.get(), time.time()
            answer = sts.get_caller_identity()
            took_s = time.time() - asked_s
        credentials = boto3.session.Session().get_credentials()
        how = f" (by {credentials.method})" if credentials is not None else ""
        yield Finding("credentials", True, f"{answer['Arn']}{how}")
        yield Finding("region", True, f"{address.region}, at {sts.meta.endpoint_url}")
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        yield from clock_findings(date, asked_s, took_s, "AWS")
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)
    finally:
        client.close()


# -- trying -----------------------------------------------------------------------------------------


class _Trial:
    """Tries actions on one kind of resource."""

    def __init__(self, client: Client, kind: str, roles: Collection[str]) -> None:
        """`kind`: as in GRANTS."""
        self._client, self._kind, self._roles = client, kind, roles
        self.answer: dict[str, Any] = {}
        """Of the last one, if it was answered well."""
        self.code = ""
        """Of the last one, if it wasn't."""

    def __call__(self, action: str, on: str, call: Callable[[Any], dict[str, Any]]) -> Iterator[Finding]:
        """Is this action allowed? Of one that nobody needs, only if that can't be told."""
        self.answer, self.code = {}, ""
        by = [role for role in ROLES if action in GRANTS[role].get(self._kind, ())]
        if by and not set(by) & set(self._roles):
            return
        denied = False
        try:
            with self._client.errors(action, on):
                try:
                    self.answer = call(self._client.get())
                except ClientError as error:
                    self.code = code_of(error)
                    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                    denied = self.code in DENIED or (
                        status == 403 and self.code not in EXPIRED | UNKNOWN_KEYS
                    )
                    if not denied and (
                        status >= 500 or status == 429 or self.code in BUSY | EXPIRED | UNKNOWN_KEYS
                    ):
                        raise
        except MtaskError as error:
            yield Finding(action, None, f"can't be told: {error}")
            return
        if not denied:
            if by:
                yield Finding(action, True, f"allowed on {on}")
        elif by:
            todo = f"allow it in the policy of this user or role: {' and '.join(f'{role}s' for role in by)} need it"
            yield Finding(action, False, f"denied on {on}", todo)
        else:
            yield Finding(
                action, None, f"denied on {on}; nobody needs it to work, only this look at the settings"
            )


# -- the queue --------------------------------------------------------------------------------------


def _queue(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    try:
        client = Client("sqs", address)
    except MtaskError as error:
        yield Finding.problem("queue", error, stops=True)
        return
    tried, name = _Trial(client, "queues", roles), physical(address)
    try:
        yield from tried("sqs:GetQueueUrl", name, lambda sqs: sqs.get_queue_url(QueueName=name))
        if tried.code in NO_QUEUE:
            yield Finding(
                "queue",
                False,
                f"there is no queue {name!r} in {address.region}",
                "`mtask init` makes it",
                True,
            )
            return
        if "QueueUrl" not in tried.answer:
            return
        url = tried.answer["QueueUrl"]
        yield from tried(
            "sqs:GetQueueAttributes",
            name,
            lambda sqs: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]),
        )
        if attributes := tried.answer.get("Attributes"):
            yield from _settings(attributes)
            yield from _dead(_Trial(client, "dead", roles), attributes)
        yield from tried("sqs:ListQueueTags", name, lambda sqs: sqs.list_queue_tags(QueueUrl=url))
        yield from _messages(tried, name, url)
        if "worker" in roles:
            yield from _lane(tried, address)
        elif "fifo" not in address.options:  # which must be said again with all of its attributes
            yield from _create(tried, name)
    finally:
        client.close()


def _settings(attributes: dict[str, str]) -> Iterator[Finding]:
    kept_s = int(attributes.get("MessageRetentionPeriod", 0))
    if kept_s < RETENTION_S:
        text = f"messages are lost after {kept_s / _DAY_S:g} days"
        yield Finding(
            "retention",
            False,
            text,
            "`mtask init` has them kept for 14 days; `mtask repair BAG` sends what is lost",
        )
    else:
        yield Finding("retention", True, f"{kept_s / _DAY_S:g} days")
    largest = int(attributes.get("MaximumMessageSize", 0))
    if largest < BATCH_BYTES:
        yield Finding("message size", False, f"at most {largest:,} bytes", "`mtask init` makes that 1 MiB")
    visible_s = int(attributes.get("VisibilityTimeout", 0))
    yield Finding(
        "visibility", True, f"{visible_s} s; only for Lambda: workers say how long they hold a message"
    )


def _dead(tried: _Trial, attributes: dict[str, str]) -> Iterator[Finding]:
    redrive = attributes.get("RedrivePolicy")
    if not redrive:
        yield Finding("dead-letter queue", False, "none is set", "`mtask init` makes it")
        return
    policy = msgspec.json.decode(redrive)
    name, receipts = policy["deadLetterTargetArn"].rpartition(":")[2], policy["maxReceiveCount"]
    yield from tried("sqs:GetQueueUrl", name, lambda sqs: sqs.get_queue_url(QueueName=name))
    if tried.code in NO_QUEUE:
        yield Finding(
            "dead-letter queue",
            False,
            f"{name} isn't there, though the queue names it",
            "`mtask init` makes it",
        )
        return
    url = tried.answer.get("QueueUrl")
    if url is None:
        return
    yield Finding("dead-letter queue", True, f"{name}, after {receipts} receipts")
    # What is in it stays visible, and goes nowhere however often it is received.
    read = {"QueueUrl": url, "MaxNumberOfMessages": 1, "VisibilityTimeout": 0, "WaitTimeSeconds": 0}
    yield from tried("sqs:ReceiveMessage", name, lambda sqs: sqs.receive_message(**read))
    hidden = {"Id": "0", "ReceiptHandle": _NOBODYS, "VisibilityTimeout": 0}
    yield from tried(
        "sqs:ChangeMessageVisibility",
        name,
        lambda sqs: sqs.change_message_visibility_batch(QueueUrl=url, Entries=[hidden]),
    )


def _messages(tried: _Trial, name: str, url: str, *, most: int = 0) -> Iterator[Finding]:
    """Each entry is refused by itself, if the batch is allowed. `most`: messages to receive; each receipt is counted,
    and at most 0 is refused."""
    entry = {"Id": "0", "ReceiptHandle": _NOBODYS}
    too_late = {"Id": "0", "MessageBody": "{}", "DelaySeconds": 901}
    if name.endswith(".fifo"):
        too_late |= {"MessageGroupId": "doctor", "MessageDeduplicationId": secrets.token_hex(8)}
    yield from tried(
        "sqs:SendMessage", name, lambda sqs: sqs.send_message_batch(QueueUrl=url, Entries=[too_late])
    )
    yield from tried(
        "sqs:ReceiveMessage", name, lambda sqs: sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=most)
    )
    hidden = entry | {"VisibilityTimeout": 0}
    yield from tried(
        "sqs:ChangeMessageVisibility",
        name,
        lambda sqs: sqs.change_message_visibility_batch(QueueUrl=url, Entries=[hidden]),
    )
    yield from tried(
        "sqs:DeleteMessage", name, lambda sqs: sqs.delete_message_batch(QueueUrl=url, Entries=[entry])
    )


def _lane(tried: _Trial, address: Address) -> Iterator[Finding]:
    """Lanes are queues of their own, whose names begin like this one's; a policy may forget those."""
    name = physical(
        address, f"doctor{secrets.token_hex(4)}"
    )  # a name is blocked for a minute after a removal
    fifo = {"FifoQueue": "true"} if "fifo" in address.options else {}
    shown = physical(address, "*")
    yield from tried("sqs:CreateQueue", shown, lambda sqs: sqs.create_queue(QueueName=name, Attributes=fifo))
    url = tried.answer.get("QueueUrl")
    if url is None:
        return
    try:
        for finding in _messages(tried, name, url, most=1):
            if finding.ok is False:
                text = f"denied on {shown}, where tasks with priorities, requirements and limits are"
                yield finding._replace(text=text)
    finally:
        removed = list(tried("sqs:DeleteQueue", shown, lambda sqs: sqs.delete_queue(QueueUrl=url)))
    for finding in removed:
        left = "" if finding.ok else f"; and remove the queue {name}, which was made to try this"
        yield finding._replace(todo=finding.todo + left)


def _create(tried: _Trial, name: str) -> Iterator[Finding]:
    """For who may make queues, but not remove them: to make one that is there changes nothing."""
    yield from tried("sqs:CreateQueue", name, lambda sqs: sqs.create_queue(QueueName=name))


# -- the table --------------------------------------------------------------------------------------


def _table(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    client = Client("dynamodb", address)
    tried, name = _Trial(client, "table", roles), {"TableName": address.name}
    try:
        first = list(tried("dynamodb:GetItem", address.name, lambda db: db.get_item(Key=_NO_KEY, **name)))
        if tried.code == "ResourceNotFoundException":
            text = f"there is no table {address.name!r} in {address.region}"
            yield Finding("table", False, text, "`mtask init` makes it", True)
            return
        if tried.code == "ValidationException":
            text = f"{address.url} has other keys than mtask's (pk and sk, both strings)"
            yield Finding("table", False, text, "take another name: `mtask init` makes the table", True)
            return
        yield from first
        yield from _description(tried, address)
        many = {address.name: {"Keys": [_NO_KEY]}}
        none = {address.name: [{"DeleteRequest": {"Key": _NO_KEY}}]}
        rename = {"UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": ""}}}
        partition = {
            "KeyConditionExpression": "pk = :p",
            "ExpressionAttributeValues": {":p": {"S": "doctor"}},
        }
        calls: dict[str, Callable[[Any], dict[str, Any]]] = {
            "BatchGetItem": lambda db: db.batch_get_item(RequestItems=many),
            "BatchWriteItem": lambda db: db.batch_write_item(RequestItems=none),
            "DeleteItem": lambda db: db.delete_item(Key=_NO_KEY, **_NEVER, **name),
            "PutItem": lambda db: db.put_item(Item=_NO_KEY, **_NEVER, **name),
            "Query": lambda db: db.query(**partition, **name),
            "UpdateItem": lambda db: db.update_item(Key=_NO_KEY, **rename, **_NEVER, **name),
        }
        for action, call in calls.items():
            yield from tried(f"dynamodb:{action}", address.name, call)
    finally:
        client.close()
    yield from _bucket(address, roles)


def _description(tried: _Trial, address: Address) -> Iterator[Finding]:
    name = address.name
    yield from tried("dynamodb:DescribeTable", name, lambda db: db.describe_table(TableName=name))
    if table := tried.answer.get("Table"):
        mode = table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
        todo = (
            ""
            if mode == "PAY_PER_REQUEST"
            else "with `on demand` it is never too slow, and costs nothing when idle"
        )
        yield Finding("billing", True if not todo else None, mode.replace("_", " ").lower(), todo)
    yield from tried("dynamodb:DescribeTimeToLive", name, lambda db: db.describe_time_to_live(TableName=name))
    if described := tried.answer.get("TimeToLiveDescription"):
        on = described.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
        text = f"by the attribute {described.get('AttributeName')!r}" if on else "off"
        yield Finding(
            "time to live", on, text, "" if on else "`mtask init` has results expire that are not to be kept"
        )


def _bucket(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    bucket = Bucket(address, Meter())
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(bucket.close)
            place = bucket.place()
    except MtaskError as error:
        yield Finding.problem("bucket", error)
        return
    client = Client("s3", address)
    tried, name = _Trial(client, "objects", roles), place["Bucket"]
    key = f"keep-1/{address.name}/doctor"  # the bucket's lifecycle removes it the next day
    try:
        put = list(
            tried("s3:PutObject", f"{name}/*", lambda s3: s3.put_object(Key=key, Body=b"mtask", **place))
        )
        if tried.code == "NoSuchBucket":
            text = f"there is no bucket {name!r}, for what is too big for the table"
            yield Finding("bucket", False, text, "`mtask init` makes it")
            return
        yield from put
        if tried.answer:
            yield from tried("s3:GetObject", f"{name}/*", lambda s3: s3.get_object(Key=key, **place))
    finally:
        client.close()

"""What `mtask init` makes for a table: the table itself, and the bucket for what is too big for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from mtask.errors import UnusableError
from mtask.meter import Meter
from mtask_aws.address import Address
from mtask_aws.bucket import KEEP_DAYS, Bucket
from mtask_aws.client import Client, code_of
from mtask_aws.table import ATTRIBUTES, KEY_SCHEMA, DynamoTable, address_of

__all__ = ["PRIVATE", "lifecycle", "make_bucket", "make_table"]

TTL = {"Enabled": True, "AttributeName": "ttl"}
PRIVATE = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
ENCRYPTION = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}


def make_table(url: str) -> list[tuple[str, str]]:
    """Make what isn't there and mend what is otherwise; what, and "made", "was there" or "changed".

    Raises UsageError for a URL that can't be used, UnusableError for a table or bucket that is somebody else's or may not
    be made.
    """
    address = address_of(url)
    return [*_table(address, url), *make_bucket(address)]


def _table(address: Address, url: str) -> Iterator[tuple[str, str]]:
    client = Client("dynamodb", address)
    what = f"DynamoDB table {address.name}"
    try:
        made = _create(client, address)
        with client.errors("dynamodb:DescribeTable"):
            client.get().get_waiter("table_exists").wait(
                TableName=address.name, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
            )
        DynamoTable.open(url).close()  # else it is no table of ours
        with client.errors("dynamodb:DescribeTimeToLive"):
            ttl = client.get().describe_time_to_live(TableName=address.name)["TimeToLiveDescription"]
        if ttl["TimeToLiveStatus"] in ("DISABLED", "DISABLING"):
            with client.errors("dynamodb:UpdateTimeToLive"):
                client.get().update_time_to_live(TableName=address.name, TimeToLiveSpecification=TTL)
            yield what, "made" if made else "changed"
        elif ttl.get("AttributeName") != TTL["AttributeName"]:
            raise UnusableError(
                f"items of the table {address.url} expire by the attribute {ttl.get('AttributeName')!r}, so it is somebody "
                "else's: choose another name"
            )
        else:
            yield what, "made" if made else "was there"
    finally:
        client.close()


def _create(client: Client, address: Address) -> bool:
    """Was it made?"""
    with client.errors("dynamodb:CreateTable"):
        try:
            client.get().create_table(
                TableName=address.name,
                KeySchema=KEY_SCHEMA,
                AttributeDefinitions=ATTRIBUTES,
                BillingMode="PAY_PER_REQUEST",
            )
        except ClientError as error:
            if code_of(error) == "ResourceInUseException":
                return False
            raise
        return True


def make_bucket(address: Address) -> Iterator[tuple[str, str]]:
    """Private, encrypted, with the lifecycle that `Bucket` counts on."""
    bucket, client = Bucket(address, Meter()), Client("s3", address)
    try:
        place = bucket.place()
        what, on = f"S3 bucket {place['Bucket']}", f"s3://{place['Bucket']}"
        made = _create_bucket(client, address, place, on)
        mended = [
            _mend(client, place, on, _PRIVATE, lambda there: None if there == PRIVATE else PRIVATE),
            _mend(client, place, on, _ENCRYPTED, lambda there: None if there else ENCRYPTION),
            _mend(client, place, on, _EXPIRING, lambda there: _with_rules(address.name, there)),
        ]
        yield what, "made" if made else "changed" if any(mended) else "was there"
    finally:
        bucket.close()
        client.close()


class _Setting(NamedTuple):
    """One of a bucket's: how boto3 reads and writes it."""

    permission: str
    """Behind s3:Get and s3:Put."""
    method: str
    answer: str
    parameter: str


_PRIVATE = _Setting("BucketPublicAccessBlock", "public_access_block", *["PublicAccessBlockConfiguration"] * 2)
_ENCRYPTED = _Setting(
    "EncryptionConfiguration", "bucket_encryption", *["ServerSideEncryptionConfiguration"] * 2
)
_EXPIRING = _Setting(
    "LifecycleConfiguration", "bucket_lifecycle_configuration", "Rules", "LifecycleConfiguration"
)
_UNSET = {
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
}


def _mend(
    client: Client, place: dict[str, str], on: str, setting: _Setting, better: Callable[[Any], Any]
) -> bool:
    """Set what `better` makes of what is there, unless that is None; was it set?"""
    s3 = client.get()
    with client.errors(f"s3:Get{setting.permission}", on):
        try:
            there = getattr(s3, f"get_{setting.method}")(**place)[setting.answer]
        except ClientError as error:
            if code_of(error) not in _UNSET:
                raise
            there = None
    wanted = better(there)
    if wanted is None:
        return False
    with client.errors(f"s3:Put{setting.permission}", on):
        getattr(s3, f"put_{setting.method}")(**place, **{setting.parameter: wanted})
    return True


def _with_rules(table: str, there: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """All rules of the bucket's lifecycle, if ours aren't among them as they should be."""
    mine = {rule["ID"]: rule for rule in lifecycle(table)}
    found = {rule.get("ID"): rule for rule in there or []}
    if all(name in found and found[name] | rule == found[name] for name, rule in mine.items()):
        return None
    return {"Rules": [*(rule for name, rule in found.items() if name not in mine), *mine.values()]}


def lifecycle(table: str) -> list[dict[str, Any]]:
    """The rules by which objects of bags expire."""
    return [
        {
            "ID": f"mtask-{table}-{days}",
            "Status": "Enabled",
            "Filter": {"Prefix": f"keep-{days}/{table}/"},
            "Expiration": {"Days": days},
        }
        for days in KEEP_DAYS
    ]


def _create_bucket(client: Client, address: Address, place: dict[str, str], on: str) -> bool:
    """Was it made?"""
    where: dict[str, Any] = {}
    if address.region != "us-east-1":  # which is the default, and must not be named
        where = {"CreateBucketConfiguration": {"LocationConstraint": address.region}}
    with client.errors("s3:ListBucket", on):
        try:
            client.get().head_bucket(**place)
        except ClientError as error:
            if code_of(error) not in ("404", "NoSuchBucket"):
                if code_of(error) == "403":
                    raise UnusableError(
                        f"there is a bucket {place['Bucket']!r}, but it is another account's, or this user may not use it: "
                        f"allow s3:ListBucket on it, or name another: {address.url}?bucket=NAME"
                    ) from None
                raise
        else:
            return False
    with client.errors("s3:CreateBucket", on):
        try:
            client.get().create_bucket(Bucket=place["Bucket"], **where)
        except ClientError as error:
            if code_of(error) == "BucketAlreadyOwnedByYou":  # by somebody at the same moment
                return False
            if code_of(error) == "BucketAlreadyExists":
                raise UnusableError(
                    f"the bucket {place['Bucket']!r} is another account's: name another: {address.url}?bucket=NAME"
                ) from None
            raise
    return True

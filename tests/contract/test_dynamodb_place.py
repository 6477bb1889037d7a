"""Where a DynamoDB table is and what lies there: its URL, what `mtask init` makes, S3, what expires, who may do what."""

from __future__ import annotations

import functools
import json
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from typing import Any

import boto3
import msgspec
import pytest

from mtask.errors import (
    BackendError,
    BagExistsError,
    BagNotFoundError,
    UnavailableError,
    UnusableError,
    UsageError,
)
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion
from mtask_aws import DynamoTable, open_table
from mtask_aws.blobs import ITEM_BYTES
from mtask_aws.bucket import FOR_EVER, KEEP_DAYS, bucket_name
from mtask_aws.clock import ServerClock
from mtask_aws.setup_table import PRIVATE, make_table
from tests.contract.table_large import OBJECTS, read_large, write_large
from tests.servers.dynamodb import create, hook, new_url
from tests.servers.process import serving

DAY_S = 86400.0
HOUR_S = 3600.0


@pytest.fixture
def url(moto: str) -> str:
    url = new_url()
    make_table(url)
    return url


def s3() -> Any:
    return boto3.client("s3", region_name="us-east-1")


def objects(table: DynamoTable) -> list[str]:
    return [each["Key"] for each in s3().list_objects_v2(Bucket=table._blobs.bucket.name).get("Contents", [])]


def noise(size: int) -> str:
    """Text that can't be made much smaller."""
    import random

    return random.Random(1).randbytes(size // 2).hex()


# -- what is too big for an item ----------------------------------------------------------------------


def test_what_is_too_big_goes_to_s3_and_comes_back(url: str, table: DynamoTable) -> None:
    large = write_large(table, noise(1_500_000), noise(900_000))
    with closing(open_table(url)) as other:
        read_large(other, large)
        assert other.meter.used()["s3 gets"] > 5
    there = objects(table)
    assert len(there) == OBJECTS
    assert all(key.startswith(f"{FOR_EVER}/{table._db.address.name}/") for key in there)
    assert table.meter.used()["s3 puts"] == OBJECTS
    table.record([large.rows[0]])  # again: the same content is the same object
    assert objects(table) == there


def test_small_rows_and_large_ones_share_a_page(table: DynamoTable) -> None:
    table.create_bag(a_bag())
    rows = [a_done(index, noise(1000 * 2 ** (index % 10))) for index in range(64)]
    table.record([a_portion(rows)])
    assert list(table.results("bag")) == rows
    biggest = max(
        len(item["z"]["B"])
        for items in table._db.query("b:" + table.bag("bag").uid + ":0")
        for item in items
        if "z" in item
    )
    assert biggest < ITEM_BYTES


def test_a_bucket_that_is_missing_is_named_with_what_to_do(moto: str) -> None:
    with closing(open_table(create())) as table:
        table.create_bag(a_bag())
        table.record([a_done(0, "small")])
        with pytest.raises(UnusableError, match=r"there is no bucket 't-.*mtask init.*\?bucket=NAME"):
            table.record([a_done(1, noise(1_000_000))])
        assert [row.index for row in table.results("bag")] == [0]


def test_a_bucket_of_ones_own(moto: str) -> None:
    url = f"{new_url()}?bucket=my.own-bucket"
    assert [what for what, _ in make_table(url)][1] == "S3 bucket my.own-bucket"
    with closing(open_table(url)) as table:
        table.create_bag(a_bag())
        table.record([a_done(0, noise(1_000_000))])
        assert len(objects(table)) == 1
        assert table._blobs.bucket.name == "my.own-bucket"


def test_an_object_that_somebody_removed(table: DynamoTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(0, noise(1_000_000))])
    (key,) = objects(table)
    s3().delete_object(Bucket=table._blobs.bucket.name, Key=key)
    with pytest.raises(BackendError, match="is gone"):
        list(table.results("bag"))
    assert table.counts("bag").done == 1


def test_an_item_that_somebody_removed(table: DynamoTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(0), a_done(1)])
    partition = f"b:{table.bag('bag').uid}:0"
    for items in table._db.query(partition, ("r", "s")):
        for item in items:
            table._db.delete((partition, item["sk"]["S"]))
    with pytest.raises(BackendError, match=r"tasks \[0, 1\] of the bag 'bag' are gone"):
        list(table.results("bag"))


@pytest.mark.parametrize(
    ("table", "account", "region"),
    [
        ("reads", "123456789012", "us-east-1"),
        ("Reads_2", "123456789012", "ap-southeast-1"),
        ("a" * 255, "1" * 12, "us-gov-west-1"),
        ("___", "1" * 12, "us-east-1"),
    ],
)
def test_names_of_buckets(table: str, account: str, region: str) -> None:
    import re

    name = bucket_name(table, account, region)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name)
    assert name.endswith(f"-{account}-{region}")
    assert (name == f"{table}-{account}-{region}") == (table == "reads")
    assert name != bucket_name(table.lower() + "x", account, region)


# -- what expires ------------------------------------------------------------------------------------


def kept(keep_s: float, **fields: Any) -> Any:
    return a_bag(spec=msgspec.structs.replace(a_bag().spec, keep_s=keep_s), **fields)


def test_all_that_is_a_bags_expires_with_it(table: DynamoTable) -> None:
    bag = kept(30 * DAY_S)
    table.create_bag(bag)
    table.put_blocks([a_block(0)])
    table.record([a_done(0), a_failed(1), a_done(5000), a_done(2, noise(1_000_000))])
    table.keep_attempts([a_failed(2)])
    table.retract("bag", [1])
    scanned = boto3.client("dynamodb", region_name="us-east-1").scan(TableName=table._db.address.name)[
        "Items"
    ]
    assert len(scanned) > 8
    assert {item["ttl"]["N"] for item in scanned} == {str(int(bag.created_at + 30 * DAY_S))}
    assert [key.partition("/")[0] for key in objects(table)] == ["keep-30"]


def test_a_bag_that_has_expired_is_gone_and_its_name_is_free(url: str, table: DynamoTable) -> None:
    table.create_bag(kept(10.0, created_at=time.time() - 5))
    table.create_bag(kept(DAY_S, name="old", created_at=time.time() - 2 * DAY_S))
    assert [bag.name for bag in table.bags()] == ["bag"]
    for call in (table.bag, table.counts):
        with pytest.raises(BagNotFoundError):
            call("old")
    assert list(table.results("old")) == []
    with pytest.raises(BagExistsError):
        table.create_bag(kept(10.0))
    again = a_bag("old")
    table.create_bag(again)
    with closing(open_table(url)) as other:
        assert other.bag("old") == again


def test_one_whose_clock_is_ahead_replaces_no_bag_that_is_there(
    url: str, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.create_bag(kept(HOUR_S))
    ahead = functools.partial(ServerClock, lambda: time.time() + 2 * HOUR_S)
    monkeypatch.setattr("mtask_aws.dynamo.ServerClock", ahead)
    with closing(open_table(url)) as other, pytest.raises(BagExistsError):
        other.create_bag(kept(HOUR_S))


@pytest.mark.parametrize(("keep_s", "folder"), [(60.0, "keep-1"), (DAY_S + 1, "keep-3"), (1e10, FOR_EVER)])
def test_the_folder_of_a_bag_that_expires(table: DynamoTable, keep_s: float, folder: str) -> None:
    table.create_bag(kept(keep_s))
    table.record([a_done(0, noise(1_000_000))])
    assert [key.partition("/")[0] for key in objects(table)] == [folder]


# -- mtask init ----------------------------------------------------------------------------------------


def test_init_makes_the_table_and_its_bucket_once(moto: str) -> None:
    url = new_url()
    name = url.rpartition("/")[2]
    first = make_table(url)
    assert [(what.split()[0], done) for what, done in first] == [("DynamoDB", "made"), ("S3", "made")]
    assert [done for _, done in make_table(url)] == ["was there", "was there"]
    client = boto3.client("dynamodb", region_name="us-east-1")
    found = client.describe_table(TableName=name)["Table"]
    assert found["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    ttl = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "ttl")
    bucket = first[1][0].split()[-1]
    assert s3().get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == PRIVATE
    assert s3().get_bucket_encryption(Bucket=bucket)
    rules = s3().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules} == {
        f"keep-{days}/{name}/": days for days in KEEP_DAYS
    }


def test_init_mends_what_was_changed_and_leaves_the_rest(moto: str) -> None:
    url = f"{new_url().replace('us-east-1', 'eu-west-1')}?bucket=shared-bucket"
    other = f"{new_url().replace('us-east-1', 'eu-west-1')}?bucket=shared-bucket"
    make_table(other)
    assert [done for _, done in make_table(url)] == ["made", "changed"]
    rules = s3().get_bucket_lifecycle_configuration(Bucket="shared-bucket")["Rules"]
    assert len(rules) == 2 * len(KEEP_DAYS)
    assert [done for _, done in make_table(other)] == ["was there", "was there"]
    s3().delete_public_access_block(Bucket="shared-bucket")
    assert [done for _, done in make_table(other)] == ["was there", "changed"]


def test_init_leaves_a_table_of_others_alone(moto: str) -> None:
    url = new_url()
    client = boto3.client("dynamodb", region_name="us-east-1")
    client.create_table(
        TableName=url.rpartition("/")[2],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for function in (open_table, make_table):
        with pytest.raises(UnusableError, match=r"other keys.*choose another name"):
            function(url)


# -- URLs, and tables that can't be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("dynamodb://us-east-1/", "a name has 1 to 255"),
        ("dynamodb://us-east-1/ab", "at least 3"),
        ("dynamodb://us-east-1/reads?buket=x", "did you mean 'bucket'"),
        ("dynamodb://us-east-1/reads?bucket=My_Bucket", "can't be the name of a bucket"),
        ("dynamodb:///reads", "not the URL"),
        ("dynamodb://key:secret@us-east-1/reads", "credentials don't belong"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        open_table(url)


def test_a_region_that_is_not_there(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(UsageError, match=r"no region 'us-east1'.*did you mean 'us-east-1'"):
        open_table("dynamodb://us-east1/reads")


def test_a_table_that_is_not_there(moto: str) -> None:
    with pytest.raises(UnusableError, match="no DynamoDB table 'reads' in us-east-1: `mtask init` makes it"):
        open_table("dynamodb://us-east-1/reads")


def test_a_table_in_another_region(url: str) -> None:
    with pytest.raises(UnusableError, match=r"in us-west-2: .*unless the region"):
        open_table(url.replace("us-east-1", "us-west-2"))


def test_a_table_that_is_removed_while_it_is_open(table: DynamoTable) -> None:
    table.create_bag(a_bag())
    boto3.client("dynamodb", region_name="us-east-1").delete_table(TableName=table._db.address.name)
    for call in (
        lambda: table.record([a_done()]),
        lambda: table.bags(),
        lambda: table.beat_s and table.lanes(),
    ):
        with pytest.raises(UnusableError, match="mtask init"):
            call()


def test_a_table_that_is_closed(table: DynamoTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(index) for index in range(200)])
    table.close()
    table.close()
    with pytest.raises(BackendError, match="closed"):
        table.bags()


class Refuses(BaseHTTPRequestHandler):
    """Answers as AWS does to one who may not do this."""

    code, status = "AccessDeniedException", 400

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        action = self.headers["X-Amz-Target"].rpartition(".")[2]
        text = f"User: arn:aws:iam::123456789012:user/eve is not authorized to perform: dynamodb:{action}"
        body = json.dumps({"__type": f"com.amazon.coral.service#{self.code}", "message": text}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "status", "error", "text"),
    [
        (
            "AccessDeniedException",
            400,
            UnusableError,
            "access denied: dynamodb:DescribeTable on dynamodb://us-east-1/reads",
        ),
        ("UnrecognizedClientException", 400, UnusableError, "doesn't accept these credentials"),
        ("ExpiredTokenException", 400, UnavailableError, "credentials have expired"),
        ("InternalServerError", 500, UnavailableError, "busy"),
        ("ProvisionedThroughputExceededException", 400, UnavailableError, "busy"),
        ("ValidationException", 400, BackendError, "dynamodb:DescribeTable"),
    ],
)
def test_who_is_refused_is_told_why(
    moto: str, monkeypatch: pytest.MonkeyPatch, code: str, status: int, error: type[BackendError], text: str
) -> None:
    handler = type("Handler", (Refuses,), {"code": code, "status": status})
    with serving(handler) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        with pytest.raises(error, match=text) as caught:
            open_table("dynamodb://us-east-1/reads")
        assert type(caught.value) is error


def test_a_server_that_is_not_there(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UnavailableError, match="out of reach"):
        open_table("dynamodb://us-east-1/reads")


def test_credentials_that_run_out_are_renewed(table: DynamoTable) -> None:
    """The next call looks for new ones; what was under way is tried again by the engine."""
    table.create_bag(a_bag())
    first = table._db.client.get()

    def expire(parsed: dict[str, Any], http_response: Any, **_: Any) -> None:
        http_response.status_code = 400
        parsed["Error"] = {"Code": "ExpiredTokenException", "Message": "The security token is expired"}

    hook(table, "after-call.dynamodb", expire)
    with pytest.raises(UnavailableError, match="expired"):
        table.record([a_done(0)])
    assert table._db.client.get() is not first
    table.record([a_done(0)])
    assert table.counts("bag").done == 1

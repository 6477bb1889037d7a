"""What is too big for an item of DynamoDB: objects in an S3 bucket, each named by the hash of what it holds.

The same content has the same key, so a write that is tried again replaces an object by itself.

Objects of bags whose results expire lie below `keep-DAYS/`, and the bucket's lifecycle removes them so many days
after they were written; `keep-for-ever/` is for all others.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from mtask.errors import BackendError, UnusableError
from mtask.meter import Meter
from mtask_aws.address import Address
from mtask_aws.client import Client, code_of

__all__ = ["KEEP_DAYS", "Bucket", "bucket_name"]

KEEP_DAYS = (1, 3, 7, 14, 30, 60, 90, 180, 365, 730, 3650)
"""The lifecycle's rules: an object expires by the first that isn't shorter than its bag's results are kept."""
DAY_S = 86400.0
FOR_EVER = "keep-for-ever"

_LONGEST_NAME = 63


def bucket_name(table: str, account: str, region: str) -> str:
    """The bucket that goes with a table when none is named."""
    end = f"-{account}-{region}"
    start = table.lower().replace("_", "-").replace(".", "-").strip("-") or "mtask"
    if len(start) + len(end) > _LONGEST_NAME or start != table:  # else two tables might mean one bucket
        digest = hashlib.sha256(table.encode()).hexdigest()[:6]
        start = f"{start[: _LONGEST_NAME - len(end) - len(digest) - 1].rstrip('-')}-{digest}"
    return start + end


class Bucket:
    """The bucket beside a table; nothing is asked of AWS before it is used. Any thread may use it."""

    def __init__(self, address: Address, meter: Meter) -> None:
        self._address, self._meter = address, meter
        self._client = Client("s3", address)
        self._lock = threading.Lock()
        self._place: dict[str, str] = {}
        if bucket := address.options.get("bucket"):
            self._place = {"Bucket": bucket}

    @property
    def name(self) -> str:
        return self.place()["Bucket"]

    def place(self) -> dict[str, str]:
        """The parameters that name the bucket.

        The name that nobody chose can be foretold by anybody, so a bucket of that name counts only if it is this account's.
        """
        with self._lock:
            if not self._place:
                client = Client("sts", self._address)
                try:
                    with client.errors("sts:GetCallerIdentity", "this account"):
                        account = client.get().get_caller_identity()["Account"]
                finally:
                    client.close()
                name = bucket_name(self._address.name, account, self._address.region)
                self._place = {"Bucket": name, "ExpectedBucketOwner": account}
            return self._place

    def put(self, body: bytes, owner: str, *, keep_s: float | None = None) -> str:
        """The key of the object that holds this now. `owner`: whose it is, as a part of the key."""
        key = f"{_folder(keep_s)}/{self._address.name}/{quote(owner, safe='')}/{hashlib.sha256(body).hexdigest()}"
        self._call("PutObject", "put_object", Key=key, Body=body)
        self._meter.add("s3 puts", 1)
        return key

    def get(self, key: str) -> bytes:
        answer = self._call("GetObject", "get_object", Key=key)
        self._meter.add("s3 gets", 1)
        with self._client.errors("s3:GetObject", f"s3://{self.name}/{key}"):
            body: bytes = answer["Body"].read()
        return body

    def close(self) -> None:
        self._client.close()

    def _call(self, action: str, method: str, *, Key: str, **parameters: Any) -> dict[str, Any]:
        place = self.place()
        with self._client.errors(f"s3:{action}", f"s3://{place['Bucket']}/{Key}"):
            try:
                answer: dict[str, Any] = getattr(self._client.get(), method)(Key=Key, **place, **parameters)
            except ClientError as error:
                if code_of(error) == "NoSuchBucket":
                    raise UnusableError(
                        f"there is no bucket {place['Bucket']!r}, where what is too big for DynamoDB goes: `mtask init` "
                        f"makes it, or name another: {self._address.url}?bucket=NAME"
                    ) from None
                if code_of(error) == "NoSuchKey":
                    raise BackendError(
                        f"s3://{place['Bucket']}/{Key} is gone, though {self._address.url} refers to it"
                    ) from None
                raise
        return answer


def _folder(keep_s: float | None) -> str:
    if keep_s is None:
        return FOR_EVER
    days = next((days for days in KEEP_DAYS if days * DAY_S >= keep_s), None)
    return FOR_EVER if days is None else f"keep-{days}"

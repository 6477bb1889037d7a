"""Bytes as attributes of an item: compressed where that makes them smaller, in S3 where they are too big."""

from __future__ import annotations

import zlib

from mtask.errors import BackendError
from mtask_aws.bucket import Bucket
from mtask_aws.dynamo import Item

__all__ = ["ITEM_BYTES", "Blobs", "is_far"]

ITEM_BYTES = 390_000
"""Longest bytes in an item: 400 KB (409,600 bytes) are allowed, with the names and the other attributes."""
_WORTH_BYTES = 128
"""Nothing shorter is compressed."""


def is_far(item: Item) -> bool:
    """Is its content in S3?"""
    return "s3z" in item or "s3" in item


class Blobs:
    """Attributes: `z` compressed bytes, `b` bytes, `s3z` and `s3` the key of an object that holds such."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def pack(self, content: bytes, owner: str, *, keep_s: float | None = None) -> Item:
        """`owner` and `keep_s`: as for `Bucket.put`."""
        small = zlib.compress(content) if len(content) > _WORTH_BYTES else content
        if len(small) >= len(content):
            near, far, small = "b", "s3", content
        else:
            near, far = "z", "s3z"
        if len(small) <= ITEM_BYTES:
            return {near: {"B": small}}
        return {far: {"S": self.bucket.put(small, owner, keep_s=keep_s)}}

    def unpack(self, item: Item) -> bytes:
        """Raises BackendError for an item that isn't one of ours."""
        try:
            if "b" in item:
                return bytes(item["b"]["B"])
            if "z" in item:
                return zlib.decompress(item["z"]["B"])
            if "s3z" in item:
                return zlib.decompress(self.bucket.get(item["s3z"]["S"]))
            return self.bucket.get(item["s3"]["S"])
        except (KeyError, zlib.error) as error:
            place = "/".join(item[name].get("S", "?") for name in ("pk", "sk") if name in item)
            raise BackendError(f"the item {place} can't be read: {error!r}") from None

"""Bytes as the value of a field: compressed where that makes them smaller; where they are too big for their document,
in one of their own, and where they are too big for that, in Cloud Storage.

    bytes       `=` and the content, or `z` and the content compressed
    text        `doc:ID`: such bytes are in mtask-blobs/ID, in the field `body`; `gs:BUCKET/KEY`: in an object
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

from mtask.errors import BackendError
from mtask_gcp.database import Database
from mtask_gcp.documents import Value, put, raw, text, time_at
from mtask_gcp.objects import Objects

__all__ = ["ALONE_BYTES", "Blobs"]

ALONE_BYTES = 1_000_000
"""Longest bytes in a document of their own: 1,048,576 are allowed, with the name and the other fields."""
_WORTH_BYTES = 128
"""Nothing shorter is compressed."""


class Blobs:
    """Packs and unpacks. The same content has the same place, so that trying again writes nothing twice."""

    def __init__(self, db: Database, objects: Objects) -> None:
        self._db, self.objects = db, objects

    def pack(self, content: bytes, parent: str, *, near: int, expires_at: float | None = None) -> Value:
        """`parent`: the document to which it belongs; `near`: most bytes for the field itself."""
        packed = compressed(content)
        if len(packed) <= near:
            return raw(packed)
        if len(packed) <= ALONE_BYTES:
            name = hashlib.sha256(packed).hexdigest()[:40]
            fields = {"body": raw(packed)}
            if expires_at is not None:
                fields["ttl"] = time_at(expires_at)
            self._db.write([put(f"{parent}/mtask-blobs/{name}", fields)])
            return text(f"doc:{name}")
        return text(f"gs:{self.objects.put(packed, parent.rpartition('/')[2], expires_at)}")

    def unpack(self, value: Any, parent: str) -> bytes:
        """`value`: as protobuf has it. Raises BackendError for one that isn't ours."""
        kind, _, where = value.string_value.partition(":")
        try:
            if not kind:
                return _plain(bytes(value.bytes_value))
            if kind == "gs":
                return _plain(self.objects.get(where))
            found = self._db.get(f"{parent}/mtask-blobs/{where}")
            if found is None:
                raise BackendError(f"{parent}/mtask-blobs/{where} is gone, though the table refers to it")
            return _plain(bytes(found.fields["body"].bytes_value))
        except (IndexError, ValueError, zlib.error) as error:
            raise BackendError(f"a field below {parent} can't be read: {error!r}") from None


def is_far(value: Any) -> bool:
    """Does it take another request to read this?"""
    return bool(value.string_value)


def compressed(content: bytes) -> bytes:
    small = zlib.compress(content) if len(content) > _WORTH_BYTES else content
    return b"z" + small if len(small) < len(content) else b"=" + content


def _plain(packed: bytes) -> bytes:
    if packed[0] == ord("z"):
        return zlib.decompress(packed[1:])
    if packed[0] == ord("="):
        return packed[1:]
    raise ValueError("it isn't mtask's")

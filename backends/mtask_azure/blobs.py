"""Bytes as properties of an entity: compressed where that makes them smaller, in a blob where they are too big.

A property holds 64 KiB, an entity 1 MiB ("Understanding the Table service data model"), so bytes are cut: `z0`, `z1`, …
compressed ones, `b0`, `b1`, … others; `zblob` and `bblob` name a blob that holds such.

A blob is named by the hash of what it holds, below the uid of the bag whose it is: the same content has the same
name, so a write that is tried again replaces it by itself.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerClient

from mtask.errors import BackendError
from mtask_azure.faults import BLOB, code_of
from mtask_azure.keys import escaped
from mtask_azure.prices import BLOB_READS, BLOB_WRITES
from mtask_azure.store import Entity, Store

__all__ = ["NEAR_BYTES", "Blobs", "is_far"]

PROPERTY_BYTES = 65_536
NEAR_BYTES = 14 * PROPERTY_BYTES
"""Longest bytes in an entity: 896 KiB of 1 MiB."""

_WORTH_BYTES = 128
"""Nothing shorter is compressed."""


def is_far(entity: Entity) -> bool:
    """Is its content in a blob?"""
    return "zblob" in entity or "bblob" in entity


class Blobs:
    """The container beside a table; nothing is asked of it before it is used. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._client: ContainerClient | None = None

    def pack(self, content: bytes, owner: str) -> Entity:
        """`owner`: whose it is, the first part of the blob's name."""
        small = zlib.compress(content) if len(content) > _WORTH_BYTES else content
        kind, small = ("z", small) if len(small) < len(content) else ("b", content)
        if len(small) > NEAR_BYTES:
            return {f"{kind}blob": self._upload(small, owner)}
        cuts = range(0, len(small), PROPERTY_BYTES)
        return {f"{kind}{at // PROPERTY_BYTES}": small[at : at + PROPERTY_BYTES] for at in cuts}

    def unpack(self, entity: Entity) -> bytes:
        """Raises BackendError for an entity that isn't one of ours."""
        try:
            for kind in "zb":
                content = None
                if f"{kind}blob" in entity:
                    content = self._download(entity[f"{kind}blob"])
                elif f"{kind}0" in entity:
                    content = b"".join(_cuts(entity, kind))
                if content is not None:
                    return zlib.decompress(content) if kind == "z" else content
            return b""
        except (TypeError, zlib.error) as error:
            place = "/".join(str(entity.get(name, "?")) for name in ("PartitionKey", "RowKey"))
            raise BackendError(f"the entity {place} can't be read: {error!r}") from None

    def remove(self, owner: str) -> None:
        """All blobs of this owner; others may do so at the same time."""
        with self._errors("delete"), _gone_is_fine():
            for name in self.container().list_blob_names(name_starts_with=f"{escaped(owner)}/"):
                with _gone_is_fine():
                    self.container().delete_blob(name)

    def container(self) -> ContainerClient:
        with self._lock:
            if self._client is None:
                self._client = self._store.account.container()
            return self._client

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return self._store.account.errors(action, BLOB, self._store.address.place)

    def _upload(self, content: bytes, owner: str) -> str:
        name = f"{escaped(owner)}/{hashlib.sha256(content).hexdigest()}"
        with self._errors("write"):
            self.container().upload_blob(name, content, overwrite=True)
        self._store.meter.add(BLOB_WRITES, 1)
        return name

    def _download(self, name: str) -> bytes:
        with self._errors("read"):
            try:
                content: bytes = self.container().download_blob(name).readall()
            except HttpResponseError as error:
                if code_of(error) == "BlobNotFound":
                    raise BackendError(
                        f"the blob {name} is gone from {self._store.address.place}, though {self._store.address.url} refers to it"
                    ) from None
                raise
        self._store.meter.add(BLOB_READS, 1)
        return content


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except HttpResponseError as error:
        if code_of(error) not in ("BlobNotFound", "ContainerNotFound"):
            raise


def _cuts(entity: Entity, kind: str) -> list[bytes]:
    found: list[bytes] = []
    while (cut := entity.get(f"{kind}{len(found)}")) is not None:
        found.append(cut)
    return found

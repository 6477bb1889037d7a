"""What is too big for a document of Firestore: objects in a bucket of Cloud Storage, each named by the hash of what it holds.

The same content has the same name, so a write that is tried again replaces an object by itself. An object of a bag
whose results expire has that time as its `customTime`, and one rule of the bucket's lifecycle removes what is due.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask.meter import Meter
from mtask_gcp.connection import STORAGE, credential_errors
from mtask_gcp.place import Place

__all__ = ["Objects", "errors", "storage_client"]

T = TypeVar("T")

TIMEOUT_S = 60.0
RETRY_S = 10.0
CLASS_A, CLASS_B = "gcs class A operations", "gcs class B operations"


def storage_client(project: str) -> Any:
    """google-cloud-storage's. Raises UnusableError without credentials."""
    # Imported here, because few need it, and it takes a while.
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    if os.environ.get(STORAGE):
        return Client(project=project, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    with credential_errors(f"Cloud Storage for {project}"):
        return Client(project=project)


@contextmanager
def errors(permission: str, on: str) -> Iterator[None]:
    """Raise what goes wrong within as an error of mtask; what isn't there is left to the caller."""
    from google.api_core.exceptions import GoogleAPICallError, NotFound, RetryError
    from requests.exceptions import RequestException

    try:
        with credential_errors(on):
            yield
    except NotFound:
        raise
    except GoogleAPICallError as error:
        if error.code in (401, 403):
            raise UnusableError(
                f"access denied: {permission} on {on} ({error.message}); give this account the role "
                "roles/storage.objectUser on the bucket, and see what else is missing with `mtask doctor`"
            ) from None
        if error.code in (408, 429) or (error.code or 0) >= 500:
            raise UnavailableError(f"{on} is busy: {error.message}") from None
        raise BackendError(f"{permission} on {on}: {error.message}") from None
    except (RetryError, RequestException) as error:
        raise UnavailableError(f"{on} is out of reach: {error}") from None


class Objects:
    """The bucket beside a table; nothing is asked of Google before it is used. Any thread may use it."""

    def __init__(self, place: Place, meter: Meter, bucket: Callable[[], str]) -> None:
        """`bucket`: its name, as the table has it; empty: there is none."""
        self._place, self._meter, self._bucket = place, meter, bucket
        self._lock = threading.Lock()
        self._client: Any = None

    def put(self, content: bytes, owner: str, expires_at: float | None) -> str:
        """BUCKET/KEY of the object that holds this now. `owner`: whose it is, as a part of the key."""
        bucket = self._place.bucket or self._bucket()
        if not bucket:
            raise UnusableError(
                f"{len(content):,} bytes are too big for a document of Firestore, and {self._place.url} has no bucket: "
                "`mtask init` makes one, or name one: ?bucket=NAME"
            )
        digest = hashlib.sha256(content).hexdigest()
        key = f"{self._place.name}/{quote(owner, safe='')}/{digest}"

        def upload(blob: Any, retry: Any) -> None:
            if expires_at is not None:
                blob.custom_time = datetime.fromtimestamp(expires_at, UTC)
            blob.upload_from_string(content, timeout=TIMEOUT_S, retry=retry)

        self._do("storage.objects.create", bucket, key, upload)
        self._meter.add(CLASS_A, 1)
        return f"{bucket}/{key}"

    def get(self, where: str) -> bytes:
        """`where`: as `put` said."""
        bucket, _, key = where.partition("/")
        content = self._do(
            "storage.objects.get",
            bucket,
            key,
            lambda blob, retry: bytes(blob.download_as_bytes(timeout=TIMEOUT_S, retry=retry)),
        )
        self._meter.add(CLASS_B, 1)
        return content

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _do(self, permission: str, bucket: str, key: str, call: Callable[[Any, Any], T]) -> T:
        with self._lock:
            if self._client is None:
                self._client = storage_client(self._place.project)
            client = self._client
        from google.api_core.exceptions import NotFound
        from google.cloud.storage.retry import DEFAULT_RETRY

        with errors(permission, f"gs://{bucket}/{key}"):
            try:
                return call(client.bucket(bucket).blob(key), DEFAULT_RETRY.with_timeout(RETRY_S))
            except NotFound:
                if permission == "storage.objects.get":
                    raise BackendError(
                        f"gs://{bucket}/{key} is gone, though {self._place.url} refers to it"
                    ) from None
                raise UnusableError(
                    f"there is no bucket {bucket!r}, where what is too big for Firestore goes: `mtask init` makes it, or "
                    f"name another: ?bucket=NAME"
                ) from None

"""Requests to Firestore: what is billed is counted, errors are in the words of mtask, batches are seen through.

Limits: https://cloud.google.com/firestore/quotas. Codes of errors: google.rpc.Code.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar

import grpc
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.rpc.code_pb2 import Code

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask.meter import Meter
from mtask_gcp.connection import FIRESTORE, channel_to, credential_errors
from mtask_gcp.documents import PAGE, Write, micros_of
from mtask_gcp.place import Place
from mtask_gcp.queries import Bounds, sum_request

__all__ = ["CONFLICTS", "Database", "Snapshot", "no_table"]

T = TypeVar("T")
R = TypeVar("R")

HOST = "firestore.googleapis.com:443"
SCOPES = ("https://www.googleapis.com/auth/datastore",)
MOST_WRITES = 500
"""Of one request."""
REQUEST_BYTES = 8 * 1024 * 1024
"""Of 10 MiB that are allowed."""
GETS = 300
"""Documents of one request."""
CHUNK_BYTES = 2 * 1024 * 1024
"""What one request of a stream should bring."""
FIRST_CHUNK, LARGEST_CHUNK = 16, 500
"""Documents of the first one, and at most."""
SIDE_BY_SIDE = 12
TIMEOUT_S = 20.0
TRIES = 4
"""Of one request, or one write, that Firestore was too busy for, in about a second; then it is for the engine to wait."""
PAUSE_S = 0.1

BUSY = frozenset(
    (
        Code.ABORTED,
        Code.CANCELLED,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
        Code.UNKNOWN,
    )
)
CONFLICTS = frozenset((Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.NOT_FOUND))
"""Of a write: its precondition doesn't hold."""
_NEWER = "Invalid base version"
"""With INVALID_ARGUMENT: the precondition names a later change than there was."""

OWNER = [("authorization", "Bearer owner")]
"""The emulator asks for no credentials, and has no rules for this one."""


class Snapshot(NamedTuple):
    """A document as it was read."""

    name: str
    """The whole path."""
    fields: Mapping[str, Any]
    """As protobuf has them."""
    changed_at: int
    """When it was last written (microseconds, the server's clock): its version."""
    read_at: int
    """When it was read, by the same clock."""

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]


class Database:
    """One table's part of a Firestore database. Any thread may use it."""

    def __init__(self, place: Place, meter: Meter) -> None:
        """Nothing is asked of Google yet."""
        self.place, self.meter = place, meter
        self.name = f"projects/{place.project}/databases/{place.database}"
        self.root = f"{self.name}/documents/mtask/{place.name}"
        self.emulator = os.environ.get(FIRESTORE, "")
        self._metadata = [("google-cloud-resource-prefix", self.name)]
        if self.emulator:
            self._metadata += OWNER
        self._lock = threading.Lock()
        self._made: tuple[grpc.Channel, FirestoreClient] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def tasks(self, uid: str) -> str:
        """The document below which is what belongs to the bag; it isn't there itself."""
        return f"{self.root}/mtask-tasks/{uid}"

    # -- reading ------------------------------------------------------------------------------------

    def get(self, name: str) -> Snapshot | None:
        """As the last write left it."""
        return next(iter(self.get_all([name])), None)

    def get_all(self, names: Sequence[str], paths: Sequence[str] = ()) -> list[Snapshot]:
        """Those that are there, in no order. `paths`: of the fields that are wanted; all by default."""
        wanted = list(dict.fromkeys(names))
        batches = [(wanted[at : at + GETS], paths) for at in range(0, len(wanted), GETS)]
        return [each for found in self.parallel(self._get_batch, batches) for each in found]

    def stream(
        self,
        parent: str,
        collection: str,
        *,
        first: str = "",
        end: str = "",
        only: str = "",
        since: tuple[str, float] | None = None,
    ) -> Iterator[Snapshot]:
        """Documents in order of their names, from `first` on and before `end`, if given. The first ones are asked for
        at once, the next ones while the last ones are used.

        `only`: a field that must be true; `since`: one that must be this time or later, and gives the order then.
        """
        bounds = Bounds(parent, collection, first, end, only, since)
        return self._streamed(bounds, self._pool().submit(self._chunk, bounds, None, FIRST_CHUNK))

    def sums(self, parent: str, collection: str, fields: Sequence[str]) -> list[int]:
        """Of each field, over all documents that have it, at one moment. Each is a request of its own: together
        they would need a composite index."""
        found: list[int] = []
        at: Any = None
        for field in fields:
            total, at = self._sum(parent, collection, field, at)
            found.append(total)
        return found

    # -- writing ------------------------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> list[int | None]:
        """Of each write, when it took effect; None: its precondition didn't hold. Each is for itself: after an error,
        any of them may have been done. No two may be of one document."""
        batches = list(_batches(writes))
        return [each for found in self.parallel(self._write_batch, batches) for each in found]

    # -- inside -------------------------------------------------------------------------------------

    def parallel(self, function: Callable[[T], R], each: Sequence[T]) -> list[R]:
        """Call `function` for each side by side; raises the first error when all have ended. Not from within itself."""
        if len(each) <= 1:
            return [function(one) for one in each]
        futures: list[Future[R]] = [self._pool().submit(function, one) for one in each]
        wait(futures)
        return [future.result() for future in futures]

    def call(self, method: str, request: Any) -> Any:
        """The answer, or the list of answers of a method that streams. Raises UnavailableError after `TRIES`."""
        for number in range(TRIES):
            if self._closed:
                raise BackendError(f"the table {self.place.url} is closed")
            if number:
                time.sleep(random.uniform(0, PAUSE_S * 2**number))
            try:
                return self._once(method, request)
            except UnavailableError:
                if number == TRIES - 1:
                    raise
        raise AssertionError

    def _once(self, method: str, request: Any) -> Any:
        try:
            with credential_errors(self.place.url):
                answer = getattr(self._client(), method)(
                    request=request, metadata=self._metadata, retry=None, timeout=TIMEOUT_S
                )
            return answer if method == "batch_write" else [each._pb for each in answer]
        except GoogleAPICallError as error:
            status = error.grpc_status_code
            code = Code.UNKNOWN if status is None else status.value[0]
            raise self.error(code, error.message or "", method) from None
        except ValueError:
            # gRPC's word for a channel that was closed meanwhile.
            if not self._closed:
                raise
            raise BackendError(f"the table {self.place.url} is closed") from None
        except RetryError as error:
            raise UnavailableError(f"{self.place.url} is out of reach: {error}") from None

    def error(self, code: int, text: str, method: str) -> BackendError:
        """In the words of mtask."""
        text = " ".join(text.split())
        where = f"on {self.emulator}, {self.place.url}" if self.emulator else self.place.url
        if code == Code.PERMISSION_DENIED:
            return UnusableError(
                f"access denied: {method} in {self.place.url} ({text}); give this account the role roles/datastore.user "
                f"on the project {self.place.project}, and see what else is missing with `mtask doctor`"
            )
        if code == Code.UNAUTHENTICATED:
            return UnusableError(f"{self.place.url}: Google doesn't accept these credentials: {text}")
        if code == Code.NOT_FOUND:
            return UnusableError(
                f"there is no Firestore database {self.place.database!r} in the project {self.place.project} ({text}): "
                f"make it: gcloud firestore databases create --project={self.place.project} "
                f"--database='{self.place.database}' --type=firestore-native --location=REGION"
            )
        if code in BUSY:
            kind = "out of reach" if code == Code.UNAVAILABLE else "busy"
            return UnavailableError(f"{where} is {kind}: {Code.Name(code)}: {text}")
        if code == Code.FAILED_PRECONDITION and "atastore Mode" in text:
            return UnusableError(
                f"the database of {self.place.url} is in Datastore mode, and mtask needs native mode: name another, "
                f"?database=NAME ({text})"
            )
        return BackendError(f"{method} in {where}: {Code.Name(code)}: {text}")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
            made, self._made = self._made, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        if made is not None:
            made[0].close()  # ends what still waits for an answer
        if threads is not None:
            threads.shutdown()

    def _client(self) -> FirestoreClient:
        with self._lock:
            if self._closed:
                raise BackendError(f"the table {self.place.url} is closed")
            if self._made is None:
                channel = channel_to(self.emulator, FirestoreGrpcTransport, HOST, SCOPES)
                self._made = channel, FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))
            return self._made[1]

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise BackendError(f"the table {self.place.url} is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="mtask-firestore")
            return self._threads

    def _get_batch(self, batch: tuple[list[str], Sequence[str]]) -> list[Snapshot]:
        names, paths = batch
        request = types.BatchGetDocumentsRequest(database=self.name, documents=names)
        if paths:
            request.mask = types.DocumentMask(field_paths=paths)
        answers = self.call("batch_get_documents", request)
        self.meter.add("firestore reads", len(names))
        return [_snapshot(each.found, each.read_time) for each in answers if each.HasField("found")]

    def _streamed(self, bounds: Bounds, chunk: Future[list[Snapshot]]) -> Iterator[Snapshot]:
        limit = FIRST_CHUNK
        while True:
            found = chunk.result()
            last = found[-1] if len(found) == limit else None
            if last is not None:
                bytes_each = sum(_size(each) for each in found) / len(found)
                limit = int(min(max(CHUNK_BYTES / bytes_each, 1), LARGEST_CHUNK))
                chunk = self._pool().submit(self._chunk, bounds, last, limit)
            yield from found
            if last is None:
                return

    def _chunk(self, bounds: Bounds, after: Snapshot | None, limit: int) -> list[Snapshot]:
        last = None if after is None else (after.name, after.fields)
        request = types.RunQueryRequest(parent=bounds.parent, structured_query=bounds.query(last, limit))
        answers = self.call("run_query", request)
        found = [_snapshot(each.document, each.read_time) for each in answers if each.HasField("document")]
        self.meter.add("firestore reads", max(1, len(found)))
        return found

    def _sum(self, parent: str, collection: str, field: str, at: Any) -> tuple[int, Any]:
        request = sum_request(parent, collection, field, at)
        (answer,) = self.call("run_aggregation_query", request)
        value = answer.result.aggregate_fields["sum"]
        total = int(value.integer_value or value.double_value)
        # One for each 1,000 index entries; of these there are at least so many.
        self.meter.add("firestore reads", max(1, -(-total // (PAGE * 1000))))
        return total, answer.read_time

    def _write_batch(self, batch: Sequence[Write]) -> list[int | None]:
        outcomes: dict[int, int | None] = {}
        left = list(range(len(batch)))
        for number in range(TRIES):
            if number:
                time.sleep(random.uniform(0, PAUSE_S * 2**number))
            request = types.BatchWriteRequest(database=self.name, writes=[batch[each] for each in left])
            answer = types.BatchWriteResponse.pb(self.call("batch_write", request))
            self._count(batch, left)
            problem, again = None, []
            for place, (at, status) in enumerate(zip(left, answer.status, strict=True)):
                if status.code == Code.OK:
                    outcomes[at] = micros_of(answer.write_results[place].update_time)
                elif status.code in CONFLICTS or _NEWER in status.message:
                    outcomes[at] = None
                else:
                    problem = self.error(status.code, status.message, "batch_write")
                    if not isinstance(problem, UnavailableError):
                        raise problem
                    again.append(at)
            left = again
            if not left:
                return [outcomes[each] for each in range(len(batch))]
        assert problem is not None
        raise problem

    def _count(self, batch: Sequence[Write], sent: list[int]) -> None:
        deletes = sum(1 for each in sent if batch[each].delete)
        self.meter.add("firestore writes", len(sent) - deletes)
        if deletes:
            self.meter.add("firestore deletes", deletes)


def _snapshot(document: Any, read_time: Any) -> Snapshot:
    return Snapshot(document.name, document.fields, micros_of(document.update_time), micros_of(read_time))


def _size(snapshot: Snapshot) -> int:
    size: int = sum(each.ByteSize() for each in snapshot.fields.values())
    return size + len(snapshot.name)


def _batches(writes: Sequence[Write]) -> Iterator[list[Write]]:
    batch: list[Write] = []
    size = 0
    for each in writes:
        own = Write.pb(each).ByteSize() + 16
        if batch and (len(batch) == MOST_WRITES or size + own > REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += own
    if batch:
        yield batch


def no_table(place: Place) -> UnusableError:
    return UnusableError(
        f"there is no table {place.name!r} in the Firestore database {place.database!r} of the project "
        f"{place.project}: `mtask init` makes it, unless the project or the database is another one"
    )

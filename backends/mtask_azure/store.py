"""Requests to one Azure table: counted as they are billed, errors in the words of mtask, transactions seen through.

Limits: "Scalability and performance targets for Table storage" and "Performing entity group transactions",
https://learn.microsoft.com/azure/storage/tables/scalability-targets: 100 operations and 4 MiB a transaction, all in
one partition; 1,000 entities an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.data.tables import RequestTooLargeError, TableClient, TableTransactionError, UpdateMode

from mtask.errors import BackendError
from mtask.meter import Meter
from mtask_azure.address import Address
from mtask_azure.client import CONNECTIONS, Account
from mtask_azure.faults import TABLE, code_of
from mtask_azure.keys import Key
from mtask_azure.prices import TRANSACTIONS

__all__ = [
    "MOST_BYTES",
    "MOST_OPERATIONS",
    "ConditionError",
    "Entity",
    "Operation",
    "Store",
    "Unit",
    "age_s",
    "delete",
    "insert",
    "put",
    "replace",
    "row_of",
    "size_of",
]

T = TypeVar("T")
R = TypeVar("R")
Entity = dict[str, Any]

MOST_OPERATIONS = 100
MOST_BYTES = 3_600_000
"""Of a transaction's operations as `size_of` reckons; 4 MiB (4,194,304 bytes) are allowed for the request."""
SIDE_BY_SIDE = CONNECTIONS - 4
"""Requests of one call at once; some connections are left for other threads."""

_CONDITIONS = {
    "ConditionNotMet",
    "EntityAlreadyExists",
    "EntityNotFound",
    "ResourceNotFound",  # also of an entity; of a table it is TableNotFound
    "UpdateConditionNotSatisfied",
}
_AGAIN: dict[str, Any] = {"retry_on_methods": frozenset({"POST", "PATCH", "PUT"})}
"""Requests that the client sends again when their answer is lost, too: each says by its condition whether it was done."""
_OPERATION_BYTES = 900
"""Headers of one operation in a transaction, keys and names."""


class ConditionError(Exception):
    """The condition of a write doesn't hold; nothing was written."""


class Operation(NamedTuple):
    """One of a transaction, as azure-data-tables takes it."""

    kind: str
    entity: Entity
    options: dict[str, Any]


class Unit(NamedTuple):
    """Operations that are done together or not at all."""

    operations: list[Operation]
    about: Any = None
    """Whatever the caller wants to find again."""


def insert(key: Key, values: Entity) -> Operation:
    """If there is none."""
    return Operation("create", _at(key, values), {})


def put(key: Key, values: Entity) -> Operation:
    """In place of what is there."""
    return Operation("upsert", _at(key, values), {"mode": UpdateMode.REPLACE})


def replace(key: Key, values: Entity, etag: str) -> Operation:
    """If it is still the one with this ETag."""
    return Operation("update", _at(key, values), {"mode": UpdateMode.REPLACE, **_if_match(etag)})


def delete(key: Key, etag: str | None = None) -> Operation:
    """If it is there, and the one with this ETag."""
    return Operation("delete", _at(key, {}), _if_match(etag) if etag else {})


def row_of(entity: Entity) -> str:
    key: str = entity["RowKey"]
    return key


def size_of(operation: Operation) -> int:
    """Bytes in a request, an upper bound: binary values go as base64, text may be escaped."""
    total = _OPERATION_BYTES
    for value in operation.entity.values():
        if isinstance(value, bytes):
            total += len(value) * 4 // 3 + 60
        else:
            total += 2 * len(str(value).encode("utf-8", "replace")) + 60
    return total


def age_s(entity: Entity, now_s: float) -> float:
    """Seconds since it was written last, by the server's clock: `now_s` is the time of an answer."""
    written: float = entity.metadata["timestamp"].timestamp()  # type: ignore[attr-defined]
    return max(0.0, now_s - written)


class Store:
    """One table of one account. Any thread may use it."""

    def __init__(self, address: Address, meter: Meter) -> None:
        self.address, self.meter, self.account = address, meter, Account(address)
        self._lock = threading.Lock()
        self._client: TableClient | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        self._seen = threading.local()

    # -- single entities ----------------------------------------------------------------------------

    def get(self, key: Key) -> Entity | None:
        """As the last write left it; its ETag is in `metadata`."""

        def ask() -> Entity | None:
            try:
                return self._table().get_entity(*key)
            except HttpResponseError as error:
                if code_of(error) in ("EntityNotFound", "ResourceNotFound"):
                    return None
                raise

        return self._call("read", ask)

    def insert(self, key: Key, values: Entity) -> None:
        """Raises ConditionError where there is one already."""
        self._write("write", lambda: self._table().create_entity(_at(key, values), **_AGAIN))

    def put(self, key: Key, values: Entity) -> None:
        """What was there is replaced."""
        self._write("write", lambda: self._table().upsert_entity(_at(key, values), UpdateMode.REPLACE))

    def replace(self, key: Key, values: Entity, etag: str, *, merge: bool = False) -> str:
        """The new ETag; `merge`: what isn't given stays. Raises ConditionError where it has another ETag, or isn't there."""
        mode = UpdateMode.MERGE if merge else UpdateMode.REPLACE
        answer: dict[str, Any] = self._write(
            "write",
            lambda: self._table().update_entity(_at(key, values), mode, **_if_match(etag), **_AGAIN),
        )
        return str(answer.get("etag", ""))

    def delete(self, key: Key, etag: str) -> None:
        """Raises ConditionError where it has another ETag."""
        # A deletion of what isn't there is no error to azure-data-tables.
        self._write("delete", lambda: self._table().delete_entity(*key, **_if_match(etag)))

    # -- many ---------------------------------------------------------------------------------------

    def query(
        self,
        partition: str,
        between: tuple[str, str] | None = None,
        *,
        select: Sequence[str] | None = None,
        ahead: bool = True,
    ) -> Iterator[list[Entity]]:
        """The entities of a partition in order of their row keys, an answer (up to 1,000) at a time.

        `between`: from the first of these row keys to before the second; `ahead`: the next answer is asked
        for while this one is used (not from within `parallel`).
        """
        condition, values = "PartitionKey eq @p", {"p": partition}
        if between is not None:
            condition += " and RowKey ge @low and RowKey lt @high"
            values |= {"low": between[0], "high": between[1]}
        pages = (
            self._table()
            .query_entities(condition, parameters=values, select=None if select is None else list(select))
            .by_page()
        )

        def answer() -> list[Entity] | None:
            found: Iterator[Entity] | None = self._call("read", lambda: next(pages, None))
            return None if found is None else list(found)

        found = answer()
        while found is not None:
            more = getattr(pages, "continuation_token", None) is not None
            if more and ahead:
                future = self._started(answer)
                yield found
                found = future.result()
            else:
                yield found
                found = answer() if more else None

    def commit(self, partition: str, units: Sequence[Unit]) -> list[Unit]:
        """Write units, as many in a transaction as there may be; those of which a condition doesn't hold are given back.

        A transaction fails as a whole, and tells by number which operation it was: that one's unit is taken
        out, and the others are sent again without it.
        """
        refused: list[Unit] = []
        for batch in _batches(units):
            waiting = [batch]
            while waiting:
                batch = waiting.pop()
                if not batch:
                    continue
                try:
                    self._submit(batch)
                except _Refused as refusal:
                    guilty = refusal.unit_of(batch)
                    refused.append(batch[guilty])
                    waiting.append(batch[:guilty] + batch[guilty + 1 :])
                except RequestTooLargeError:
                    if len(batch) == 1:
                        raise BackendError(f"{partition}: more than Azure takes in one transaction") from None
                    waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return refused

    def parallel(self, function: Callable[[T], R], each: Sequence[T]) -> list[R]:
        """Call `function` for each side by side; raises the first error when all have ended."""
        if len(each) <= 1:
            return [function(one) for one in each]
        futures = [self._started(partial(function, one)) for one in each]
        wait(futures)
        return [future.result() for future in futures]

    def server_now_s(self) -> float:
        """When the last answer to this thread was sent, by the server's clock, in whole seconds (its header Date)."""
        now_s: float = getattr(self._seen, "now_s", time.time())
        return now_s

    # -- inside -------------------------------------------------------------------------------------

    def _submit(self, batch: Sequence[Unit]) -> None:
        """One transaction. Raises _Refused, RequestTooLargeError, and as `Account.errors`."""
        operations = [operation for unit in batch for operation in unit.operations]
        too_large: RequestTooLargeError | None = None

        def send() -> None:
            nonlocal too_large
            try:
                self._table().submit_transaction(operations, **_AGAIN)
            except RequestTooLargeError as error:
                too_large = error
            except TableTransactionError as error:
                if code_of(error) in _CONDITIONS:
                    raise _Refused(error.index) from None
                raise

        self._call("write", send)
        if too_large is not None:
            raise too_large

    def _write(self, action: str, ask: Callable[[], R]) -> R:
        def conditional() -> R:
            try:
                return ask()
            except HttpResponseError as error:
                if code_of(error) in _CONDITIONS:
                    raise ConditionError from None
                raise

        return self._call(action, conditional)

    def _call(self, action: str, ask: Callable[[], R]) -> R:
        if self._closed:
            raise BackendError(f"the table {self.address.url} is closed")
        with self.account.errors(action, TABLE):
            return ask()

    def _saw(self, response: Any) -> None:
        """Of each answer. Not billed are those that the service failed to give (5xx, 429)."""
        http = response.http_response
        if http.status_code < 500 and http.status_code != 429:
            self.meter.add(TRANSACTIONS, 1)
        try:
            self._seen.now_s = parsedate_to_datetime(http.headers.get("Date", "")).timestamp()
        except (TypeError, ValueError):
            return

    def _table(self) -> TableClient:
        with self._lock:
            if self._client is None:
                self._client = self.account.table(self._saw)
            return self._client

    def _started(self, function: Callable[[], R]) -> Future[R]:
        """In another thread, on the account of this one."""
        return self._pool().submit(copy_context().run, function)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise BackendError(f"the table {self.address.url} is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="mtask-azuretable")
            return self._threads

    def close(self) -> None:
        self._closed = True
        with self._lock:
            threads, self._threads = self._threads, None
            self._client = None
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        self.account.close()


class _Refused(Exception):
    """A condition of a transaction doesn't hold."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def unit_of(self, batch: Sequence[Unit]) -> int:
        """The number of the unit with the operation."""
        left = self.index
        for number, unit in enumerate(batch):
            left -= len(unit.operations)
            if left < 0:
                return number
        return 0


def _batches(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    operations = size = 0
    for unit in units:
        count, each = len(unit.operations), sum(map(size_of, unit.operations))
        if batch and (operations + count > MOST_OPERATIONS or size + each > MOST_BYTES):
            yield batch
            batch, operations, size = [], 0, 0
        batch.append(unit)
        operations += count
        size += each
    if batch:
        yield batch


def _at(key: Key, values: Entity) -> Entity:
    return {"PartitionKey": key[0], "RowKey": key[1], **values}


def _if_match(etag: str) -> dict[str, Any]:
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}

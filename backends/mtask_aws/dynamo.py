"""Requests to one DynamoDB table: billed units counted, errors in the words of mtask, batches seen through.

Items are as boto3's client gives them: attribute → {type: value}. Each has the keys `pk` and `sk`, both strings.
Limits and prices of requests: Amazon DynamoDB Developer Guide, "Quotas in Amazon DynamoDB" and "DynamoDB read and
write operations".
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask.meter import Meter
from mtask_aws.address import Address
from mtask_aws.client import CONNECTIONS, Client, code_of
from mtask_aws.clock import ServerClock
from mtask_aws.keys import Key
from mtask_aws.prices import WRITE_UNIT_BYTES

__all__ = ["ConditionError", "Dynamo", "Item", "item_at", "key_of", "no_table", "size_of"]

T = TypeVar("T")
R = TypeVar("R")
Item = dict[str, dict[str, Any]]

WRITE_BATCH = 25
"""Items of a BatchWriteItem. No 25 items are larger than the 16 MB of a request: each has at most 400 KB."""
READ_BATCH = 100
TRIES = 9
"""Of what a batch left undone; boto3 itself has tried each of them three times."""
PAUSE_S = 0.05
"""Longest pause before the second try; it doubles with each further one."""
SIDE_BY_SIDE = CONNECTIONS - 4
"""Requests of one call at once; some connections are left for other threads."""

_METHODS = {
    "BatchGetItem": "batch_get_item",
    "BatchWriteItem": "batch_write_item",
    "DeleteItem": "delete_item",
    "GetItem": "get_item",
    "PutItem": "put_item",
    "Query": "query",
    "UpdateItem": "update_item",
}
_READS = {"BatchGetItem", "GetItem", "Query"}


class ConditionError(Exception):
    """The condition of a write doesn't hold; nothing was written."""


def key_of(item: Item) -> Key:
    return item["pk"]["S"], item["sk"]["S"]


def item_at(key: Key, **attributes: dict[str, Any]) -> Item:
    return {"pk": {"S": key[0]}, "sk": {"S": key[1]}, **attributes}


def size_of(item: Item) -> int:
    """In bytes, as DynamoDB reckons it: names and values. Of a number, an upper bound."""
    total = 0
    for name, typed in item.items():
        ((kind, value),) = typed.items()
        total += len(name.encode()) + (len(value.encode()) if kind == "S" else len(value))
    return total


class Dynamo:
    """One table of one region. Any thread may use it."""

    def __init__(self, address: Address, meter: Meter) -> None:
        self.address, self.meter, self.clock = address, meter, ServerClock()
        self.client = Client("dynamodb", address)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    # -- single items -------------------------------------------------------------------------------

    def get(self, key: Key) -> Item | None:
        """As the last write left it."""
        found: Item | None = self.call("GetItem", Key=item_at(key), ConsistentRead=True).get("Item")
        return found

    def put(
        self,
        item: Item,
        *,
        condition: str | None = None,
        names: dict[str, str] | None = None,
        values: Item | None = None,
    ) -> None:
        """Raises ConditionError."""
        self.call(
            "PutItem", Item=item, **_expressions(ConditionExpression=condition), **_given(names, values)
        )

    def update(
        self,
        key: Key,
        change: str,
        *,
        condition: str | None = None,
        names: dict[str, str] | None = None,
        values: Item | None = None,
    ) -> Item:
        """The item as it is then. Raises ConditionError."""
        expressions = _expressions(UpdateExpression=change, ConditionExpression=condition)
        answer = self.call(
            "UpdateItem", Key=item_at(key), ReturnValues="ALL_NEW", **expressions, **_given(names, values)
        )
        found: Item = answer.get("Attributes", {})
        return found

    def delete(self, key: Key, *, condition: str | None = None, values: Item | None = None) -> None:
        """Raises ConditionError."""
        self.call(
            "DeleteItem",
            Key=item_at(key),
            **_expressions(ConditionExpression=condition),
            **_given(None, values),
        )

    # -- many ---------------------------------------------------------------------------------------

    def get_all(self, keys: Iterable[Key]) -> list[Item]:
        """Those that are there, in no order, as the last writes left them."""
        wanted = list(dict.fromkeys(keys))
        batches = [wanted[at : at + READ_BATCH] for at in range(0, len(wanted), READ_BATCH)]
        return [item for items in self.parallel(self._get_batch, batches) for item in items]

    def put_all(self, items: Sequence[Item]) -> None:
        """Write items, each with a key of its own; what was there is replaced."""
        if len(items) == 1:
            return self.put(items[0])
        batches = [items[at : at + WRITE_BATCH] for at in range(0, len(items), WRITE_BATCH)]
        self.parallel(self._put_batch, batches)

    def query(
        self,
        partition: str,
        between: tuple[str, str] | None = None,
        *,
        first: int | None = None,
        ahead: bool = True,
    ) -> Iterator[list[Item]]:
        """The items of a partition in order of their sort keys, a response (up to 1 MB) at a time.

        `between`: these sort keys, both included; `first`: so many in the first response; `ahead`: the next
        response is asked for while this one is used (not from within `parallel`).
        """
        parameters: dict[str, Any] = {"ConsistentRead": True, "KeyConditionExpression": "pk = :p"}
        values = {":p": {"S": partition}}
        if between is not None:
            parameters["KeyConditionExpression"] += " AND sk BETWEEN :low AND :high"
            values |= {":low": {"S": between[0]}, ":high": {"S": between[1]}}
        parameters["ExpressionAttributeValues"] = values
        answer = self.call("Query", **parameters, **({"Limit": first} if first else {}))
        while "LastEvaluatedKey" in answer:
            parameters["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
            if ahead:
                future = self._submit(lambda: self.call("Query", **parameters))
                yield answer["Items"]
                answer = future.result()
            else:
                yield answer["Items"]
                answer = self.call("Query", **parameters)
        yield answer["Items"]

    def parallel(self, function: Callable[[T], R], each: Sequence[T]) -> list[R]:
        """Call `function` for each side by side; raises the first error when all have ended."""
        if len(each) <= 1:
            return [function(one) for one in each]
        futures = [self._submit(partial(function, one)) for one in each]
        wait(futures)
        return [future.result() for future in futures]

    # -- inside -------------------------------------------------------------------------------------

    def call(self, action: str, **parameters: Any) -> dict[str, Any]:
        """One request, its units counted. Raises ConditionError, and as `Client.errors` does."""
        if self._closed:
            raise BackendError(f"the table {self.address.url} is closed")
        asked_at = self.clock.local()
        with self.client.errors(f"dynamodb:{action}"):
            try:
                answer: dict[str, Any] = getattr(self.client.get(), _METHODS[action])(
                    **parameters, **self._on_table(action), ReturnConsumedCapacity="TOTAL"
                )
            except ClientError as error:
                if code_of(error) == "ConditionalCheckFailedException":
                    # It is billed as if it had been written.
                    self._count(action, {}, _units(parameters.get("Item")))
                    raise ConditionError from None
                if code_of(error) == "ResourceNotFoundException":
                    raise no_table(self.address) from None
                raise
        self.saw(answer, asked_at)
        self._count(action, answer, self._least(action, parameters, answer))
        return answer

    def saw(self, answer: dict[str, Any], asked_at: float) -> None:
        """Have the clock look at the answer to what was asked then, by our own clock."""
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        self.clock.saw(headers.get("date"), asked_at)

    def close(self) -> None:
        self._closed = True
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        self.client.close()

    def _on_table(self, action: str) -> dict[str, str]:
        return {} if action.startswith("Batch") else {"TableName": self.address.name}

    def _get_batch(self, keys: list[Key]) -> list[Item]:
        left: dict[str, Any] = {
            self.address.name: {"Keys": [item_at(key) for key in keys], "ConsistentRead": True}
        }
        found: list[Item] = []
        for _ in self._tries("dynamodb:BatchGetItem"):
            answer = self.call("BatchGetItem", RequestItems=left)
            found += answer["Responses"].get(self.address.name, [])
            left = answer.get("UnprocessedKeys", {})
            if not left:
                break
        return found

    def _put_batch(self, items: Sequence[Item]) -> None:
        left: dict[str, Any] = {self.address.name: [{"PutRequest": {"Item": item}} for item in items]}
        for _ in self._tries("dynamodb:BatchWriteItem"):
            left = self.call("BatchWriteItem", RequestItems=left).get("UnprocessedItems", {})
            if not left:
                break

    def _tries(self, action: str) -> Iterator[None]:
        """As often as a batch may be sent; raises UnavailableError after the last time."""
        pause_s = PAUSE_S
        for left in reversed(range(TRIES)):
            yield
            if left:
                time.sleep(random.uniform(0, pause_s))
                pause_s *= 2
        raise UnavailableError(f"{self.address.url} is busy: it left a part of {action} undone {TRIES} times")

    def _least(self, action: str, parameters: dict[str, Any], answer: dict[str, Any]) -> float:
        """Units that a request of this kind takes at least: local servers say less than that."""
        if action == "BatchWriteItem":
            left = answer.get("UnprocessedItems", {})
            sent, undone = (
                [_units(each["PutRequest"]["Item"]) for items in requests.values() for each in items]
                for requests in (parameters["RequestItems"], left)
            )
            return sum(sent) - sum(undone)
        if action in ("PutItem", "UpdateItem"):
            return _units(parameters.get("Item", answer.get("Attributes")))
        return 1.0 if action == "DeleteItem" or parameters.get("ConsistentRead") else 0.5

    def _count(self, action: str, answer: dict[str, Any], least: float) -> None:
        said = answer.get("ConsumedCapacity", [])
        capacities = said if isinstance(said, list) else [said]
        units = sum(float(each.get("CapacityUnits", 0)) for each in capacities)
        unit = "dynamodb read units" if action in _READS else "dynamodb write units"
        self.meter.add(unit, max(units, least))

    def _submit(self, function: Callable[[], R]) -> Future[R]:
        """In another thread, on the account of this one."""
        return self._pool().submit(copy_context().run, function)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise BackendError(f"the table {self.address.url} is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="mtask-dynamodb")
            return self._threads


def no_table(address: Address) -> UnusableError:
    return UnusableError(
        f"there is no DynamoDB table {address.name!r} in {address.region}: `mtask init` makes it, unless the "
        "region or the account is another one"
    )


def _units(item: Item | None) -> float:
    """Write units of an item; of one that isn't known, the fewest."""
    return max(1, math.ceil(size_of(item) / WRITE_UNIT_BYTES)) if item else 1


def _expressions(**given: str | None) -> dict[str, str]:
    return {name: text for name, text in given.items() if text is not None}


def _given(names: dict[str, str] | None, values: Item | None) -> dict[str, Any]:
    """What stands for the placeholders: an empty dictionary would be refused."""
    found: dict[str, Any] = {}
    if names:
        found["ExpressionAttributeNames"] = names
    if values:
        found["ExpressionAttributeValues"] = values
    return found

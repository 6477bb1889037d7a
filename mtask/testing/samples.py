"""Small bags, blocks, messages and results to test with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, Block, Delivery, Failure, Message, Reason, Result, Spec
from mtask.portion import Portion, line_of
from mtask.requirements import Lane, Requirements

__all__ = [
    "a_bag",
    "a_block",
    "a_done",
    "a_failed",
    "a_lane",
    "a_message",
    "a_message_of_bytes",
    "a_portion",
    "a_status",
    "an_expired",
    "index_of",
    "messages",
]


def a_bag(name: str = "bag", **fields: Any) -> Bag:
    """A bag of function tasks with one column, `x`."""
    defaults: dict[str, Any] = {"spec": Spec(kind="call", target=("module:function",)), "columns": ("x",)}
    return Bag(name=name, **(defaults | fields))


def a_block(
    number: int = 0, *, bag: str = "bag", count: int = 2, values: list[Any] | None = None, **fields: Any
) -> Block:
    """Block `number` of a bag whose blocks have `count` tasks each."""
    first = number * count
    rows = [[value] for value in (range(first, first + count) if values is None else values)]
    return Block(bag=bag, number=number, first=first, count=count, rows=msgspec.json.encode(rows), **fields)


def a_lane(priority: int = 1) -> Lane:
    """A lane of tasks that ask for nothing but their priority."""
    return Lane.of(priority, Requirements())


def a_message(index: int = 0, *, value: Any = None, **fields: Any) -> Message:
    """A message of one task, whose only parameter is `value`, or else its index."""
    rows = msgspec.Raw(msgspec.json.encode([[index if value is None else value]]))
    defaults: dict[str, Any] = {"bag": "bag", "uid": "uid", "block": index, "columns": ("x",), "rows": rows}
    return Message(first=index, count=1, **(defaults | fields))


def index_of(delivery: Delivery) -> int:
    """The index of the first task in a delivery's message."""
    return _FIRST.decode(delivery.body).first


def messages(count: int) -> list[Message]:
    """Messages with the indexes from 0 on."""
    return [a_message(index) for index in range(count)]


def a_message_of_bytes(size: int, index: int = 0) -> Message:
    """A message whose encoded form is exactly `size` bytes long."""
    spare = size - len(a_message(index, value="").encode())
    if spare < 0:
        raise ValueError(f"no message is as small as {size} bytes")
    message = a_message(index, value="x" * spare)
    assert len(message.encode()) == size
    return message


def a_done(index: int = 0, value: Any = None, *, bag: str = "bag", **fields: Any) -> Result:
    """A result of a task that ended well."""
    return Result.done(bag, index, value=value, **fields)


def a_failed(index: int = 0, message: str = "no", *, bag: str = "bag", **fields: Any) -> Result:
    """A result of a task whose function raised ValueError."""
    failure = Failure(
        reason=Reason.RAISED, type="ValueError", message=message, traceback='File "t.py", line 1'
    )
    return Result.failed(bag, index, failure, **fields)


def an_expired(index: int = 0, message: str = "late", *, bag: str = "bag", **fields: Any) -> Result:
    """A result of a task that was not started in time."""
    return Result.expired(bag, index, message, **fields)


def a_portion(results: Sequence[Result]) -> Portion:
    """Of results of consecutive tasks of one bag, all of them done."""
    lines = b"".join(line_of(result) + b"\n" for result in results)
    return Portion(results[0].bag, results[0].index, len(results), lines)


def a_status(worker: str = "worker-1", **fields: Any) -> WorkerStatus:
    """A heartbeat."""
    defaults: dict[str, Any] = {"host": "host", "pid": 1, "slots": 2}
    return WorkerStatus(worker=worker, **(defaults | fields))


class _First(msgspec.Struct):
    first: int


_FIRST = msgspec.json.Decoder(_First)

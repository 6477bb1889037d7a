"""A moto server that keeps requests apart, and whose clock can be moved: `python moto_server.py FILE [options of moto_server]`.

moto itself gives one SQS message to two requests that come together, and of two updates of a DynamoDB item
that isn't there yet it forgets one: AWS does neither. So here a receive waits for the other, and so does a write.

Its time is ahead of the true one by the seconds in FILE (`-`: none), which is replaced, never written to; a second number
there is a time (UTC, since the epoch) at which the true one stands still, but for a microsecond at each look.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moto.core.utils
from moto.server import main

FILE = None if sys.argv[1] == "-" else Path(sys.argv[1])
PAUSE_S = 0.2
"""Between two looks of a request that waits, for what became visible meanwhile."""
true_time = moto.core.utils.utcnow
looks = itertools.count()


@functools.lru_cache(1)
def read_at(inode: int, changed_ns: int) -> list[float]:
    """What is in the file, whose look costs little as long as it is the same one: each receive takes many."""
    assert FILE is not None
    return [float(word) for word in FILE.read_text().split()]


def utcnow() -> datetime.datetime:
    assert FILE is not None
    status = FILE.stat()
    ahead_s, *stands_at = read_at(status.st_ino, status.st_mtime_ns)
    now = true_time()
    if stands_at:
        now = moto.core.utils.utcfromtimestamp(0) + datetime.timedelta(
            seconds=stands_at[0], microseconds=next(looks)
        )
    return now + datetime.timedelta(seconds=ahead_s)


def take_singly() -> None:
    from moto.sqs.models import SQSBackend

    lock, take = threading.Lock(), SQSBackend.receive_message

    def receive_message(
        self: Any, name: str, count: int, wait: int, visibility: int, names: list[str] | None = None
    ) -> Any:
        until_s = time.monotonic() + wait
        while True:
            with lock:
                taken = take(self, name, count, 0, visibility, names)
            if taken or time.monotonic() >= until_s:
                return taken
            self.get_queue(name).wait_for_messages(PAUSE_S)

    SQSBackend.receive_message = receive_message  # type: ignore[assignment,method-assign]


def write_singly() -> None:
    from moto.dynamodb.models import DynamoDBBackend

    lock = threading.RLock()

    def alone(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **named: Any) -> Any:
            with lock:
                return method(*args, **named)

        return call

    for name in ("put_item", "update_item", "delete_item", "transact_write_items"):
        setattr(DynamoDBBackend, name, alone(getattr(DynamoDBBackend, name)))


def check_once() -> None:
    """moto checks the whole of an update for each of its clauses, all of which lie in one another: here just the outermost,
    which all others are in."""
    from moto.dynamodb.parsing.validators import ActionCountValidator, OverlappingPathsValidator

    def outermost(process: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(process)
        def checked(self: Any, node: Any) -> Any:
            return process(self, node) if node.parent is None else node

        return checked

    for each in (ActionCountValidator, OverlappingPathsValidator):
        each.process = outermost(each.process)  # type: ignore[method-assign]


if __name__ == "__main__":
    if FILE is not None:  # before the services are imported, which takes the function from there
        moto.core.utils.utcnow = utcnow
    take_singly()
    write_singly()
    check_once()
    main(sys.argv[2:])

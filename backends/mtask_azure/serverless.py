"""A function for Azure Functions: it runs the message of a queue trigger.

    import azure.functions as func
    import mtask_azure

    app = func.FunctionApp()

    @app.queue_trigger(arg_name="message", queue_name="reads", connection="AzureWebJobsStorage")
    def run(message: func.QueueMessage) -> None:
        mtask_azure.queue_handler(message)

The host holds the message while the function runs, renews that itself, deletes the message when the function returns, and
gives it back when it raises; what it has given out `maxDequeueCount` times goes to `NAME-poison` (Azure Functions, "Azure
Queue storage trigger"). So what there is no time for is sent again as a copy, which counts as no death.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from mtask.errors import MtaskError, UnavailableError, UsageError
from mtask.model import Delivery, Message
from mtask_azure.bodies import from_text

if TYPE_CHECKING:
    from mtask.manager import Manager
    from mtask.queue import Queue, QueueLimits
    from mtask_azure.queue import AzureQueue

__all__ = ["queue_handler"]

DEFAULT_S = 300.0
"""The shortest default of all plans: of the Consumption plan."""
LONGEST_S = 86400.0
_NAME = f"functions-{os.environ.get('WEBSITE_SITE_NAME', '')}-{secrets.token_hex(4)}".replace("--", "-")
"""Of the worker, as long as Azure keeps this process for one message after another: else `mtask status` would show a
worker a message."""
_busy = threading.Lock()
"""Held by whoever goes by that name: Azure calls functions side by side, unless told otherwise."""


class Triggered(Protocol):
    """What a queue trigger hands over, as far as it is used here: `azure.functions.QueueMessage`."""

    @property
    def dequeue_count(self) -> int | None: ...

    def get_body(self) -> bytes: ...


def queue_handler(message: Triggered) -> None:
    """Run the tasks of a message. When it returns, the message has been dealt with.

    Queue and table are those of MTASK_QUEUE and MTASK_TABLE; the code that the tasks call must be in the function app.
    `functionTimeout` of host.json says how much time there is. Raises MtaskError when nothing could be done for the
    message; Azure then gives it to another invocation.
    """
    from mtask.oneshot import OneShotQueue
    from mtask.serverless import options_within
    from mtask.worker.supervisor import Worker

    options = options_within(_time_s(), "functionTimeout of host.json")
    manager = _manager(*_urls())
    # The host has decoded base64, or, with `messageEncoding` set to `none`, it hasn't.
    body = from_text(message.get_body().decode("utf-8", "surrogateescape"))
    delivery = Delivery(body=body, token=None, deliveries=message.dequeue_count or 1)
    queue = OneShotQueue([delivery], cast("Queue", _Copies(cast("AzureQueue", manager.queue.main))))
    try:
        with _name() as name:
            Worker(queue, manager.table, options, name=name).run(until=queue.settled)
        queue.give_back_rest()
    except MtaskError as error:
        if not queue.settled():
            raise
        print(f"mtask: {error}", file=sys.stderr, flush=True)
    if not queue.settled():
        raise UnavailableError("the message could not be dealt with: it goes to another invocation")


@contextmanager
def _name() -> Iterator[str]:
    """Of a worker: two that run at the same time have different ones."""
    alone = _busy.acquire(blocking=False)
    try:
        yield _NAME if alone else f"{_NAME}-{secrets.token_hex(2)}"
    finally:
        if alone:
            _busy.release()


class _Copies:
    """The queue, whose `release` sends a copy: what the host holds only the host can give back, as a failure."""

    def __init__(self, queue: AzureQueue) -> None:
        self._queue = queue

    @property
    def limits(self) -> QueueLimits:
        return self._queue.limits

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        self._queue.send(messages, delay_s=delay_s)

    def lane(self, name: str) -> Queue:
        return self._queue.lane(name)

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        from mtask.giveback import copy_of

        for delivery in deliveries:
            copy = copy_of(delivery)
            self._queue.send_body(delivery.body if copy is None else copy.encode(), delay_s=delay_s)


def _time_s() -> float:
    """`functionTimeout` of the app's host.json, as `00:05:00`; `-1` is no limit."""
    folder = os.environ.get("AzureWebJobsScriptRoot") or os.getcwd()  # noqa: SIM112
    with suppress(OSError, ValueError, AttributeError):
        text = str(
            json.loads((Path(folder) / "host.json").read_text(encoding="utf-8")).get("functionTimeout")
        )
        if text == "-1":
            return LONGEST_S
        if found := re.fullmatch(r"(?:(\d+)\.)?(\d+):(\d\d):(\d\d)", text):
            days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
            return min(LONGEST_S, days * 86400 + hours * 3600 + minutes * 60.0 + seconds)
    return DEFAULT_S


def _urls() -> tuple[str, str]:
    """Queue and table. Raises UsageError."""
    from mtask.settings import find_urls

    urls = find_urls()
    if not urls.queue.startswith("azureq:"):
        raise UsageError(
            f"MTASK_QUEUE must name the queue that triggers this function, as azureq://mystorage/reads, not {urls.queue!r}"
        )
    return urls.queue, urls.table


@functools.cache
def _manager(queue: str, table: str) -> Manager:
    """Opened once for all messages that Azure gives this process."""
    from mtask.manager import connect

    return connect(queue, table)

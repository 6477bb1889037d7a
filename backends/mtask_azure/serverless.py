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
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from mtask.errors import MessageError, MtaskError, UnavailableError, UsageError
from mtask.model import Delivery, Message
from mtask_azure.bodies import from_text

if TYPE_CHECKING:
    from mtask.manager import Manager
    from mtask.queue import Queue, QueueLimits
    from mtask.worker.options import Options
    from mtask_azure.queue import AzureQueue

__all__ = ["queue_handler"]

DEFAULT_S = 300.0
"""The shortest default of all plans: of the Consumption plan."""
LONGEST_S = 86400.0
LEAST_S = 10.0
"""In less time nothing can be run and written down."""
MARGIN_S = (5.0, 10.0)
"""For the last writes, at least and at most."""
GRACE_S = 30.0
"""What runs may take so long to end once the time is nearly over, at most."""
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
    from mtask.worker.supervisor import Worker

    options = _options(_time_s())
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
        for delivery in deliveries:
            self._queue.send_body(_with_deaths(delivery), delay_s=delay_s)


def _with_deaths(delivery: Delivery) -> bytes:
    """The body of a copy that forgets no death; what can't be read here, as it is."""
    try:
        message = Message.decode(delivery.body)
    except MessageError:
        return delivery.body
    return msgspec.structs.replace(message, deaths=message.deaths + delivery.deliveries - 1).encode()


def _options(left_s: float) -> Options:
    """So that all is over before the function's time is. Raises UsageError where that can't be."""
    from mtask.worker.capabilities import cpus_of_machine
    from mtask.worker.options import Options

    if left_s < LEAST_S:
        raise UsageError(
            f"functionTimeout of host.json is {left_s:.1f} s; make it {LEAST_S:.0f} s at the very least, and several times "
            "what a task takes"
        )
    margin_s = min(max(MARGIN_S[0], left_s / 6), MARGIN_S[1])
    grace_s = min(GRACE_S, (left_s - margin_s) / 3)
    runtime_s = left_s - margin_s - grace_s
    return Options(
        slots=_slots() or cpus_of_machine(),
        grace_s=grace_s,
        max_runtime_s=runtime_s,
        timeout_s=runtime_s,  # what began at once and isn't done by then never will be
        checkpoints=os.environ.get("MTASK_CHECKPOINTS") or os.path.join(tempfile.gettempdir(), "checkpoints"),
        path=tuple(part for part in sys.path if part),
        lanes=False,
    )


def _slots() -> int | None:
    text = os.environ.get("MTASK_SLOTS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"MTASK_SLOTS must be a number from 1 on, not {text!r}")
    return int(text)


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

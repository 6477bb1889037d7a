"""A WSGI application that runs the messages that Pub/Sub pushes to it, for Cloud Run: `python -m mtask_gcp.push`.

One message a request, as one-shot delivery: the answer 204 acknowledges it, 503 sends it to another request. The format of
requests, and what answers mean: https://cloud.google.com/pubsub/docs/push. Cloud Run checks who calls; this doesn't. Told to stop
(SIGTERM, 10 s ahead), the server gives back what it runs, and ends.

    MTASK_QUEUE, MTASK_TABLE    as everywhere
    MTASK_SLOTS                 tasks at a time; by default as many as there are CPUs
    MTASK_PUSH_S                the subscription's deadline, by which the answer must be there; 600
    MTASK_CHECKPOINTS           a place for tasks that save their state
    PORT                        where the server listens; 8080
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec

from mtask.errors import MtaskError, UsageError
from mtask.serverless import number_of, options_within
from mtask_gcp.delays import Kind, Received
from mtask_gcp.names import physical, subscription_path

if TYPE_CHECKING:
    from mtask.manager import Manager
    from mtask.worker.supervisor import Worker
    from mtask_gcp.queue import PubSubQueue

__all__ = ["app", "main"]

DEADLINE_S = 600.0
"""The longest that Pub/Sub waits for an answer."""
MOST_BYTES = 16 * 1024 * 1024
"""Of a request: a message of 10 MB in base64, and what comes with it."""

DONE, AGAIN = "204 No Content", "503 Service Unavailable"
_NAME = f"push-{os.environ.get('K_SERVICE', '')}-{secrets.token_hex(4)}".replace("--", "-")
"""Of the worker, as long as this process lives."""
_one_at_a_time = threading.Lock()
_working: list[Worker] = []
"""Those that run something, for who is told to stop."""
_stopping = threading.Event()
STOP_S = 4.0
"""What runs may take so long to end then."""


class _Message(msgspec.Struct, rename="camel"):
    data: str = ""
    attributes: dict[str, str] = {}
    message_id: str = ""
    publish_time: datetime | None = None


class _Push(msgspec.Struct, rename="camel"):
    message: _Message
    subscription: str
    delivery_attempt: int = 0
    """Only there if the subscription has a dead-letter policy."""


class _Answer(NamedTuple):
    status: str
    text: str = ""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application, for any server that speaks WSGI; it runs one message at a time."""
    arrived_s = time.monotonic()
    try:
        status, text = _answer(environ, arrived_s)
    except MtaskError as error:
        status, text = AGAIN, str(error)
    if text:
        print(f"mtask: {text}", file=sys.stderr, flush=True)
    body = f"{text}\n".encode() if text and status != DONE else b""
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, headers if status != DONE else [])
    return [body] if body else []


def _answer(environ: dict[str, Any], arrived_s: float) -> _Answer:
    """Raises MtaskError: then the message comes again."""
    if environ.get("REQUEST_METHOD") == "GET":
        return _Answer("200 OK")
    if environ.get("REQUEST_METHOD") != "POST":
        return _Answer("405 Method Not Allowed", "Pub/Sub pushes with POST")
    length = environ.get("CONTENT_LENGTH") or ""
    if not length.isdecimal() or int(length) > MOST_BYTES:
        return _Answer("413 Content Too Large", f"a request of {length or 'unknown'} bytes")
    body = environ["wsgi.input"].read(int(length))
    try:
        push = msgspec.json.decode(body, type=_Push)
        received = _received(push)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        return _Answer("400 Bad Request", f"this is no push of Pub/Sub: {error}")
    with _one_at_a_time:
        return _run(push, received, arrived_s)


def _received(push: _Push) -> Received:
    at = push.message.publish_time.timestamp() if push.message.publish_time else time.time()
    body = base64.b64decode(push.message.data, validate=True)
    return Received("", body, push.message.attributes, at, push.delivery_attempt)


def _run(push: _Push, received: Received, arrived_s: float) -> _Answer:
    from mtask.oneshot import OneShotQueue
    from mtask.worker.supervisor import Worker

    manager = _manager(*_urls(push.subscription))
    left_s = _deadline_s() - (time.monotonic() - arrived_s)
    options = options_within(left_s, "MTASK_PUSH_S, with a concurrency of 1,")
    main = cast("PubSubQueue", manager.queue.main)
    due, delivery = main.handed(received, left_s)
    if due.kind is Kind.EARLY:
        return _Answer(AGAIN)  # Pub/Sub waits longer and longer between two tries
    if due.kind is Kind.ANEW:
        main.publish_anew(due.envelope)
        return _Answer(DONE)
    queue, trouble = OneShotQueue([delivery], main), ""
    worker = Worker(queue, manager.table, options, name=_NAME)
    _working.append(worker)
    if _stopping.is_set():  # before there was anybody to tell
        worker.drain("told to stop", grace_s=STOP_S)
    try:
        worker.run(until=queue.settled)
        queue.give_back_rest()
    except MtaskError as error:
        trouble = str(error)
    finally:
        _working.remove(worker)
    # What was given back was published anew: this one is done with.
    return _Answer(DONE if not queue.undone() or delivery.token.lease.ended else AGAIN, trouble)


def _urls(subscription: str) -> tuple[str, str]:
    """Queue and table. Raises UsageError for messages of another queue."""
    from mtask.settings import find_urls
    from mtask_gcp.names import address_of

    urls = find_urls()
    if not urls.queue.startswith("pubsub:"):
        raise UsageError(
            f"MTASK_QUEUE is {urls.queue!r}; set it to the queue that pushes, pubsub://PROJECT/NAME"
        )
    address = address_of(urls.queue)
    wanted = subscription_path(address, physical(address))
    if subscription != wanted:
        raise UsageError(f"the message is from {subscription}, and MTASK_QUEUE is {urls.queue} ({wanted})")
    return urls.queue, urls.table


@functools.cache
def _manager(queue: str, table: str) -> Manager:
    """Opened once for all requests of this process."""
    from mtask.manager import connect

    return connect(queue, table)


def _deadline_s() -> float:
    given = number_of("MTASK_PUSH_S")
    return min(float(given), DEADLINE_S) if given else DEADLINE_S


class _Server(WSGIServer):
    serving = False
    """Is there a request whose answer hasn't been sent? Who stops then leaves what was done to be done again."""

    def process_request(self, request: Any, client_address: Any) -> None:
        _Server.serving = True
        try:
            super().process_request(request, client_address)
        finally:
            _Server.serving = False


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Cloud Run logs each request itself."""


def main() -> int:
    """Serve at PORT of all addresses, as Cloud Run wants it, until told to stop."""

    def on_signal(_number: int, _frame: object) -> None:
        _stopping.set()
        if not _Server.serving:
            raise SystemExit(0)
        for worker in _working:
            worker.drain("told to stop", grace_s=STOP_S)

    try:
        port = number_of("PORT") or 8080
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    with make_server("", port, app, _Server, _Quiet) as server:
        print(f"mtask: listening at port {server.server_port}", file=sys.stderr, flush=True)
        while not _stopping.is_set():
            server.handle_request()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Tables in an Azurite of tests, and what goes wrong on the way to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from azure.core.exceptions import ServiceResponseError
from azure.core.pipeline.transport import RequestsTransport

from mtask_azure import AzureTable, client, make_table, open_table
from tests.servers.azure import new_table_url

Hook = Callable[[Any, Callable[[], Any]], Any]
"""Is given a request and what sends it, and gives the answer."""


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


class Hooked(RequestsTransport):
    """A transport that a test looks into: `send` is asked in place of the network, with what sends."""

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        self._hook = hook

    def send(self, request: Any, **options: Any) -> Any:
        sender = super().send
        return self._hook(request, lambda: sender(request, **options))


def create(url: str = "") -> str:
    """A new table with its container; its URL."""
    url = url or new_table_url()
    make_table(url)
    return url


@contextmanager
def hooked(url: str, hook: Hook) -> Iterator[AzureTable]:
    """A client of the table, all of whose requests but the first, by which it is opened, go through `hook`."""
    begun = threading.Event()

    def later(request: Any, send: Callable[[], Any]) -> Any:
        return hook(request, send) if begun.is_set() else send()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "new_transport", lambda: Hooked(later))
        with closing(open_table(url)) as table:
            begun.set()
            yield table


@contextmanager
def killed_at(url: str, request: int) -> Iterator[AzureTable]:
    """A client of the table that is killed just before its request of this number, from 0; the errors of
    its death end with the block."""
    lock, sent = threading.Lock(), 0

    def count(_: Any, send: Callable[[], Any]) -> Any:
        nonlocal sent
        with lock:
            sent += 1
            if sent > request:
                raise Killed
        return send()

    with hooked(url, count) as table:
        try:
            yield table
        except Killed:
            table.died = True  # type: ignore[attr-defined]


def lose_first_answers(lost: list[str]) -> Hook:
    """Each request takes effect, but its first answer never arrives; the client sends it again. `lost` tells which."""
    seen: set[str] = set()

    def send(request: Any, go: Callable[[], Any]) -> Any:
        answer = go()
        identity = f"{request.headers['x-ms-client-request-id']} {request.method}"
        if identity not in seen:
            seen.add(identity)
            lost.append(request.method)
            answer.internal_response.close()
            raise ServiceResponseError("the connection was closed")
        return answer

    return send

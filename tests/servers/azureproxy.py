"""A proxy that answers in the place of Azure Storage, or of Azurite."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.servers.process import serving


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class Request:
    method: str
    path: str
    """With the query."""
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        """Of REST's reference: `Put Message`, …"""
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")[2:]
        if not parts:
            verbs = {"PUT": "Create Queue", "DELETE": "Delete Queue", "GET": "Get Queue Metadata"}
        elif len(parts) == 1:
            verbs = {"POST": "Put Message", "GET": "Get Messages", "DELETE": "Clear Messages"}
            if "peekonly=true" in query:
                verbs["GET"] = "Peek Messages"
        else:
            verbs = {"PUT": "Update Message", "DELETE": "Delete Message"}
        return verbs.get(self.method, self.method)


Rule = Callable[[Request], Answer | None]
"""None: as if it weren't there."""


def error(status: int, code: str, text: str = "as the test wants it") -> Answer:
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    )
    return Answer(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


def table_error(status: int, code: str, text: str = "as the test wants it") -> Answer:
    """As Azure's tables say it ("Status and error codes", the format of JSON)."""
    body = {"odata.error": {"code": code, "message": {"lang": "en-US", "value": text}}}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


class Proxy:
    """Between a client and the server; signatures hold, as they don't cover the port."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.url = ""
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        """Only the last one is asked."""

    def asked(self, operation: str) -> list[Request]:
        return [request for request in self.requests if request.operation == operation]

    @contextmanager
    def rule(self, rule: Rule) -> Iterator[None]:
        self.rules.append(rule)
        yield
        self.rules.remove(rule)

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self.rules[-1](request) if self.rules else None
        return answer or self.forward(request)

    def forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=60
        )
        try:
            connection.request(request.method, request.path, request.body or None, request.headers)
            response = connection.getresponse()
            dropped = {"transfer-encoding", "content-length", "connection", "keep-alive"}
            kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            return Answer(response.status, response.read(), kept)
        finally:
            connection.close()


@contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = proxy.answer(Request(self.command, self.path, dict(self.headers.items()), body))
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def log_message(self, *args: Any) -> None:
            pass

    with serving(Handler) as address:
        proxy.url = f"http://{address}"
        yield proxy

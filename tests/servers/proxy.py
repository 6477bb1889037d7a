"""An HTTP server between a client and one of AWS's protocols in JSON, which can answer in the server's place."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.servers.process import serving


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Request:
    """As it came; `body` may be changed before `forward`."""

    operation: str
    body: dict[str, Any]
    headers: dict[str, str]
    text: str
    forward: Callable[[], Answer] = field(repr=False, default=lambda: Answer(500, {}, {}))


Rule = Callable[[Request], Answer | None]
"""None: as if it weren't there."""


class Proxy:
    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        """Only the last one is asked."""

    def asked(self, operation: str) -> list[Request]:
        return [request for request in self.requests if request.operation == operation]

    def answer(self, request: Request) -> Answer:
        request.forward = lambda: self._forward(request)
        self.requests.append(request)
        answer = self.rules[-1](request) if self.rules else None
        return answer or request.forward()

    @contextmanager
    def rule(self, rule: Rule) -> Iterator[None]:
        self.rules.append(rule)
        yield
        self.rules.remove(rule)

    def _forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=60
        )
        try:
            names = ("x-amz-target", "content-type", "authorization", "x-amz-date")
            headers = {name: value for name, value in request.headers.items() if name in names}
            connection.request("POST", "/", json.dumps(request.body).encode(), headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower().startswith("x-amzn")}
            return Answer(response.status, json.loads(response.read() or b"{}"), kept)
        finally:
            connection.close()


def error(code: str, text: str = "as the test wants it", *, status: int = 400, kind: str = "") -> Answer:
    """As SQS says it: `code` is that of its older protocol, which clients see; `kind` the exception's name."""
    body = {"__type": f"com.amazonaws.sqs#{kind or code}", "message": text}
    return Answer(status, body, {"x-amzn-query-error": f"{code};Sender"})


@contextmanager
def proxy_to(upstream: str) -> Iterator[tuple[Proxy, str]]:
    """It, and its URL."""
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            operation = headers.get("x-amz-target", "").rpartition(".")[2]
            answer = proxy.answer(Request(operation, json.loads(text or "{}"), headers, text))
            payload = json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: Any) -> None:
            pass

    with serving(Handler) as address:
        yield proxy, f"http://{address}"

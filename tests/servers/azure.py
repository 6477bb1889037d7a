"""Azurite's queue service, with a clock that can be moved, and a proxy that answers in its place.

Azurite is Microsoft's emulator of Azure Storage. A test that uses `azurite` has the environment set for it: a connection
string with an account of its own.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.servers.process import answers, free_port, missing, running

if TYPE_CHECKING:
    from azure.storage.queue import QueueClient, QueueServiceClient

    from mtask_azure.queue import AzureQueue

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "mtasktests"
KEY = base64.b64encode(b"a key of 64 bytes, that opens nothing but a server of these tests").decode()
MODULES = Path(__file__).parents[2] / ".servers/node_modules"
CREDENTIALS = (
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USERNAME",
    "IDENTITY_ENDPOINT",
)


def connection_string(url: str, *, account: str = ACCOUNT, key: str = KEY) -> str:
    return f"AccountName={account};AccountKey={key};QueueEndpoint={url}/{account};"


class Azurite:
    """A server, its clock, and what tests do there beside mtask."""

    def __init__(self, url: str, file: Path) -> None:
        self.url, self._file = url, file
        self._ahead_s = 0.0
        self._stands_at: float | None = None
        self._write()  # another test may have moved it
        self._numbers = itertools.count()

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds
        self._write()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Only `advance` lets time pass: nothing may be waited for."""
        self._stands_at = time.time()
        self._write()
        try:
            yield
        finally:
            self._stands_at = None
            self._write()

    def _write(self) -> None:
        stands_at = f" {self._stands_at}" if self._stands_at else ""
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._ahead_s}{stands_at}")
        new.rename(self._file)

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._ahead_s)

    def name(self) -> str:
        return f"queue{next(self._numbers)}-{time.monotonic_ns()}"

    def new(self) -> str:
        """The URL of a new queue."""
        from mtask_azure.setup_queue import make_queue

        url = f"azureq://{ACCOUNT}/{self.name()}"
        make_queue(url)
        return url

    def open(self, url: str) -> AzureQueue:
        from mtask_azure.queue import AzureQueue

        return AzureQueue.open(url)

    def service(self) -> QueueServiceClient:
        from azure.storage.queue import QueueServiceClient

        return QueueServiceClient.from_connection_string(connection_string(self.url))

    def client(self, url: str, suffix: str = "") -> QueueClient:
        """Of the queue at this URL of mtask."""
        return self.service().get_queue_client(url.rpartition("/")[2] + suffix)

    def signed(
        self, *, permission: str = "rwdlacup", types: str = "sco", ends_in: timedelta = timedelta(hours=1)
    ) -> str:
        """A connection string with a shared access signature."""
        from azure.storage.queue import AccountSasPermissions, ResourceTypes, generate_account_sas

        sas = generate_account_sas(
            ACCOUNT,
            KEY,
            ResourceTypes.from_string(types),
            AccountSasPermissions.from_string(permission),
            expiry=self.now() + ends_in,
            start=self.now() - timedelta(days=2),
            protocol="https,http",
        )
        return f"QueueEndpoint={self.url}/{ACCOUNT};SharedAccessSignature={sas};"


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """For the whole session: name what you make as nobody else does."""
    program = MODULES / "azurite/dist/src/queue/main.js"
    node = shutil.which("node")
    if node is None or not program.is_file():
        missing("azurite", "`make servers` does it, or `npm install azurite --prefix .servers`")
    folder = tmp_path_factory.mktemp("azurite")
    clock = folder / "clock"
    clock.write_text("0")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    args = [
        *(node, "-r", str(Path(__file__).with_name("azurite_clock.js")), str(program)),
        *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
        *("--location", str(folder), "--queueHost", "127.0.0.1", "--queuePort", str(port)),
    ]
    patch = pytest.MonkeyPatch()
    patch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{KEY}")
    patch.setenv("MTASK_TEST_CLOCK", str(clock))
    try:
        with running(args, lambda: answers(url), folder / "log"):
            yield url, clock
    finally:
        patch.undo()


def point_at(text: str, patch: pytest.MonkeyPatch) -> None:
    """Have the environment say this connection string, and no other credentials."""
    for name in CREDENTIALS:
        patch.delenv(name, raising=False)
    patch.setenv(CONNECTION_STRING, text)


@pytest.fixture
def azurite(azurite_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Azurite:
    url, file = azurite_server
    point_at(connection_string(url), monkeypatch)
    return Azurite(url, file)


# -- in the server's place --------------------------------------------------------------------------


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

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def environment(url: str) -> dict[str, str]:
    """For processes: without other credentials."""
    kept = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
    return kept | {CONNECTION_STRING: connection_string(url)}

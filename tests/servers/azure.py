"""Azurite, Microsoft's emulator of Azure Storage: queues, with a clock that can be moved, tables, and blobs.

A test that uses `azurite` has the environment set for it: a connection string with an account of its own, and no other
credentials. Name what you make as nobody else does: the server is there for the whole session.
"""

from __future__ import annotations

import base64
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.servers.process import answers, free_port, missing, running

if TYPE_CHECKING:
    from azure.storage.queue import QueueClient, QueueServiceClient

    from mtask_azure.queue import AzureQueue

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "mtasktests"
KEY = base64.b64encode(b"a key of 64 bytes, that opens nothing but a server of these tests").decode()
SERVICES = ("queue", "table", "blob")
PROGRAMS = Path(__file__).parents[2] / ".servers/node_modules/azurite/dist/src"
CREDENTIALS = (
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USERNAME",
    "IDENTITY_ENDPOINT",
)


class Servers:
    """A process for each service, on a port of its own, with its data in a folder below this one; begun when it is asked
    for, and begun again on the same port after it was stopped."""

    def __init__(self, folder: Path) -> None:
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self._folder = folder
        self._ports = {service: free_port() for service in SERVICES}
        self._stacks: dict[str, ExitStack] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def url(self, service: str) -> str:
        """Of a server that need not run."""
        return f"http://127.0.0.1:{self._ports[service]}"

    def start(self, service: str) -> None:
        """Unless it runs."""
        if service in self._stacks:
            return
        program, node = PROGRAMS / service / "main.js", shutil.which("node")
        if node is None or not program.is_file():
            missing("azurite", "`make servers` does it, or `npm install azurite --prefix .servers`")
        folder = self._folder / service
        folder.mkdir(exist_ok=True)
        moved = ["-r", str(Path(__file__).with_name("azurite_clock.js"))] if service == "queue" else []
        args = [
            *(node, *moved, str(program), "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
            *("--location", str(folder)),
            *(f"--{service}Host", "127.0.0.1", f"--{service}Port", str(self._ports[service])),
        ]
        with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
            patch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{KEY}")
            patch.setenv("MTASK_TEST_CLOCK", str(self.clock))
            server = running(args, lambda: answers(self.url(service)), folder / "log")
            self._processes[service] = stack.enter_context(server)
            self._stacks[service] = stack.pop_all()

    def stop(self, service: str) -> None:
        """It stores what it has, as it does otherwise only every 5 s: what a killed one has acknowledged is lost."""
        self._processes[service].send_signal(signal.SIGINT)
        self._processes[service].wait(30)
        self._stacks.pop(service).close()

    def close(self) -> None:
        for stack in self._stacks.values():
            stack.close()

    def connection(self, *, account: str = ACCOUNT, key: str = KEY, **endpoints: str) -> str:
        """A connection string. `endpoints`: others of services, by their names, as a proxy's."""
        return f"AccountName={account};AccountKey={key};{self._endpoints(account, endpoints)}"

    def signed(
        self,
        *,
        permission: str = "rwdlacup",
        types: str = "sco",
        ends_in: timedelta = timedelta(hours=1),
        now: datetime | None = None,
    ) -> str:
        """A connection string with a shared access signature for all services."""
        from azure.storage.queue import (
            AccountSasPermissions,
            ResourceTypes,
            generate_account_sas,
        )

        now = now or datetime.now(UTC)
        sas = generate_account_sas(
            ACCOUNT,
            KEY,
            ResourceTypes.from_string(types),
            AccountSasPermissions.from_string(permission),
            expiry=now + ends_in,
            start=now - timedelta(days=2),
            services="bqt",
            protocol="https,http",
        )
        return f"{self._endpoints(ACCOUNT, {})}SharedAccessSignature={sas};"

    def _endpoints(self, account: str, others: dict[str, str]) -> str:
        urls = {service: others.get(service, self.url(service)) for service in SERVICES}
        return "".join(f"{name.capitalize()}Endpoint={url}/{account};" for name, url in urls.items())


class Azurite:
    """What a test does there beside mtask; the clock is the queues'."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.url = servers.url("queue")
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
        new = self.servers.clock.with_suffix(".new")
        new.write_text(f"{self._ahead_s}{stands_at}")
        new.rename(self.servers.clock)

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._ahead_s)

    def name(self) -> str:
        return f"queue{next(self._numbers)}-{time.monotonic_ns()}"

    def new(self) -> str:
        """The URL of a new queue."""
        from mtask_azure import make_queue

        url = f"azureq://{ACCOUNT}/{self.name()}"
        make_queue(url)
        return url

    def open(self, url: str) -> AzureQueue:
        from mtask_azure.queue import AzureQueue

        return AzureQueue.open(url)

    def service(self) -> QueueServiceClient:
        from azure.storage.queue import QueueServiceClient

        return QueueServiceClient.from_connection_string(self.connection())

    def client(self, url: str, suffix: str = "") -> QueueClient:
        """Of the queue at this URL of mtask."""
        return self.service().get_queue_client(url.rpartition("/")[2] + suffix)

    def connection(self, *, account: str = ACCOUNT, key: str = KEY, **endpoints: str) -> str:
        return self.servers.connection(account=account, key=key, **endpoints)

    def signed(
        self, *, permission: str = "rwdlacup", types: str = "sco", ends_in: timedelta = timedelta(hours=1)
    ) -> str:
        return self.servers.signed(permission=permission, types=types, ends_in=ends_in, now=self.now())


@contextmanager
def azurite_in(folder: Path) -> Iterator[Servers]:
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture(scope="session")
def azurite_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with azurite_in(tmp_path_factory.mktemp("azurite")) as servers:
        yield servers


@pytest.fixture
def azurite(azurite_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """Queues."""
    azurite_servers.start("queue")
    point_at(azurite_servers.connection(), monkeypatch)
    return Azurite(azurite_servers)


@pytest.fixture
def azurite_tables(azurite_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Tables and blobs."""
    for service in ("table", "blob"):
        azurite_servers.start(service)
    point_at(azurite_servers.connection(), monkeypatch)
    return azurite_servers


@pytest.fixture
def blobs(azurite_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection string."""
    azurite_servers.start("blob")
    point_at(azurite_servers.connection(), monkeypatch)
    return azurite_servers.connection()


def new_table_url() -> str:
    """Of a table that isn't there yet."""
    return f"azuretable://{ACCOUNT}/t{uuid4().hex[:12]}"


def point_at(text: str, patch: pytest.MonkeyPatch) -> None:
    """Have the environment say this connection string, and no other credentials."""
    for name in CREDENTIALS:
        patch.delenv(name, raising=False)
    patch.setenv(CONNECTION, text)


def without_credentials() -> dict[str, str]:
    """The environment, for processes."""
    return {name: value for name, value in os.environ.items() if name not in (*CREDENTIALS, CONNECTION)}

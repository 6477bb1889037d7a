"""Azurite, Microsoft's emulator of Azure's storage: its tables and blobs, each a process of its own.

A test that uses `azurite` has a connection string in its environment.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers.process import answers, free_port, missing, running

NODE = Path(__file__).parents[2] / ".servers/node_modules/.bin"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and its key, which are the same everywhere:
https://learn.microsoft.com/azure/storage/common/storage-connect-azurite."""
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


class Azurite:
    """The two servers, with their data in one folder; each can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = {"table": free_port(), "blob": free_port()}
        self._stacks: dict[str, ExitStack] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for service in self.ports:
            self.start(service)

    def start(self, service: str) -> None:
        program = f"azurite-{service}"
        path = shutil.which(program) or shutil.which(program, path=str(NODE))
        if path is None:
            missing("azurite", "`make servers` does it, or `npm install azurite --prefix .servers`")
        port = self.ports[service]
        args = [
            path,
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
            "--location",
            str(self._folder),
        ]
        args += [f"--{service}Host", "127.0.0.1", f"--{service}Port", str(port)]
        stack = ExitStack()
        log = self._folder / f"{service}.log"
        process = stack.enter_context(running(args, lambda: answers(f"http://127.0.0.1:{port}/"), log))
        self._processes[service] = process
        self._stacks[service] = stack

    def stop(self, service: str) -> None:
        """It stores what it has, as it does otherwise only every 5 s: what a killed one has acknowledged is lost."""
        self._processes[service].send_signal(signal.SIGINT)
        self._processes[service].wait(30)
        self._stacks.pop(service).close()

    def close(self) -> None:
        for stack in self._stacks.values():
            stack.close()

    def connection(self, *, key: str = KEY, table: str = "") -> str:
        """`table`: another endpoint of tables, as of a proxy."""
        where = {service: f"http://127.0.0.1:{port}/{ACCOUNT}" for service, port in self.ports.items()}
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
            f"TableEndpoint={table or where['table']};BlobEndpoint={where['blob']};"
        )


@contextmanager
def azurite_in(folder: Path) -> Iterator[Azurite]:
    server = Azurite(folder)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """For the whole session: name what you make as nobody else does."""
    with azurite_in(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def azurite(azurite_server: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """In the environment."""
    monkeypatch.setenv(CONNECTION, azurite_server.connection())
    return azurite_server


def new_url() -> str:
    """Of a table that isn't there yet."""
    return f"azuretable://{ACCOUNT}/t{uuid4().hex[:12]}"

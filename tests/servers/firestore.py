"""Google's emulator of Firestore, and one of Cloud Storage (gcp-storage-emulator, which isn't Google's).

A test that uses `firestore` has its environment set for the client. Nothing is imported here of what may not be installed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from mtask.errors import UnavailableError
from tests.servers.google_sdk import java_with
from tests.servers.process import answers, free_port, running

if TYPE_CHECKING:
    from mtask_gcp import FirestoreTable

JAR = "cloud-firestore-emulator/cloud-firestore-emulator.jar"
MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
PROJECT = "mtask-tests"


def emulator_args(port: int, *more: str) -> list[str]:
    """The command that starts it; without it, the test is skipped."""
    return [*java_with(JAR), MAIN, "--host=127.0.0.1", f"--port={port}", *more]


def new_url(name: str = "") -> str:
    """Of a table that isn't there yet."""
    return f"firestore://{PROJECT}/{name or 't-' + uuid4().hex[:12]}"


def create_table() -> str:
    """A new table; its URL."""
    from mtask_gcp import make_table

    url = new_url()
    make_table(url)
    return url


@pytest.fixture(scope="session")
def firestore_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of an emulator, for the whole session: name what you make as nobody else does."""
    pytest.importorskip("google.cloud.firestore_v1", reason="pip install 'mtask[gcp]'")
    port = free_port()
    args = emulator_args(port)
    with running(
        args, lambda: answers(f"http://127.0.0.1:{port}/"), tmp_path_factory.mktemp("firestore") / "log"
    ):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def storage_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gcp_storage_emulator", reason="pip install gcp-storage-emulator")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    args = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    args += ["--in-memory"]
    with running(args, lambda: answers(url), tmp_path_factory.mktemp("storage") / "log"):
        yield url


@pytest.fixture
def firestore(firestore_host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_host)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    return firestore_host


@pytest.fixture
def storage(firestore: str, storage_host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_host)
    return storage_host


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


@contextmanager
def killed_at(url: str, request: int, *, half: bool = False) -> Iterator[FirestoreTable]:
    """A client of the table that is killed just before its request of this number, from 0; the errors of its death end with
    the block. `half`: if that writes, every other of its writes is done, as may happen in Firestore's BatchWrite."""
    from mtask_gcp import open_table

    with closing(open_table(url)) as table:
        once, lock, sent = table._db._once, threading.Lock(), 0

        def mortal(method: str, message: Any) -> Any:
            nonlocal sent
            with lock:
                sent += 1
                dies, first = sent > request, sent == request + 1
            if not dies:
                return once(method, message)
            if half and first and method == "batch_write":
                message.writes = message.writes[::2]
                once(method, message)
            raise Killed

        table._db._once = mortal  # type: ignore[method-assign]
        try:
            yield table
        except Killed:
            table.died = True  # type: ignore[attr-defined]


def lose_first_answers(table: FirestoreTable) -> list[str]:
    """Each request takes effect, but its first answer never arrives, and it is sent again. The list tells which."""
    once, lost = table._db._once, list[str]()
    seen: list[Any] = []

    def send(method: str, message: Any) -> Any:
        answer = once(method, message)
        if not any(message is each for each in seen):
            seen.append(message)
            lost.append(method)
            raise UnavailableError("the answer is lost")
        return answer

    table._db._once = send  # type: ignore[method-assign]
    return lost

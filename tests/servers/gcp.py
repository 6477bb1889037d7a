"""Google's own emulator of Pub/Sub, each on a free port; it keeps all in memory.

A test that uses `pubsub` has PUBSUB_EMULATOR_HOST set.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers.google_sdk import java_with
from tests.servers.process import free_port, running

JAR = "pubsub-emulator/lib/*-all.jar"
MAIN = "com.google.cloud.pubsub.testing.v1.Main"


class Emulator:
    """One that can be killed, and started again with nothing in it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._args = [*java_with(JAR), MAIN, "--host=127.0.0.1", f"--port={self.port}"]
        self._folder, self._runs, self._numbers = folder, itertools.count(), itertools.count()
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        log = self._folder / f"log{next(self._runs)}"
        self._process = self._stack.enter_context(running(self._args, self._answers, log))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._stack.close()

    def url(self) -> str:
        """Of a queue that isn't there yet."""
        return f"pubsub://test-project/q-{uuid4().hex[:10]}"

    def _answers(self) -> bool:
        import grpc

        with grpc.insecure_channel(self.place) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
            except grpc.FutureTimeoutError:
                return False
        return True


@pytest.fixture(scope="session")
def pubsub_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """For the whole session."""
    emulator = Emulator(tmp_path_factory.mktemp("pubsub"))
    try:
        emulator.start()
        yield emulator
    finally:
        emulator.close()


@pytest.fixture
def own_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Of one test, which may kill it."""
    emulator = Emulator(tmp_path)
    try:
        emulator.start()
        yield point_at(emulator, monkeypatch)
    finally:
        emulator.close()


def point_at(emulator: Emulator, patch: pytest.MonkeyPatch) -> Emulator:
    patch.setenv("PUBSUB_EMULATOR_HOST", emulator.place)
    patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    return emulator


@pytest.fixture
def pubsub(pubsub_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    return point_at(pubsub_emulator, monkeypatch)

"""Google's own emulators, as the Google Cloud SDK brings them, and that of Pub/Sub, which keeps all in memory.

A test that uses `pubsub` has PUBSUB_EMULATOR_HOST set.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers.process import free_port, missing, running

HOW = (
    "install the Google Cloud SDK and Java, then `gcloud components install beta pubsub-emulator "
    "cloud-firestore-emulator`"
)
PLACES = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "~/google-cloud-sdk",
    "/opt/google-cloud-sdk",
)
JAR = "pubsub-emulator/lib/*-all.jar"
MAIN = "com.google.cloud.pubsub.testing.v1.Main"


def java_with(jar: str) -> list[str]:
    """The beginning of the command that runs a jar below the SDK's folder `platform`; its main class follows.

    Without Java or the jar, the test is skipped. The heap is small, because many of these may run at once.
    """
    java, found = shutil.which("java"), find_jar(jar)
    if java is None or found is None:
        missing("an emulator of Google's", HOW)
    return [java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp", str(found)]


@functools.cache
def find_jar(jar: str) -> Path | None:
    """Below the SDK's folder: CLOUDSDK_ROOT_DIR, if that is set; else that of `gcloud`, or one of the usual places."""
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        roots = [Path(root)]
    else:
        gcloud = shutil.which("gcloud")
        roots = [Path(gcloud).resolve().parents[1]] if gcloud else []
        roots += [Path(place).expanduser() for place in PLACES]
    return next((found for each in roots for found in sorted(each.glob(f"platform/{jar}"))), None)


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

"""SQS queues of tests, on a moto server whose clock can be moved."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from mtask_aws.queue import SqsQueue
from mtask_aws.setup_queue import make_queue
from tests.servers.aws import point_at
from tests.servers.process import answers, free_port, running

REGION = "us-east-1"


class Sqs:
    """A server, and a clock that queues and server share."""

    def __init__(self, url: str, file: Path) -> None:
        self.url, self._file = url, file
        self._ahead_s = float(file.read_text().split()[0])
        self._stands_at: tuple[float, float] | None = None
        """By the monotonic clock, and since the epoch."""
        self._numbers = itertools.count()

    def clock(self) -> float:
        now_s = self._stands_at[0] if self._stands_at else time.monotonic()
        return now_s + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds
        self._write()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Only `advance` lets time pass: nothing may be waited for."""
        self._stands_at = time.monotonic(), time.time()
        self._write()
        try:
            yield
        finally:
            self._stands_at = None
            self._write()

    def _write(self) -> None:
        stands_at = f" {self._stands_at[1]}" if self._stands_at else ""
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._ahead_s}{stands_at}")
        new.rename(self._file)

    def new(self, *, fifo: bool = False) -> str:
        """The URL of a new queue."""
        url = f"sqs://{REGION}/queue{next(self._numbers)}-{time.monotonic_ns()}" + "?fifo=1" * fifo
        make_queue(url)
        return url

    def open(self, url: str) -> SqsQueue:
        return SqsQueue.open(url, clock=self.clock)

    def client(self) -> object:
        return boto3.client("sqs", region_name=REGION)


@pytest.fixture(scope="session")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("sqs")
    file = folder / "clock"
    file.write_text("0")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = Path(__file__).with_name("moto_server.py")
    args = [sys.executable, str(program), str(file), "-H", "127.0.0.1", "-p", str(port)]
    with running(args, lambda: answers(f"{url}/moto-api/"), folder / "log"):
        yield url, file


@pytest.fixture
def sqs(sqs_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Sqs:
    url, file = sqs_server
    point_at(url, monkeypatch)
    return Sqs(url, file)

"""A platform for functions, as a cloud has one, on this machine: a process is started for each message."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mtask
from examples.arxiv.studies.processes import ROOT, environment
from mtask.model import Delivery, Message

TIME_S = 60.0
"""What a function may take."""


class Execution(NamedTuple):
    """A process that ended well."""

    bag: str
    task: int
    """Its index in the bag."""
    started_at: float
    """UTC."""
    ended_at: float


class Platform:
    """Receives messages, as a cloud's event source does, and deletes those whose function has ended well."""

    def __init__(self, manager: mtask.Manager, folder: Path, *, queue: str, table: str, at_once: int) -> None:
        """`at_once`: how many functions may run."""
        self.executions: list[Execution] = []
        self._queue = manager.queue.main
        self._environment = environment(folder) | {
            "MTASK_QUEUE": queue,
            "MTASK_TABLE": table,
            "MTASK_SLOTS": "1",
            "MTASK_CHECKPOINTS": str(folder / "checkpoints"),
        }
        self._free = threading.Semaphore(at_once)
        self._pool = ThreadPoolExecutor(at_once)
        self._stopped = False

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._serve)
        thread.start()
        try:
            yield
        finally:
            self._stopped = True
            self._queue.wake()
            thread.join()
            self._pool.shutdown()

    def _serve(self) -> None:
        while not self._stopped:
            self._free.acquire()
            got = self._queue.receive(max_messages=1, lease_s=TIME_S + 10, wait_s=0.5)
            for delivery in got:
                self._pool.submit(self._execute, delivery)
            if not got:
                self._free.release()

    def _execute(self, delivery: Delivery) -> None:
        message = Message.decode(delivery.body)
        given = {
            "body": delivery.body.decode(),
            "token": delivery.token,
            "deliveries": delivery.deliveries,
            "time_s": TIME_S,
        }
        started_at = time.time()
        try:
            command = [sys.executable, "-m", "examples.arxiv.studies.function"]
            ended = subprocess.run(
                command, input=json.dumps(given).encode(), cwd=ROOT, env=self._environment, check=False
            )
            if not ended.returncode:  # else it is received again when its lease has run out
                self._queue.delete([delivery])
                self.executions.append(Execution(message.bag, message.first, started_at, time.time()))
        finally:
            self._free.release()

"""Processes that are always ended, with all that they have started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Processes", "free_port"]

GRACE_S = 10.0
MARK = "MTASK_PEERS_MARK"


class Processes:
    """Those started here carry a mark in their environment, which their children inherit: so even children
    that have become daemons are found, and nobody else's process is ended."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The last one first: clients before workers before servers."""
        try:
            for process in reversed(self._started):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
        finally:
            self.kill()
            for process in self._started:
                process.wait()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C reaches us alone. What it prints is in a log."""
        log = self._logs / f"{len(self._started)}-{Path(command[0]).name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                **{"stdout": file, **options},
            )
        self._started.append(process)
        return process

    def wait_for_port(self, port: int, timeout_s: float = 60.0) -> None:
        """Raises RuntimeError if the process started last ends before it listens, or never does."""
        process = self._started[-1]
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{process.args!s} does not listen: {self.said()}")

    def said(self, limit: int = 2000) -> str:
        """The end of what the processes have printed: for an error's message."""
        logs = sorted(self._logs.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-limit:]}" for log in logs)

    def kill(self) -> None:
        """All at once, with all that they have started."""
        for _ in range(10):  # a child may be born while its parent is being ended
            left = [pid for pid in _processes() if f"{MARK}={self._mark}" in _environment(pid)]
            if not left:
                break
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []  # it has ended, or belongs to someone else

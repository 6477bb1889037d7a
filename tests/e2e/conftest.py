"""The command in an empty folder: in this process (fast) or in one of its own."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mtask
from mtask.cli import main

TIMEOUT_S = 60


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """`command("run", …)` is `mtask run …` in `command.folder`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self._capsys, self._patch = folder, capsys, patch
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *args: str, stdin: bytes = b"") -> Outcome:
        """In this process."""
        importlib.invalidate_caches()
        self._capsys.readouterr()
        with self._patch.context() as patch:
            patch.setattr(sys, "argv", ["mtask", *args])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with pytest.raises(SystemExit) as caught:
                main()
        out, err = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, out, err)

    def process(self, *args: str, stdin: str = "", before: tuple[str, ...] = (), **env: str) -> Outcome:
        """In a process of its own; `before`: a command that starts it."""
        done = subprocess.run(
            [*before, sys.executable, "-m", "mtask", *args],
            input=stdin,
            cwd=self.folder,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Likewise, without waiting for its end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "mtask", *args],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=signals_as_usual,
        )
        self.started.append(process)
        return process

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def sent_nothing(self) -> bool:
        """Is there no bag, no block and no message, or not even a database?"""
        path = self.folder / ".mtask" / "mtask.db"
        if not path.exists():
            return True
        connection = sqlite3.connect(path)
        try:
            counts = [
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("bag", "block", "message", "result")
            ]
        finally:
            connection.close()
        return counts == [0, 0, 0, 0]

    def results(self, bag: str, **chosen: Any) -> list[mtask.Result]:
        with mtask.connect() as mt:
            return list(mt.bag(bag).results(**chosen))


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    for name in ("MTASK_QUEUE", "MTASK_TABLE", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Command(tmp_path, capsys, monkeypatch)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def signals_as_usual() -> None:
    """These tests may have been started by nohup, or in the background of a shell."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

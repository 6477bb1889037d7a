"""A real HTCondor pool: `condor/personal-pool`, for the whole session, with everything that its jobs need.

Root's pools are nobody's, and nobody can read neither root's home nor its temporary folders. So what jobs import is
copied into the pool's folder, and they run on an interpreter of the system.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import msgspec
import pytest

from mtask.shipping import pack
from tests.servers.process import missing

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "condor/personal-pool"
NO_PACKAGES = 3
START_S = 600
PATIENCE_S = 90.0
GUARD = """
import shutil, subprocess, sys
sys.stdin.read()
folder, *program = sys.argv[1:]
subprocess.run([*program, "stop", "--folder", f"{folder}/pool"])
shutil.rmtree(folder, ignore_errors=True)
"""
"""Stops the pool when the tests end, in whatever way: their end of the pipe closes."""
TASKS = ROOT / "tests/e2e/condor_tasks.py"


class CondorPool:
    """A pool that runs."""

    def __init__(self, folder: Path, python: str, path: list[str]) -> None:
        self.folder, self.python, self.path = folder, python, path

    def url(self, **options: str) -> str:
        """Of a queue that nobody else uses."""
        name = f"q{uuid4().hex[:8]}"
        given = {
            "folder": str(self.folder / "queues" / name),
            "python": self.python,
            "path": ":".join(self.path),
            "collect": "no",
            **options,
        }
        return f"condor:///{name}?{urlencode(given)}"

    def packages(self, *names: str) -> list[str]:
        """What is in front of the path of an interpreter that has these installed, too."""
        place = self.folder / "packages"
        for name in names:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            if not (place / name).exists():
                shutil.copytree(Path(spec.origin).parent, place / name)
        return [*self.path, str(place)]

    def home(self, temporary: Path, *extras: str) -> Path:
        """mtask with SQLite, this client and those of `extras`, where the pool's user can read it."""
        archive, place = temporary / "code.tar.gz", self.folder / f"home-{uuid4().hex[:8]}"
        packages = [f"mtask_{name}" for name in ("sqlite", "condor", *extras)]
        pack(archive, temporary, packages=packages, extras=["condor", *extras])
        with tarfile.open(archive) as opened:
            opened.extractall(place)
        for path in (place, *place.rglob("*")):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        return place

    def run(self, *args: str) -> str:
        """A program of HTCondor's, as condor_q."""
        return subprocess.run(args, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    def jobs(self, *attributes: str) -> list[list[str]]:
        """All in the queue: cluster, number, and these attributes."""
        lines = self.run("condor_q", "-af", "ClusterId", "ProcId", *attributes).splitlines()
        return [line.split(maxsplit=len(attributes) + 1) for line in lines]

    def kill(self, daemon: str) -> None:
        """SIGKILL to the pool's daemon of this name; its master starts another."""
        master = int((self.folder / "master.pid").read_text())
        for each in Path("/proc").glob("[0-9]*"):
            try:
                text = (each / "stat").read_text()
            except OSError:
                continue
            name, _, rest = text.partition("(")[2].rpartition(")")
            if name == daemon[:15] and int(rest.split()[1]) == master:
                os.kill(int(each.name), signal.SIGKILL)
                return
        pytest.fail(f"no {daemon} runs below {master}")


def wait_until(holds: Callable[[], Any], what: str, longest_s: float = PATIENCE_S) -> Any:
    """HTCondor tells nobody: ask until it is so."""
    deadline_s = time.monotonic() + longest_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"not within {longest_s:.0f} s: {what}"
        time.sleep(0.2)
    return found


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the jobs run; submitting looks at it, too."""
    monkeypatch.syspath_prepend(str(TASKS.parent))


@pytest.fixture(scope="session")
def pool() -> Iterator[CondorPool]:
    with running_pool() as it:
        yield it


@contextmanager
def running_pool(*settings: str) -> Iterator[CondorPool]:
    """It is this process's pool meanwhile: the environment says so. `settings`: lines of its configuration."""
    if importlib.util.find_spec("htcondor2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    folder = Path(tempfile.mkdtemp(prefix=f"mtp-{os.getpid()}-", dir="/tmp"))  # short: it holds unix sockets
    folder.chmod(0o755)
    patch = pytest.MonkeyPatch()
    place, program = str(folder / "pool"), [sys.executable, str(ROOT / "condor/pool.py")]
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(folder), *program], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        started = subprocess.run(
            [*program, "start", "--folder", place, *(word for each in settings for word in ("--set", each))],
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if started.returncode == NO_PACKAGES:
            missing("HTCondor", started.stderr.strip()[-500:])
        assert started.returncode == 0, started.stderr
        for line in started.stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            patch.setenv(name, value.replace("$PATH", os.environ["PATH"]))
        import htcondor2

        htcondor2.reload_config()
        (folder / "pool/queues").mkdir(mode=0o755)
        yield CondorPool(folder / "pool", *_for_jobs(folder / "lib"))
    finally:
        guard.communicate(timeout=60)
        patch.undo()
        if "CONDOR_CONFIG" in os.environ:  # another pool was this process's before
            importlib.import_module("htcondor2").reload_config()


def _for_jobs(place: Path) -> tuple[str, list[str]]:
    """The interpreter for jobs, and what is in front of its path."""
    place.mkdir(mode=0o755)
    shutil.copy(TASKS, place)
    library = Path(msgspec.__file__).parents[1]
    if os.getuid():
        return sys.executable, [str(place), str(ROOT), str(ROOT / "backends"), str(library)]
    python = next((path for name in _PYTHONS if (path := shutil.which(name, path="/usr/bin"))), None)
    if python is None:
        missing(
            f"Python {_PYTHONS[0].removeprefix('python')} in /usr/bin", "root's jobs need one of the system"
        )
    for source in (ROOT / "mtask", *(ROOT / "backends").iterdir(), library / "msgspec"):
        shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    # Nobody may write there, and would compile all of it in each job.
    subprocess.run([python, "-m", "compileall", "-q", str(place)], check=True, timeout=START_S)
    return python, [str(place)]


_VERSION = ".".join(map(str, sys.version_info[:2]))
_PYTHONS = (f"python{_VERSION}",)

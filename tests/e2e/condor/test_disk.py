"""A node whose disk gets full: a real one, of a few megabytes, is where the jobs of a pool work."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.manager import connect
from mtask.model import Counts
from tests.servers.condor import PATIENCE_S, TASKS, CondorPool, running_pool, wait_until
from tests.servers.process import missing

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def small() -> Iterator[CondorPool]:
    """Its jobs work on a disk of 4 MiB."""
    if os.getuid():
        missing("a file system of one's own", "this test mounts one: run it as root")
    with tempfile.TemporaryDirectory(prefix="mtp-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        disk = Path(made, "execute")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755,uid=65534", "none", disk], check=True)
        try:
            with running_pool(f"EXECUTE={disk}") as pool:
                yield pool
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_disk_that_gets_full_is_said_and_the_task_runs_when_there_is_space(small, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS.parent))
    gate = small.folder / "queues" / "gate"
    with connect(small.url(), f"sqlite:///{tmp_path}/table.db") as manager:
        rows = [{"x": x, "gate": str(gate)} for x in range(3)]
        bag = manager.submit(rows, call="condor_tasks:fill_disk", per_message=3, tail_bytes=10_000)
        (trouble,) = wait_until(lambda: bag.standing().troubles, "it is known")
        assert " is held: " in trouble
        assert "No space left on device" in trouble
        gate.touch()
        small.run("condor_release", "-all")
        assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=3, done=3)
        assert [result.attempt for result in bag.results()] == [1, 1, 1]

"""Two pools: a schedd that another pool knows, whose jobs flock to the machines of this one."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.condor import ROOT, START_S, CondorPool, wait_until
from tests.servers.condor_desk import Desk

pytestmark = pytest.mark.timeout(600)


def personal_pool(*args: str) -> None:
    program = [sys.executable, str(ROOT / "condor/pool.py"), *args]
    done = subprocess.run(program, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr


def collector_of(folder: Path) -> str:
    text = (folder / "condor_config").read_text()
    found = re.search(r"^COLLECTOR_HOST = (\S+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture
def elsewhere(pool: CondorPool) -> Iterator[Path]:
    """The configuration of a pool that starts no job itself, on a machine of one core."""
    with tempfile.TemporaryDirectory(prefix="mtp-", dir="/tmp", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)
        place = ("--folder", str(folder / "pool"))
        settings = (f"FLOCK_TO={collector_of(pool.folder)}", "START=False", "SCHEDD_NAME=submit@")
        try:
            personal_pool(
                "start", *place, "--cpus", "1", *(word for each in settings for word in ("--set", each))
            )
            yield folder / "pool"
        finally:
            personal_pool("stop", *place)


def test_jobs_of_another_pools_schedd_flock_to_this_one(pool, elsewhere, tmp_path):
    """Failed attempts included. The folder is on a disk that both see: nothing is spooled."""
    desk = Desk(pool, pool.home(tmp_path))
    queue = f"condor://submit@/far?pool={collector_of(elsewhere)}"
    desk.submit("b", "twice", 4, "--retries", "2", "--per-message", "2", queue=queue, folder=desk.marks)
    assert not desk.jobs(), "this pool's schedd knows nothing of it"
    assert "jobs in HTCondor: " in desk("status", "b", queue=queue)
    desk("wait", "b", "--timeout", "90s", queue=queue)
    assert desk.done("b") == 4


def test_what_only_another_pool_has_is_not_called_missing(pool, elsewhere, tmp_path):
    """On the machine of the schedd, whose configuration says where jobs flock to. Nobody waits: the job that collects does."""
    desk = Desk(pool, pool.home(tmp_path))
    desk.env["CONDOR_CONFIG"] = str(elsewhere / "condor_config")
    desk.submit("b", "after", 2, "--retries", "9", "--cpus", "2", folder=desk.marks)
    assert "no machine" not in desk("status", "b")
    (desk.marks / "gate").touch()
    wait_until(lambda: desk.done("b") == 2, "they ran where there are two cores")

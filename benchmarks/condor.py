"""No-op tasks through a personal HTCondor pool, beside as many plain jobs as one would submit for them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

from benchmarks.measure import Measurement
from mtask import connect
from tests.servers.condor import TASKS as FUNCTIONS
from tests.servers.condor import CondorPool, running_pool

__all__ = ["CASES"]

TASKS, JOBS, SLOTS = 5000, 200, 8
PLAIN = """
executable = /bin/true
transfer_executable = false
log = {folder}/log
queue {jobs}
"""


def condor(repeats: int) -> list[Measurement]:
    """A pool that pretends to have 8 cores: plain jobs (HTCondor's rate doesn't depend on how many they are), then tasks, from
    the submit to the last result in the table."""
    sys.path.insert(0, str(FUNCTIONS.parent))
    plain, packed, coarse = [], [], []
    with running_pool() as pool:
        for _ in range(repeats):
            plain.append(JOBS / _plain_s(pool))
            packed.append(TASKS / _tasks_s(pool, None, split_after_s="60"))
            coarse.append(TASKS / _tasks_s(pool, TASKS // SLOTS))
    return [
        Measurement("HTCondor, plain jobs", "jobs/s", plain, note=f"{JOBS} x /bin/true"),
        Measurement(
            "tasks in its jobs",
            "tasks/s",
            packed,
            note=f"{TASKS:,} no-op calls, packed by auto, ?split_after_s=60",
        ),
        _ratio("the same beside plain jobs", packed, plain),
        Measurement(
            "with a message for each slot", "tasks/s", coarse, note=f"--per-message {TASKS // SLOTS}"
        ),
        _ratio("the same beside plain jobs", coarse, plain),
    ]


def _ratio(name: str, ours: list[float], plain: list[float]) -> Measurement:
    return Measurement(name, "x", [one / other for one, other in zip(ours, plain, strict=True)], goal=50)


def _plain_s(pool: CondorPool) -> float:
    folder = _new_folder(pool)
    (folder / "job.sub").write_text(PLAIN.format(folder=folder, jobs=JOBS))
    began_s = time.perf_counter()
    for command in (["condor_submit", "job.sub"], ["condor_wait", "log"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return time.perf_counter() - began_s


def _tasks_s(pool: CondorPool, per_message: int | None, **options: str) -> float:
    folder = _new_folder(pool)
    with connect(pool.url(**options), f"sqlite:///{folder}/t.db") as manager:
        began_s = time.perf_counter()
        rows = ([x] for x in range(TASKS))
        bag = manager.submit(rows, columns=["x"], call="condor_tasks:double", per_message=per_message)
        counts = bag.wait(timeout_s=300)
        assert counts.done == TASKS, counts
        return time.perf_counter() - began_s


def _new_folder(pool: CondorPool) -> Path:
    folder = pool.folder / "queues" / f"bench-{uuid4().hex[:8]}"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


CASES = {"condor": condor}

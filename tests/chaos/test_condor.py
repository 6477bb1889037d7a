"""Jobs are held, vacated and removed, and their node dies, in the middle of 2,000 tasks: one row a task."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mtask.manager import connect
from mtask.model import Counts
from tests.servers.condor import CondorPool, wait_until

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("importable")]
LONG_S = 900.0


def test_2000_tasks_in_200_messages(pool: CondorPool, tmp_path: Path) -> None:
    table = f"sqlite:///{tmp_path}/table.db"
    with connect(pool.url(), table) as manager:
        rows = [{"x": x, "pause_s": 0.2} for x in range(2000)]
        bag = manager.submit(rows, call="condor_tasks:slow_double", per_message=10, lease_s=20)

        def newest(count: int) -> list[str]:
            """Of the jobs that run, those that have begun last."""
            jobs = [job for job in pool.jobs("JobStatus", "MtaskBag") if job[2:] == ["2", bag.info.uid]]
            found = sorted((int(proc), cluster) for cluster, proc, *_ in jobs)[-count:]
            return [f"{cluster}.{proc}" for proc, cluster in found] if len(found) == count else []

        def go_on(count: int) -> None:
            wait_until(
                lambda: (manager.collect(), bag.counts().done >= count)[1], f"{count} are done", LONG_S
            )

        go_on(100)
        pool.run("condor_vacate_job", *wait_until(lambda: newest(3), "jobs run"))
        go_on(200)
        held = wait_until(lambda: newest(2), "jobs run")
        pool.run("condor_hold", *held)
        assert any("held: via condor_hold" in text or "held (as " in text for text in bag.standing().troubles)
        go_on(300)
        wait_until(lambda: newest(4), "jobs run")
        pool.kill("condor_startd")
        cluster = held[0].partition(".")[0]  # of the messages as they were sent, each of ten tasks
        idle = pool.run("condor_q", cluster, "-constraint", "JobStatus == 1", "-af", "ProcId").split()
        pool.run("condor_rm", f"{cluster}.{idle[-1]}")
        go_on(500)
        pool.run("condor_release", *held)

        def settled() -> bool:
            manager.collect()
            return manager.queue.depth() == (0, 0, 0) and not manager.collect()

        wait_until(settled, "all jobs are over", LONG_S)
        lost = 2000 - bag.counts().done
        assert lost == 10, "only those that were removed"
        (trouble,) = bag.standing().troubles
        assert trouble.startswith("10 tasks were taken out of HTCondor (")
        assert bag.repair() == 10
        assert bag.wait(timeout_s=LONG_S) == Counts(total=2000, done=2000)
        found = list(bag.results())
        assert [result.index for result in found] == list(range(2000))
        assert [result.value for result in found] == [2 * x for x in range(2000)]
        assert bag.standing().troubles == ()


def test_who_waits_is_killed_again_and_again(pool: CondorPool, tmp_path: Path) -> None:
    """SIGKILL to `mtask wait`, wherever it is: the next one goes on, no task has two failures recorded, and chains
    (`--serial`) go on to their ends."""
    url, table = pool.url(), f"sqlite:///{tmp_path}/table.db"
    marks = pool.folder / "queues" / f"marks-{os.urandom(4).hex()}"
    for folder in (marks, marks / "chained"):
        folder.mkdir()
        folder.chmod(0o777)
    with connect(url, table) as manager:
        rows = [{"x": x, "folder": str(marks)} for x in range(40)]
        manager.submit(rows, call="condor_tasks:fail_twice", per_message=2, bag="b", retries=3, backoff_s=0.1)
        rows = [{"x": x, "folder": str(marks / "chained"), "key": x % 4} for x in range(24)]
        manager.submit(rows, call="condor_tasks:marked", bag="chained", serial="key")
    wait = [sys.executable, "-m", "mtask", "wait", "b", "--quiet", "--queue", url, "--table", table]
    for number in range(200):
        process = subprocess.Popen(wait, env=os.environ | {"PYTHONFAULTHANDLER": ""})
        try:
            assert process.wait(1.0 + number * 0.13) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with connect(url, table) as manager:
        bag = manager.bag("b")
        assert bag.counts() == Counts(total=40, done=40)
        attempts = Counter((each.index, each.attempt) for each in bag.attempts())
        assert set(attempts) == {(x, attempt) for x in range(40) for attempt in (1, 2)}
        assert manager.bag("chained").wait(timeout_s=LONG_S) == Counts(total=24, done=24)
        assert {len(path.read_text().splitlines()) for path in (marks / "chained").iterdir()} == {1}
        wait_until(lambda: manager.collect() == 0 and manager.queue.depth() == (0, 0, 0), "nothing is left")

"""A job that collects: after `mtask submit` nobody has to wait for retries, pieces of messages, and results.

Root's jobs are somebody else's, so the commands are given by the user as whom the pool runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.servers.condor import PATIENCE_S, CondorPool, running_pool, wait_until
from tests.servers.condor_desk import Desk

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def home(pool: CondorPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled, since nobody else may write there, and each command would compile it again."""
    place = pool.home(tmp_path_factory.mktemp("home"))
    subprocess.run([pool.python, "-m", "compileall", "-q", str(place)], check=True)
    return place


@pytest.fixture
def desk(pool: CondorPool, home: Path) -> Desk:
    return Desk(pool, home)


def open_files(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return found


def test_nobody_waits(desk):
    """Failed attempts are tried again and results are recorded; then the job that sees to it ends, and all is tidy."""
    said = desk.submit("b", "twice", 4, "--retries", "2", "--per-message", "4", folder=desk.marks)
    assert "HTCondor runs them, records their results and tries again what failed" in said
    wait_until(lambda: desk.done("b") == 4, "all is done")
    wait_until(lambda: not desk.jobs(), "no job is left, not even the one that collects")
    assert [path.name for path in (desk.folder / ".mtask/condor/local/desk").iterdir() if path.is_dir()] == []
    assert "4 done" in desk("status", "b")


def test_a_long_message_is_cut_and_nobody_waits(desk):
    queue = "condor:///desk?split_after_s=2"
    desk.submit("b", "marked", 8, "--per-message", "8", queue=queue, folder=desk.marks, pause_s=1.0)
    wait_until(lambda: desk.done("b") == 8, "all is done")
    ran = [path.read_text().split() for path in desk.marks.iterdir()]
    assert [len(each) for each in ran] == [1] * 8, "each once"
    assert len({pid for each in ran for pid in each}) > 1, "by several jobs"


def test_what_becomes_of_the_job_that_collects(desk, pool):
    """It is killed, the schedd is, it is removed by hand, a bag is cancelled, another one comes: the rest goes on."""
    gate = desk.marks / "gate"
    desk.submit("a", "after", 2, "--retries", "2", folder=desk.marks)
    desk.submit("c", "slow_double", 3, pause_s=600)
    (pid,) = wait_until(desk.collectors, "it runs, one for both bags")
    os.kill(pid, signal.SIGKILL)
    (second,) = wait_until(lambda: set(desk.collectors()) - {pid}, "the schedd has started it again")
    pool.kill("condor_schedd")
    wait_until(lambda: set(desk.collectors()) - {pid, second}, "the next schedd has, too")
    pool.run("condor_rm", "-constraint", "MtaskCollects =!= undefined")
    wait_until(lambda: not desk.collectors(), "it is gone")
    desk("cancel", "c")
    desk.submit("d", "double", 2)
    gate.touch()
    wait_until(lambda: desk.done("a") == 2, "what failed was tried again", 2 * PATIENCE_S)
    wait_until(lambda: desk.done("d") == 2, "what came later is done")
    wait_until(lambda: not desk.jobs() and not desk.collectors(), "no job is left")


def test_told_to_stop_it_is_started_again(desk, pool):
    """As when a machine is shut down, which tells all processes so: that is no reason for the job to be over."""
    desk.submit("b", "slow_double", 1, pause_s=600)
    (pid,) = wait_until(desk.collectors, "it runs")
    wait_until(lambda: any(path.endswith("/mtask.db") for path in open_files(pid)), "it looks")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: set(desk.collectors()) - {pid}, "the schedd has started it again")
    pool.run("condor_rm", "-constraint", "MtaskCollects =!= undefined")
    wait_until(lambda: not desk.collectors(), "removed, it ends")
    wait_until(lambda: len(desk.jobs()) == 1, "and leaves the queue")
    assert "nobody collects what jobs bring back: " in desk("status", "b")
    desk("cancel", "b")


def test_another_table_is_refused(desk):
    """Its bags would be unknown to who collects, and their results dropped."""
    desk.submit("b", "slow_double", 1, pause_s=600)
    (errand,) = desk.folder.rglob("collect.json")
    before = errand.read_text()
    desk.env["MTASK_TABLE"] = "sqlite:///other.db"
    for again in range(2):
        with pytest.raises(AssertionError, match=r"belongs to the table .*/mtask\.db, not to .*/other\.db"):
            desk.submit(f"other{again}", "double", 1)
    del desk.env["MTASK_TABLE"]
    assert errand.read_text() == before
    desk.env["PATH"] = f"{desk.folder}:{os.environ['PATH']}"
    desk.submit("c", "double", 1)
    assert errand.read_text().replace(f'"{desk.folder}:', '"') == before
    desk("cancel", "b")
    wait_until(lambda: not desk.jobs(), "no job is left")
    errand.write_text(before)  # as is left when somebody removes the job
    desk.env["MTASK_TABLE"] = "sqlite:///other.db"
    desk.submit("other", "double", 1)
    wait_until(lambda: not desk.jobs(), "no job is left, not even the one that collects")
    assert "1 done" in desk("status", "other")


def test_a_job_that_cannot_collect_is_said(desk, pool):
    desk.submit("b", "slow_double", 1, pause_s=600)
    (errand,) = desk.folder.rglob("collect.json")
    assert errand.stat().st_mode & 0o777 == 0o600
    wait_until(desk.collectors, "it runs")
    table = desk.folder / ".mtask/mtask.db"
    table.rename(table.with_suffix(".away"))
    table.write_text("no table at all, " * 1000)
    os.kill(desk.collectors()[0], signal.SIGKILL)
    wait_until(lambda: any(job.endswith(" 5") for job in desk.jobs()), "it is held")
    table.with_suffix(".away").rename(table)
    assert "the job that collects is held: " in desk("status", "b")
    desk("cancel", "b")
    pool.run("condor_rm", "-constraint", "MtaskCollects =!= undefined")


def test_a_schedd_that_refuses_such_jobs(tmp_path):
    with running_pool("SUBMIT_REQUIREMENT_NAMES=None7", "SUBMIT_REQUIREMENT_None7=JobUniverse != 7") as pool:
        desk = Desk(pool, pool.home(tmp_path))
        said = desk.submit("b", "twice", 2, "--retries", "2", folder=desk.marks)
        assert "`mtask wait b` records their results and, while it runs, tries again" in said
        desk("wait", "b", "--timeout", "90s")
        assert desk.done("b") == 2

"""What HTCondor lost, or somebody took out of it, runs again; what it has runs once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtask.bag import BagHandle
from mtask.manager import Manager, connect
from mtask.model import Counts, Message
from tests.servers.condor import PATIENCE_S, TASKS, CondorPool, wait_until

pytestmark = pytest.mark.timeout(600)


def runs(marks: Path) -> dict[int, int]:
    """How often each task ran."""
    return {int(path.name): len(path.read_text().splitlines()) for path in marks.iterdir()}


def jobs_of(pool: CondorPool, bag: BagHandle) -> list[str]:
    return [f"{job[0]}.{job[1]}" for job in pool.jobs("MtaskBag") if job[2] == bag.info.uid]


def batch_folders(manager: Manager) -> list[Path]:
    folder = manager.queue.main.address.folder
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def test_repair_sends_what_is_gone_and_nothing_else(pool, manager, marks):
    rows = [{"x": x, "folder": str(marks), "pause_s": 1.0} for x in range(24)]
    bag = manager.submit(rows, call="condor_tasks:marked", per_message=2)
    jobs = wait_until(lambda: jobs_of(pool, bag), "there are jobs")
    pool.run("condor_rm", jobs[-1])
    wait_until(lambda: (manager.collect(), bag.standing().troubles)[1], "it is known")
    assert bag.repair() == 2
    assert bag.repair() == 0, "all is in the queue"
    assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=24, done=24)
    assert runs(marks) == dict.fromkeys(range(24), 1)


def test_what_is_no_job_yet_is_neither_over_nor_sent_again(pool, manager):
    """Of many messages only some are jobs at a time."""
    rows = [{"x": x} for x in range(250)]
    bag = manager.submit(rows, call="condor_tasks:double", per_message=1, tags="nowhere")
    wait_until(lambda: len(jobs_of(pool, bag)) >= 200, "there are jobs")
    assert len(jobs_of(pool, bag)) < 250
    assert manager.collect() == 0
    assert bag.repair() == 0
    assert manager.queue.depth().ready == 250
    (folder,) = batch_folders(manager)
    assert len(list(folder.glob("*.in"))) == 250
    bag.cancel()


def test_a_submit_that_goes_on_sends_nothing_twice(pool, table, marks, tmp_path):
    """Its first messages are in the folder, but not yet noted in the table, when it is killed."""
    url = pool.url()
    killed_submit(url, table, marks, tmp_path, when="update_bag")
    with connect(url, table) as manager:
        bag = manager.submit(rows_for(marks), call="condor_tasks:marked", per_message=2, bag="b")
        assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=6, done=6)
    assert runs(marks) == dict.fromkeys(range(6), 1)


# -- cancelled --------------------------------------------------------------------------------------


def rows_for(marks: Path) -> list[dict[str, object]]:
    return [{"x": x, "folder": str(marks)} for x in range(6)]


def killed_submit(url: str, table: str, marks: Path, place: Path, *, when: str) -> None:
    """SIGKILL before the jobs are made (`flush`), or before the table knows what was sent (`update_bag`)."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(TASKS.parent)!r})
import mtask.manager as m
def die(*args, **options):
    if {when!r} == "flush" or options.get("sent"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
with m.connect({url!r}, {table!r}) as manager:
    owner = manager if {when!r} == "flush" else manager.table
    real = getattr(owner, {when!r})
    setattr(owner, {when!r}, die)
    rows = [{{"x": x, "folder": {str(marks)!r}}} for x in range(6)]
    manager.submit(rows, call="condor_tasks:marked", per_message=2, bag="b")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_what_was_no_job_yet_when_it_was_cancelled_never_runs(pool, table, marks, tmp_path):
    url = pool.url()
    killed_submit(url, table, marks, tmp_path, when="flush")
    with connect(url, table) as manager:
        assert batch_folders(manager), "a half batch"
        manager.bag("b").cancel()
        assert not batch_folders(manager)
        manager.collect()
        assert manager.queue.depth() == (0, 0, 0)


def test_whoever_sends_late_makes_no_job_of_a_cancelled_bag(pool, table, marks):
    """A process that sent before the cancel, and makes jobs after it; and one that was taken up again since."""
    url = pool.url()
    with connect(url, table) as late, connect(url, table) as manager:
        bag = manager.submit(rows_for(marks), call="condor_tasks:marked", per_message=2, bag="b", cpus=64)
        old = messages(manager)
        late.queue.send(old)
        bag.cancel()
        late.flush()
        wait_until(lambda: manager.queue.depth() == (0, 0, 0), "no job is there, and none comes")
        late.queue.send(old)
        assert bag.retry() == 6
        late.flush()
        assert len(jobs_of(pool, bag)) == 3
        bag.cancel()


def messages(manager: Manager) -> list[Message]:
    info = manager.info("b")
    return [Message.of(info, block) for block in manager.table.blocks("b")]


def test_what_was_done_before_a_cancel_is_not_done_again(pool, manager, marks):
    rows = [{"x": x, "folder": str(marks), "pause_s": 0.0 if x < 2 else 600.0} for x in range(3)]
    bag = manager.submit(rows, call="condor_tasks:marked", per_message=1)
    wait_until(lambda: len(jobs_of(pool, bag)) == 1, "two are done; nobody has collected")
    bag.cancel()
    assert bag.retry() == 1
    assert bag.counts().done == 2
    bag.cancel()


# -- what HTCondor says is damaged ------------------------------------------------------------------


def tear(log: Path) -> None:
    """An event in the middle, as an unclean machine leaves it."""
    content = bytearray(log.read_bytes())
    at = content.index(b"\n005 (") + 1
    end = content.index(b"\n", at)
    content[at:end] = b"\x00" * (end - at)
    log.write_bytes(bytes(content))


def halve(log: Path) -> None:
    """One that goes over into the next: HTCondor's reader refuses that."""
    content = log.read_bytes()
    at = content.index(b"\n005 (") + 31
    log.write_bytes(content[:at] + content[content.index(b"\n...\n", at) + 5 :])


def cut(log: Path) -> None:
    content = log.read_bytes()
    log.write_bytes(content[: content.rindex(b"\n005 (") + 20])


@pytest.mark.parametrize(
    "damage",
    [tear, halve, cut, lambda log: log.write_bytes(b""), lambda log: log.rename(log.with_name("old"))],
    ids=["torn", "halved", "cut", "empty", "gone"],
)
def test_a_damaged_log_stops_nothing(pool, manager, table, marks, damage):
    """Results are here, and are recorded, and the batches behind it, too."""
    url = manager_url(manager)
    first = manager.submit(rows_for(marks), call="condor_tasks:marked", per_message=1, bag="a")
    second = manager.submit([{"x": 1}], call="condor_tasks:double", bag="z")
    wait_until(lambda: not jobs_of(pool, first) and not jobs_of(pool, second), "all jobs are over")
    for folder in batch_folders(manager):
        if len(list(folder.glob("*.in"))) == 6:
            damage(folder / "log")
    with connect(url, table) as fresh:
        fresh.collect()
        assert fresh.bag("z").counts().done == 1
        assert fresh.bag("a").wait(timeout_s=PATIENCE_S) == Counts(total=6, done=6)
        assert fresh.bag("a").repair() == 0
        wait_until(lambda: not fresh.collect() and not batch_folders(fresh), "the folder is empty")
    assert runs(marks) == dict.fromkeys(range(6), 1)


def test_jobs_that_the_schedd_has_forgotten_run_again(pool, manager, marks):
    """As when its spool is lost: nothing is in the queue, and the log doesn't say why."""
    rows = [{"x": x, "folder": str(marks)} for x in range(6)]
    bag = manager.submit(rows, call="condor_tasks:marked", per_message=3, tags="nowhere")
    log = next(each for folder in batch_folders(manager) for each in folder.glob("log"))
    before = log.read_bytes()
    pool.run("condor_rm", *{job.partition(".")[0] for job in jobs_of(pool, bag)})
    wait_until(lambda: not jobs_of(pool, bag) and b"035 (" in log.read_bytes(), "they are gone")
    log.write_bytes(before)
    with connect(manager_url(manager), manager_table(manager)) as fresh:
        fresh.collect()
        assert len(jobs_of(pool, bag)) == 2
        assert fresh.bag(bag.name).repair() == 0
        assert len(jobs_of(pool, bag)) == 2
        fresh.bag(bag.name).cancel()


def manager_url(manager: Manager) -> str:
    return manager._urls.queue


def manager_table(manager: Manager) -> str:
    return manager._urls.table


def test_who_collects_sees_results_in_spite_of_a_damaged_log(pool, table, marks, monkeypatch):
    """While other jobs of the same batch still run."""
    monkeypatch.setattr("mtask_condor.census.COUNT_S", 1.0)
    url = pool.url(grace_s="2")
    with connect(url, table) as manager:
        rows = [{"x": x, "folder": str(marks), "pause_s": 0.0 if x < 2 else 600.0} for x in range(3)]
        bag = manager.submit(rows, call="condor_tasks:marked", per_message=1)
        wait_until(lambda: len(jobs_of(pool, bag)) == 1 and len(runs(marks)) == 3, "two are done, one runs")
        (folder,) = batch_folders(manager)
        tear(folder / "log")
    with connect(url, table) as fresh:
        fresh.collect()
        assert fresh.bag(bag.name).counts().done == 2
        fresh.bag(bag.name).cancel()
        wait_until(lambda: not fresh.collect() and not batch_folders(fresh), "the folder is empty")
    assert sum(runs(marks).values()) == 3


# -- a table that the nodes reach -------------------------------------------------------------------


def test_chains_go_on_where_nodes_write_to_the_table(pool, marks):
    url = f"sqlite:///{marks}/direct.db"
    with connect(pool.url(table="direct"), url) as direct:
        for path in marks.iterdir():
            path.chmod(0o666)
        rows = [{"x": x, "key": "a"} for x in range(3)]
        bag = direct.submit(rows, call="condor_tasks:double", serial="key")
        (cluster,) = {job.partition(".")[0] for job in jobs_of(pool, bag)}
        assert "direct.db" not in pool.run("condor_q", "-l", cluster), "the table's URL"
        assert "order.json" in pool.run("condor_q", cluster, "-af", "EncryptInputFiles")
        assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=3, done=3)
        assert not list(direct.table.dead())

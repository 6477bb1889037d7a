"""What goes wrong with HTCondor is said: what, where, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtask.bag import BagHandle
from mtask.errors import BackendError, UnavailableError, UnusableError, UsageError
from mtask.manager import connect
from mtask.model import Counts
from tests.servers.condor import PATIENCE_S, wait_until

pytestmark = pytest.mark.timeout(600)


def trouble(bag: BagHandle) -> str:
    """The only one, when there is one."""
    (text,) = wait_until(lambda: bag.standing().troubles, "something is wrong")
    return text


def test_a_node_without_the_interpreter(command, pool, table, monkeypatch):
    url = pool.url(python="/opt/nowhere/python3")
    with connect(url, table) as manager:
        bag = manager.submit([{"x": 1}], call="condor_tasks:double", bag="b")
        text = trouble(bag)
        assert "is held: " in text
        assert "/opt/nowhere/python3" in text
        assert "`condor_release " in text
        code, out, _ = command("status", "b", "--queue", url, "--table", table)
        assert (code, "/opt/nowhere/python3" in out, "1 held" in out) == (0, True, True), out
        bag.cancel()


def test_a_node_without_mtask(pool, table):
    with connect(pool.url(path=str(pool.folder)), table) as manager:
        bag = manager.submit([{"x": 1}], call="condor_tasks:double")
        text = trouble(bag)
        assert "the worker ended with status 1" in text
        assert "No module named mtask_condor" in text
        bag.cancel()


def test_a_job_that_was_held_goes_on_when_it_is_released(pool, manager):
    bag = manager.submit([{"x": 1, "pause_s": 5}], call="condor_tasks:slow_double")
    job = wait_until(
        lambda: [j for j in pool.jobs("JobStatus", "MtaskBag") if j[2:] == ["2", bag.info.uid]], "it runs"
    )
    name = f"{job[0][0]}.{job[0][1]}"
    pool.run("condor_hold", "-reason", "the disk is being mended", name)
    assert f"job {name} is held: the disk is being mended (by user" in trouble(bag)
    # HTCondor forgets one that is released before it has left its machine, until something else comes or goes.
    wait_until(lambda: [*name.split("."), "undefined"] in pool.jobs("RemoteHost"), "its machine is free")
    pool.run("condor_release", name)
    assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=1, done=1)


def test_needs_that_no_machine_meets(pool, manager):
    bag = manager.submit([{"x": 1}], call="condor_tasks:double", cpus=64, tags="blast")
    text = trouble(bag)
    assert text.startswith("1 job needs cpus=64 memory=")
    assert "tags=blast: no machine of the pool has that; its only one offers cpus=8, memory=8.59GB" in text
    assert text.endswith("no GPU, no tag")
    bag.cancel()


def test_jobs_that_somebody_removed(pool, manager):
    rows = [{"x": x} for x in range(6)]
    bag = manager.submit(rows, call="condor_tasks:double", per_message=2, cpus=64)
    jobs = wait_until(
        lambda: [j for j in pool.jobs("MtaskBag") if j[2] == bag.info.uid], "the jobs are there"
    )
    pool.run("condor_rm", jobs[0][0])
    wait_until(lambda: (manager.collect(), manager.queue.depth() == (0, 0, 0))[1], "they are gone")
    wait_until(lambda: (manager.collect(), bag.standing().troubles)[1], "it is known")
    text = trouble(bag)
    assert text.startswith("6 tasks were taken out of HTCondor (via condor_rm (by user")
    assert f"`mtask repair {bag.name}` sends" in text
    assert bag.repair() == 6
    assert not any("taken out" in each for each in bag.standing().troubles)
    bag.cancel()


def test_no_worker_is_needed(command, pool, table, monkeypatch):
    monkeypatch.setenv("MTASK_QUEUE", pool.url())
    monkeypatch.setenv("MTASK_TABLE", table)
    code, _, err = command("worker")
    assert (code, "no worker is needed here" in err, "`mtask wait BAG`" in err) == (2, True, True)
    command.write("t.csv", "x\n1\n")
    code, _, err = command("run", "t.csv", "--run", "echo {x}")
    assert (code, "`mtask submit t.csv …` with the same options, then `mtask wait BAG`" in err) == (2, True)
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", "--max-running", "3")
    assert (code, "--max-running and --rate need workers" in err) == (2, True)


def test_waiting_has_an_end(command, pool, table):
    url = pool.url()
    with connect(url, table) as manager:
        bag = manager.submit([{"x": 1}], call="condor_tasks:double", bag="b", cpus=64)
        code, _, err = command("wait", "b", "--timeout", "1s", "--queue", url, "--table", table)
        assert (code, "`mtask status b` shows why" in err) == (4, True)
        bag.cancel()


def test_no_schedd_of_that_name(pool, table):
    url = pool.url().replace("condor:///", "condor://nowhere.example.org/")
    with (
        connect(url, table) as manager,
        pytest.raises(UnavailableError, match=r"has no schedd .nowhere\.example\.org.; it has mtask@"),
    ):
        manager.submit([{"x": 1}], call="condor_tasks:double")


def test_no_pool_at_all(pool, table, tmp_path):
    """And the same command goes on when there is one: nothing is sent twice."""
    (tmp_path / "tasks.csv").write_text("x\n1\n2\n")
    args = ["submit", "tasks.csv", "--run", "echo {x}", "--bag", "b", "--queue", pool.url(), "--table", table]
    nowhere = tmp_path / "config"
    nowhere.write_text("CONDOR_HOST = 127.0.0.1\nCOLLECTOR_HOST = 127.0.0.1:1\n")
    done = submit_with(nowhere, args, tmp_path)
    assert done.returncode == 3
    assert "the schedd of this machine can't be found" in done.stderr
    assert "condor_q" in done.stderr
    done = submit_with(pool.folder / "condor_config", args, tmp_path)
    assert done.returncode == 0, done.stderr
    with connect(args[-3], table) as manager:
        assert manager.bag("b").wait(timeout_s=PATIENCE_S) == Counts(total=2, done=2)


def test_no_permission(pool, table, tmp_path):
    """Who has no token, and is none of the machine's users that the schedd knows."""
    config = tmp_path / "config"
    text = (pool.folder / "condor_config").read_text()
    config.write_text(
        f"{text}\nSEC_TOKEN_DIRECTORY = /nonexistent\nSEC_CLIENT_AUTHENTICATION_METHODS = TOKEN\n"
    )
    (tmp_path / "tasks.csv").write_text("x\n1\n")
    args = ["submit", "tasks.csv", "--run", "echo {x}", "--queue", pool.url(), "--table", table]
    done = submit_with(config, args, tmp_path)
    assert (done.returncode, "is there, but doesn't let you submit jobs" in done.stderr) == (3, True), (
        done.stderr
    )
    assert "tokens.d" in done.stderr


def submit_with(config: Path, args: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mtask", *args], cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | {"CONDOR_CONFIG": str(config)},
    )  # fmt: skip


def test_a_folder_that_cannot_be_made(pool, table):
    with (
        connect(pool.url(folder="/proc/nowhere"), table) as manager,
        pytest.raises(UnusableError, match="folder=…"),
    ):
        manager.submit([{"x": 1}], call="condor_tasks:double")


@pytest.mark.skipif(os.getuid() != 0, reason="only root's jobs are somebody else's")
def test_a_folder_that_jobs_cannot_enter(pool, table, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    url = pool.url(folder=str(tmp_path / "closed/queue"))
    with (
        connect(url, table) as manager,
        pytest.raises(UnusableError, match=r"who can.t enter .*; say another"),
    ):
        manager.submit([{"x": 1}], call="condor_tasks:double")


def test_a_queue_without_its_table(pool):
    from mtask.model import Message
    from mtask.registry import open_queue

    queue = open_queue(pool.url())
    with pytest.raises(BackendError, match="needs its table"):
        queue.send([Message(bag="b", uid="u", block=0, first=0, count=1)])


def test_a_table_that_the_nodes_cannot_open(pool, table):
    with (
        pytest.raises(UsageError, match="opened by its URL"),
        connect(pool.url(table="direct"), table) as made,
    ):
        made.queue.main.attach(made.table, None)
        made.submit([{"x": 1}], call="condor_tasks:double")

"""HTCondor as the queue, on a real pool: what jobs bring back, and what becomes of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import mtask
from mtask.manager import Manager, connect
from mtask.model import Counts, Reason, State
from tests.servers.condor import PATIENCE_S, wait_until

pytestmark = pytest.mark.timeout(600)


def values(bag: mtask.BagHandle) -> list[object]:
    return [result.value for result in bag.results()]


def runs(marks: Path) -> dict[int, int]:
    """How often each task ran."""
    return {int(path.name): len(path.read_text().splitlines()) for path in marks.iterdir()}


def files_left(manager: Manager) -> list[Path]:
    return [path for path in manager.queue.main.address.folder.iterdir() if path.is_dir()]


def test_a_first_job(manager):
    bag = manager.submit([{"x": x} for x in range(6)], call="condor_tasks:double", per_message=3)
    assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=6, done=6)
    assert values(bag) == [0, 2, 4, 6, 8, 10]
    assert wait_until(lambda: manager.collect() == 0 and not files_left(manager), "the folder is empty")


def test_commands_bring_their_output(manager):
    bag = manager.submit([{"word": "a b"}], run="printf %s {word}")
    bag.wait(timeout_s=PATIENCE_S)
    assert [result.stdout for result in bag.results()] == ["a b"]


def test_a_failed_attempt_is_tried_again_by_whoever_collects(manager, marks):
    rows = [{"x": x, "folder": str(marks)} for x in range(4)]
    bag = manager.submit(rows, call="condor_tasks:twice", per_message=4, retries=2, backoff_s=0.1)
    assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=4, done=4)
    assert [result.attempt for result in bag.results()] == [2, 2, 2, 2]
    assert [(each.index, each.error.message) for each in bag.attempts()] == [(x, "not yet") for x in range(4)]
    assert runs(marks) == dict.fromkeys(range(4), 1)


def test_a_failure_that_is_final(manager):
    bag = manager.submit([{"x": 1}], run="sh -c 'exit {x}'", retries=0)
    assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=1, failed=1)
    assert [(result.exit_code, result.error.reason) for result in bag.results()] == [(1, Reason.EXIT)]


def test_what_takes_too_long_is_cut_into_smaller_messages(pool, table, marks):
    with connect(pool.url(split_after_s="2"), table) as manager:
        rows = [{"x": x, "folder": str(marks), "pause_s": 1.0} for x in range(12)]
        bag = manager.submit(rows, call="condor_tasks:marked", per_message=12)
        assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=12, done=12)
        assert len({result.worker for result in bag.results()}) > 1
    assert runs(marks) == dict.fromkeys(range(12), 1)


def test_tasks_of_one_key_follow_each_other(manager):
    rows = [{"x": x, "key": "ab"[x % 2]} for x in range(6)]
    bag = manager.submit(rows, call="condor_tasks:double", serial="key")
    assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=6, done=6)
    for start in (0, 1):
        times = [(r.started_at, r.finished_at) for r in bag.results() if r.index % 2 == start]
        assert all(after[0] >= before[1] for before, after in itertools.pairwise(times))


def test_nodes_that_reach_the_table_write_to_it(pool, manager, marks):
    """On this machine the disk is shared, so that a file of SQLite's will do."""
    url = f"sqlite:///{marks}/direct.db"
    with connect(pool.url(table="direct"), url) as direct:
        for path in marks.iterdir():
            path.chmod(0o666)
        bag = direct.submit([{"x": x} for x in range(4)], call="condor_tasks:double", per_message=2)
        # Nobody collects.
        wait_until(bag.finished, "the jobs have written all rows")
        assert values(bag) == [0, 2, 4, 6]


def test_vacated_what_was_done_is_not_done_again(pool, manager, marks):
    rows = [{"x": x, "folder": str(marks), "pause_s": 0.5} for x in range(20)]
    bag = manager.submit(rows, call="condor_tasks:marked", per_message=20)
    wait_until(lambda: len(runs(marks)) >= 4, "some tasks have run")
    job = next(f"{c}.{p}" for c, p, uid in pool.jobs("MtaskBag") if uid == bag.info.uid)
    pool.run("condor_vacate_job", job)
    assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=20, done=20)
    assert runs(marks) == dict.fromkeys(range(20), 1)
    assert len({result.worker for result in bag.results()}) == 2


def test_a_task_that_kills_its_workers_ends_as_lost(manager):
    rows = [{"x": x, "victim": 2} for x in range(4)]
    bag = manager.submit(rows, call="condor_tasks:kill_worker", per_message=4, max_deliveries=2)
    assert bag.wait(timeout_s=PATIENCE_S * 2) == Counts(total=4, done=3, failed=1)
    lost = [result for result in bag.results() if result.state is State.FAILED]
    assert [(result.index, result.error.reason) for result in lost] == [(2, Reason.LOST)]


def test_what_a_killed_worker_leaves_behind_ends(manager):
    """HTCondor sees to that, however it detached itself."""
    left_s = random.randrange(10_000, 100_000)
    command = f"sh -c 'setsid sleep {left_s} >/dev/null 2>&1 & sleep 3; kill -9 $PPID; sleep {{x}}'"
    bag = manager.submit([{"x": left_s}], run=command, retries=0, max_deliveries=1)
    wait_until(lambda: sleepers(left_s), "it has begun")
    assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=1, failed=1)
    wait_until(lambda: not sleepers(left_s), "they are gone")


def sleepers(left_s: int) -> int:
    def is_one(path: Path) -> bool:
        with contextlib.suppress(OSError):
            return path.read_bytes() == b"sleep\0%d\0" % left_s
        return False

    return sum(map(is_one, Path("/proc").glob("[0-9]*/cmdline")))


def test_a_cancelled_bag_leaves_the_pool(pool, manager):
    rows = [{"x": x, "pause_s": 600} for x in range(300)]
    bag = manager.submit(rows, call="condor_tasks:slow_double", per_message=1)
    wait_until(lambda: manager.queue.depth().leased, "jobs run")
    assert bag.standing().text.startswith("jobs in HTCondor: ")
    bag.cancel()
    wait_until(lambda: manager.queue.depth() == (0, 0, 0), "no job is left")
    wait_until(lambda: not manager.collect() and not files_left(manager), "the folder is empty")
    assert bag.standing().troubles == ()
    assert bag.retry() == 300, "taken up again"
    bag.cancel()


def test_priority_and_needs_are_those_of_the_jobs(pool, manager):
    rows = [{"x": 1, "pause_s": 600}]
    wanted = {"cpus": 2.5, "memory": "200MB", "priority": "high"}
    bag = manager.submit(rows, call="condor_tasks:slow_double", **wanted)
    jobs = pool.jobs("RequestCpus", "RequestMemory", "JobPrio", "MtaskBag")
    assert [job[2:5] for job in jobs if job[5] == bag.info.uid] == [["3", str(191 + 64), "1"]]
    bag.cancel()


def test_many_tasks_are_few_jobs_at_a_time(pool, table):
    """100,000 tasks: thousands of messages, of which a few hundred are jobs at any moment."""
    # Not ru_maxrss: a program started by vfork begins with its parent's.
    program = r"""
import re, sys, mtask
with mtask.connect(sys.argv[1], sys.argv[2]) as mt:
    mt.submit([{"x": x} for x in range(100_000)], call="condor_tasks:double", bag="many", tags="nowhere", per_message=50)
print(int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""
    url, path = pool.url(), ":".join([*pool.path, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, url, table],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200, "MiB"
    with connect(url, table) as manager:
        try:
            ready, leased, _ = manager.queue.depth()
            messages = sum(1 for _ in manager.table.blocks("many"))
            assert ready + leased == messages, "each is a job, or will be, and none can run"
            assert messages == 2000
            uid = manager.info("many").uid
            jobs = [job for job in pool.jobs("MtaskBag") if job[2] == uid]
            assert 0 < len(jobs) <= 300
            assert len({cluster for cluster, *_ in jobs}) == 1
        finally:  # the pool is everybody's
            manager.bag("many").cancel()


def test_messages_that_may_be_cut_grow_sooner(pool, table):
    """A job costs more than a request."""
    with connect(pool.url(split_after_s="60"), table) as manager:
        bag = manager.submit([{"x": x} for x in range(300)], call="condor_tasks:double", tags="nowhere")
        assert bag.info.spec.growth == manager.queue.limits.growth
        assert sum(1 for _ in manager.table.blocks(bag.name)) < 60
        bag.cancel()


def test_nothing_waits_for_somebody_to_collect(pool, manager, marks):
    """Jobs of long tasks: when they are over, all has been done, and is here."""
    rows = [{"x": x, "folder": str(marks), "pause_s": 1.0} for x in range(12)]
    bag = manager.submit(rows, call="condor_tasks:marked", per_message=6, tags="!nowhere")
    wait_until(lambda: manager.queue.depth() == (0, 0, 0), "the pool has nothing left to do")
    manager.collect()
    assert bag.counts() == Counts(total=12, done=12)
    assert manager.queue.depth() == (0, 0, 0)


def test_the_commands(command, pool, table, monkeypatch):
    """From a task file to results, with nothing but mtask's verbs."""
    monkeypatch.setenv("MTASK_QUEUE", pool.url())
    monkeypatch.setenv("MTASK_TABLE", table)
    command.write("tasks.csv", "x\n" + "".join(f"{x}\n" for x in range(5)))
    code, _, err = command("submit", "tasks.csv", "--run", "echo {x}", "--bag", "june")
    assert (code, "`mtask wait june` records their results and, while it runs, tries again" in err) == (
        0,
        True,
    )
    code, out, _ = command("status", "june")
    assert (code, "jobs in HTCondor: " in out, "mtask worker" in out) == (0, True, False)
    code, out, err = command("wait", "june", "--json", "--timeout", "90s")
    assert (code, json.loads(out)["done"]) == (0, 5), err
    assert command("collect").err == "0 tasks recorded\n"
    assert [result.stdout for result in command.results("june")] == [f"{x}\n" for x in range(5)]

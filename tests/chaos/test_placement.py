"""The right worker for each task, and not too many at a time: real workers, seen from outside."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mtask.bag import BagHandle
from mtask.model import Result, State
from tests.chaos.harness import Site, WorkerProcess, check, wait_for

TASKS = Path(__file__).with_name("placed_tasks.py")


class Ran(NamedTuple):
    x: int
    worker: int
    began_s: float
    ended_s: float


def submit(
    site: Site, bag: str, rows: list[dict[str, Any]], *, call: str = "work", **options: Any
) -> BagHandle:
    folder = site.folder / bag
    folder.mkdir()
    rows = [{"folder": str(folder), **row} for row in rows]
    return site.manager.submit(rows, call=f"{TASKS}:{call}", bag=bag, **({"lease_s": 3.0} | options))


def count(n: int, **row: Any) -> list[dict[str, Any]]:
    return [{"x": x, **row} for x in range(n)]


def runs(site: Site, bag: BagHandle) -> list[Ran]:
    """In order of their beginning."""
    found = []
    for line in (site.folder / bag.name / "runs").read_text().splitlines():
        x, worker, began_s, ended_s = line.split()
        found.append(Ran(int(x), int(worker), float(began_s), float(ended_s)))
    return sorted(found, key=lambda run: run.began_s)


def most_at_a_time(ran: list[Ran]) -> int:
    changes = sorted([(run.began_s, 1) for run in ran] + [(run.ended_s, -1) for run in ran])
    return max(itertools.accumulate(change for _, change in changes))


def pids(results: list[Result]) -> set[int]:
    return {int(result.worker.split("-")[-2]) for result in results}


def done(bag: BagHandle) -> list[Result]:
    results = check(bag)
    assert {result.state for result in results} == {State.DONE}
    return results


def test_three_workers_five_bags_and_an_urgent_one_in_the_middle(site: Site) -> None:
    gpu = site.start_worker("-j", "2", "--gpus", "2", "--tags", "eu")
    big = site.start_worker("-j", "4", "--cpus", "4", "--gpus", "0", "--memory", "8GB", "--tags", "eu,blast")
    small = site.start_worker("-j", "2", "--gpus", "0", "--memory", "1GB", "--tags", "us,spot")
    plain = submit(site, "plain", count(300, seconds=0.02), per_message=1)
    gpus = submit(site, "gpus", count(20, seconds=0.02), gpus=1)
    blast = submit(site, "blast", count(10, seconds=0.02), tags=("blast", "!spot"), cpus=2)
    stays = submit(site, "stays", count(10), only_on=("us",))
    rows = [{"x": x, "memory": "2GB" if x % 2 else "500MB"} for x in range(10)]
    sized = submit(site, "sized", rows)
    wait_for(lambda: plain.counts().done > 50, "it is in the middle")

    submitted_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    urgent = submit(site, "urgent", count(10, seconds=0.02), priority=1)
    wait_for(urgent.finished, "the urgent one is finished")
    assert runs(site, urgent)[0].began_s - submitted_s < 2
    for bag in (plain, gpus, blast, stays, sized):
        wait_for(bag.finished, f"{bag.name} is finished")
        done(bag)

    assert pids(done(gpus)) == {gpu.pid}
    assert {result.value["CUDA_VISIBLE_DEVICES"] for result in done(gpus)} <= {"0", "1"}
    assert pids(done(blast)) == {big.pid}
    assert {result.value["MTASK_CPUS"] for result in done(blast)} == {"2"}
    assert pids(done(stays)) == {small.pid}
    assert pids(done(sized)[1::2]) <= {gpu.pid, big.pid}, "which have 2 GB"
    assert most_at_a_time(runs(site, blast)) <= 2, "four CPUs are two of two"
    assert len(pids(done(plain))) == 3


def test_a_big_task_gets_its_room_among_many_small_ones(site: Site) -> None:
    small = submit(site, "small", count(4000, seconds=0.05), per_message=1)
    site.start_worker("-j", "4")
    wait_for(lambda: small.counts().done > 20, "the small ones run")
    big = submit(site, "big", count(1, seconds=0.1), cpus=4)
    wait_for(big.finished, "the big one is done", timeout_s=15)
    assert not small.finished()
    (run,) = runs(site, big)
    beside = [r for r in runs(site, small) if r.began_s < run.ended_s and r.ended_s > run.began_s]
    assert beside == [], "it had all four CPUs"


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_run_at_a_time_than_the_bag_allows(site: Site, workers: int) -> None:
    bag = submit(site, "bag", count(60, seconds=0.1), max_running=3)
    for _ in range(workers):
        site.start_worker("-j", "4")
    wait_for(bag.finished, "the bag is finished", timeout_s=40)
    done(bag)
    assert most_at_a_time(runs(site, bag)) == 3


def test_no_more_run_at_a_time_also_of_a_bag_whose_tasks_need_different_things(site: Site) -> None:
    rows = [{"x": x, "seconds": 0.2, "cpus": (0.5, 0.75, 1)[x % 3]} for x in range(18)]
    bag = submit(site, "bag", rows, max_running=2)
    site.start_worker("-j", "6")
    wait_for(bag.finished, "the bag is finished", timeout_s=40)
    done(bag)
    assert most_at_a_time(runs(site, bag)) == 2


def test_a_repair_in_the_middle_of_a_chain_runs_only_what_is_under_way_twice(site: Site) -> None:
    bag = submit(site, "bag", count(20, who="a", seconds=0.1), serial="who")
    for _ in range(2):
        site.start_worker("-j", "1")
    wait_for(lambda: bag.counts().done > 3, "it is in the middle")
    for _ in range(2):
        assert bag.repair() <= 1
    wait_for(bag.finished, "the bag is finished", timeout_s=40)
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "what was sent twice has ended, too")
    done(bag)
    assert len(runs(site, bag)) <= 20 + 2


def test_the_share_of_a_dead_worker_is_free_again(site: Site) -> None:
    bag = submit(site, "bag", count(2), call="wait", max_running=1, lease_s=1.0)
    first = site.start_worker("-j", "2")
    wait_for(lambda: list((site.folder / "bag").glob("began-*")), "one runs")
    second = site.start_worker("-j", "2")
    first.kill()
    wait_for(
        lambda: list((site.folder / "bag").glob(f"began-*-{second.pid}")),
        "the other has its place",
        timeout_s=40,
    )
    (site.folder / "bag" / "gate").touch()
    wait_for(bag.finished, "the bag is finished")
    done(bag)


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_start_in_a_second_than_the_bag_allows(site: Site, workers: int) -> None:
    rate, tasks = 20.0, 140
    bag = submit(site, "bag", count(tasks), rate=rate)
    for _ in range(workers):
        site.start_worker("-j", "4")
    wait_for(bag.finished, "the bag is finished", timeout_s=40)
    done(bag)
    ran = runs(site, bag)[20:]  # the first ones wait for their processes to start, then come together
    seen = (len(ran) - 1) / (ran[-1].began_s - ran[0].began_s)
    assert 0.7 * rate < seen < 1.1 * rate  # a busy machine may not keep up


def test_tasks_of_a_key_run_one_after_the_other_in_order(site: Site) -> None:
    """Also those that fail at first, and while workers die."""
    rows = [{"x": x, "who": f"key-{x % 5}"} for x in range(40)]
    rows.sort(key=lambda row: (row["x"] * 7) % 11)  # of each key, some far apart and in another order
    bag = submit(site, "bag", rows, call="fail_once", serial="who", retries=2, lease_s=1.0)
    order = {row["x"]: number for number, row in enumerate(rows)}
    victim = site.start_worker("-j", "4")
    site.start_worker("-j", "4")
    wait_for(lambda: bag.counts().done >= 8, "it is in the middle")
    victim.kill()
    wait_for(bag.finished, "the bag is finished", timeout_s=60)
    done(bag)
    by_key = defaultdict(list)
    for run in runs(site, bag):
        by_key[run.x % 5].append(run)
    assert {key: most_at_a_time(ran) for key, ran in by_key.items()} == dict.fromkeys(range(5), 1)
    for ran in by_key.values():
        places = [order[run.x] for run in ran]
        assert places == sorted(places)


def told(worker: WorkerProcess, text: str) -> bool:
    return text in worker.said()


def test_a_worker_without_the_function_leaves_it_to_those_that_have_it(site: Site, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "brandnew.py").write_text("def f(x):\n    return x\n")
    env = site.env
    site.env = env | {"PYTHONPATH": str(tmp_path / "new")}
    import sys

    sys.path.insert(0, str(tmp_path / "new"))
    try:
        bag = site.manager.submit(count(6), call="brandnew:f", bag="bag", per_message=2)
    finally:
        sys.path.remove(str(tmp_path / "new"))
        sys.modules.pop("brandnew", None)
    site.env = env
    old = site.start_worker("-j", "1")
    wait_for(lambda: told(old, "given back"), "it says that it can't run it")
    from mtask.status import status_of

    wait_for(lambda: status_of(site.manager.table, bag).unserved, "status says it, too")
    assert "brandnew" in status_of(site.manager.table, bag).unserved[0]
    site.env = env | {"PYTHONPATH": str(tmp_path / "new")}
    site.start_worker("-j", "1")
    wait_for(bag.finished, "who has it runs it", timeout_s=60)
    assert {(result.state, result.attempt) for result in check(bag)} == {(State.DONE, 1)}
    assert old.said().count("given back") == 1


def test_status_tells_what_nobody_can_serve(site: Site) -> None:
    from mtask.status import status_of

    bag = submit(site, "bag", count(2), gpus=1)
    site.start_worker("-j", "1", "--gpus", "0")
    wait_for(lambda: status_of(site.manager.table, bag).unserved, "the worker is there")
    assert status_of(site.manager.table, bag).unserved == ("needs gpus=1: the only worker doesn't have that",)
    site.start_worker("-j", "1", "--gpus", "1")
    wait_for(bag.finished, "one that has came")
    assert status_of(site.manager.table, bag).unserved == ()

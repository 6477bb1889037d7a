"""Workers that are killed, and tasks that kill them."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from mtask.model import Reason, State
from tests.chaos.harness import Site, check, exists, wait_for

LEASE_S = 3.0


@pytest.mark.parametrize("per_message", [None, 20])
def test_a_killed_worker_loses_nothing(site: Site, per_message: int | None) -> None:
    """1,000 tasks, two workers, one is killed in the middle: the other does the rest."""
    bag = site.submit("work", 1000, lease_s=LEASE_S, seconds=0.005, per_message=per_message)
    victim, other = site.start_worker("-j", "2"), site.start_worker("-j", "2")
    wait_for(lambda: bag.counts().done > 300 and site.begun(victim) and site.begun(other), "both are at it")

    victim.kill()
    killed_s = time.monotonic()
    wait_for(bag.finished, "the bag is finished")

    assert time.monotonic() - killed_s < LEASE_S + 5
    assert {result.state for result in check(bag)} == {State.DONE}
    ran = Counter(begin.task for begin in site.begins())
    assert set(ran) == set(range(1000)), "each ran at least once"
    twice = {task for task, times in ran.items() if times > 1}
    assert twice <= site.begun(victim) & site.begun(other), "twice only what the killed one had begun"
    assert max(ran.values()) <= 2
    other.terminate()
    assert other.exit_code() == 0


@pytest.mark.parametrize(("slots", "per_message", "seconds"), [(1, 12, 0.0), (4, 12, 0.1), (4, 1, 0.1)])
def test_a_task_that_kills_its_workers_ends_and_its_neighbours_are_done(
    site: Site, slots: int, per_message: int, seconds: float
) -> None:
    """A poison task among others, in their message or beside it: three workers die of it, then it is
    given up as lost, and it alone."""
    poison, options = 5, {"per_message": per_message, "max_deliveries": 3, "retries": 2}
    bag = site.submit("kill_the_worker", 12, lease_s=1.0, poison=poison, seconds=seconds, **options)
    deaths = 0
    worker = site.start_worker("-j", str(slots))
    began_s = time.monotonic()
    while not bag.finished():
        assert time.monotonic() - began_s < 30
        if not worker.alive:
            assert worker.exit_code() == -9
            deaths += 1
            worker = site.start_worker("-j", str(slots))
        time.sleep(0.01)

    results = check(bag)
    assert deaths == 3
    assert [result.index for result in results if result.state is not State.DONE] == [poison]
    error = results[poison].error
    assert error is not None
    assert (error.reason, error.message) == (Reason.LOST, "3 workers died with this task (max_deliveries)")
    assert [begin.task for begin in site.begins()].count(poison) == 3
    assert list(bag.attempts()) == [], "the death of a worker costs no attempt"


def test_a_worker_that_was_away_for_longer_than_its_lease_does_no_harm(site: Site) -> None:
    """It stands still, another takes its task, it wakes up: then it stops that task and records nothing."""
    bag = site.submit("wait", 1, lease_s=1.0, gate=str(site.gate))
    sleeper = site.start_worker("-j", "1")
    wait_for(lambda: site.begun(sleeper), "the task runs")
    child = site.begins()[0].child

    sleeper.stop()
    other = site.start_worker("-j", "1")
    wait_for(lambda: site.begun(other), "another has taken the task")
    sleeper.go_on()
    wait_for(lambda: not exists(child), "it stops the task")
    assert "lease was lost" in sleeper.said()
    assert not bag.finished()

    site.open_gate()
    wait_for(bag.finished, "the other has done it")
    (result,) = check(bag)
    assert result.state is State.DONE
    assert f"-{other.pid}-" in result.worker
    assert result.attempt == 1

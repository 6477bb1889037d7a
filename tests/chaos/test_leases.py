"""Leases of tasks that take many times as long, whatever the tasks do meanwhile."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mtask.model import State
from tests.chaos.harness import Site, check, wait_for

LEASE_S = 1.0


def assert_done_once(site: Site, bag: object, count: int) -> None:
    for result in check(bag):  # type: ignore[arg-type]
        assert (result.state, result.attempt) == (State.DONE, 1)
    assert len(site.begins()) == count, "none was given to the other worker as well"


def test_a_task_that_holds_the_interpreter_lock_keeps_its_lease(site: Site) -> None:
    """Nothing in its own process can run meanwhile."""
    bag = site.submit("hold_the_lock", 2, lease_s=LEASE_S, seconds=4)
    for _ in range(2):
        site.start_worker("-j", "1")
    wait_for(bag.finished, "the bag is finished")
    assert_done_once(site, bag, 2)


def test_a_task_whose_process_is_stopped_keeps_its_lease(site: Site) -> None:
    bag = site.submit("wait", 1, lease_s=LEASE_S, gate=str(site.gate))
    for _ in range(2):
        site.start_worker("-j", "1")
    wait_for(site.begins, "it runs")
    child = site.begins()[0].child
    os.kill(child, signal.SIGSTOP)
    site.open_gate()
    time.sleep(4 * LEASE_S)
    assert site.manager.queue.depth() == (0, 1, 0)
    os.kill(child, signal.SIGCONT)
    wait_for(bag.finished, "the bag is finished")
    assert_done_once(site, bag, 1)


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_wall_clock_that_jumps_by_an_hour_loses_no_lease_and_no_task(site: Site, jump_s: int) -> None:
    """All that hangs on time goes on at its pace: leases, timeouts, pauses before retries, `--idle-exit`."""
    site.set_clock(0)
    bag = site.submit("wait", 2, lease_s=LEASE_S, gate=str(site.gate), timeout_s=60)
    again = site.submit("fail_once", 1, bag="again", lease_s=LEASE_S, retries=1)
    workers = [site.start_worker("-j", "2", "--idle-exit", "2s") for _ in range(2)]
    wait_for(lambda: len(site.begins()) >= 2, "they run")
    site.set_clock(jump_s)
    wait_for(again.finished, "it was tried again", timeout_s=10)
    time.sleep(3 * LEASE_S)
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    check(again)
    for result in check(bag):
        assert (result.state, result.attempt) == (State.DONE, 1)
        assert 0 <= result.wall_s < 60, "and durations are no difference of dates"
    assert len(site.begins()) == 4, "two waited, and one was tried twice"
    assert [worker.exit_code() for worker in workers] == [0, 0]

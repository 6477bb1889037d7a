"""Tasks that take longer than a message can be held: handed on, guarded, run by one worker at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtask.model import Message, State
from tests.chaos.harness import Site, WorkerProcess, check, wait_for

HOLD_S = 4.0
LEASE_S = 1.0
PROGRAM = Path(__file__).with_name("hold_worker.py")


@pytest.fixture(autouse=True, params=["given back", "sent as copies"])
def _short_hold(site: Site, request: pytest.FixtureRequest) -> None:
    site.command = [sys.executable, str(PROGRAM)]
    site.env |= {"HOLD_S": str(HOLD_S)}
    if request.param == "sent as copies":
        site.env["COUNTS_RELEASES"] = "1"


def guarded(site: Site) -> list[Message]:
    """What is in the queue in the name of a worker."""
    with site.manager.queue.main.database.read() as connection:  # type: ignore[attr-defined]
        bodies = [body for (body,) in connection.execute("SELECT body FROM message_body").fetchall()]
    return [message for message in map(Message.decode, bodies) if message.runs_at]


def start_two(site: Site) -> tuple[WorkerProcess, WorkerProcess]:
    """The first one has begun the task."""
    first = site.start_worker("-j", "1")
    wait_for(site.begins, "it runs")
    return first, site.start_worker("-j", "1")


def deliveries_of_copies(site: Site) -> int:
    with site.manager.queue.main.database.read() as connection:  # type: ignore[attr-defined]
        return int(connection.execute("SELECT coalesce(max(deliveries), 0) FROM message").fetchone()[0])


def test_a_task_of_several_times_the_longest_hold_runs_once(site: Site) -> None:
    bag = site.submit("wait", 1, lease_s=LEASE_S, gate=str(site.gate))
    start_two(site)
    wait_for(lambda: guarded(site), "it was handed on")
    began_s = 3 * HOLD_S
    with pytest.raises(AssertionError, match="not within"):
        wait_for(lambda: len(site.begins()) > 1, "it runs twice", timeout_s=began_s)
    assert len(guarded(site)) == 1
    assert deliveries_of_copies(site) <= 1, "given back, again and again, at no cost"
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "the copy is dropped")
    assert len(site.begins()) == 1


def test_the_task_of_a_worker_that_died_after_handing_on_runs_elsewhere(site: Site) -> None:
    bag = site.submit("wait", 1, lease_s=LEASE_S, gate=str(site.gate))
    first, second = start_two(site)
    wait_for(lambda: guarded(site), "it was handed on")
    first.kill()
    wait_for(lambda: len(site.begins()) == 2, "it runs again", timeout_s=30)
    assert site.begun(second) == {0}
    wait_for(lambda: [copy for copy in guarded(site) if copy.deaths], "it was handed on again", timeout_s=30)
    assert [copy.deaths for copy in guarded(site)] == [1], "one death, however often the copy was given back"
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "nothing is left over")
    assert len(site.begins()) == 2


def test_an_attempt_that_fails_after_handing_on_is_tried_again_once(site: Site) -> None:
    gate, seconds = str(site.gate), 4.0
    bag = site.submit("wait_and_fail_once", 1, lease_s=LEASE_S, gate=gate, seconds=seconds, retries=2)
    # The first one ends with its attempt: else a second copy could hide behind what it runs.
    site.start_worker("-j", "1", "--max-tasks", "1")
    wait_for(site.begins, "it runs")
    site.start_worker("-j", "2")
    wait_for(lambda: guarded(site), "it was handed on")
    site.open_gate()
    wait_for(bag.finished, "the bag is finished", timeout_s=30)
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 2)
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "nothing is left over")
    assert len(site.begins()) == 2


def test_a_worker_that_drains_after_handing_on_costs_the_task_nothing(site: Site) -> None:
    bag = site.submit("wait", 1, lease_s=LEASE_S, gate=str(site.gate))
    first = site.start_worker("-j", "1", "--grace", "0.5s")
    wait_for(site.begins, "it runs")
    wait_for(lambda: guarded(site), "it was handed on")
    first.terminate()
    assert first.exit_code() == 0
    (copy,) = guarded(site)
    second = site.start_worker("-j", "1")
    wait_for(lambda: len(site.begins()) == 2, "it runs again", timeout_s=30)

    def by_the_other() -> list[Message]:
        return [each for each in guarded(site) if each.runs_at != copy.runs_at]

    wait_for(by_the_other, "and is handed on again", timeout_s=30)
    assert [each.deaths for each in by_the_other()] == [0]
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    (result,) = check(bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    assert site.begun(second) == {0}


def test_what_waits_behind_the_task_that_is_handed_on_goes_to_others(site: Site) -> None:
    bag = site.submit("wait", 3, lease_s=LEASE_S, gate=str(site.gate), per_message=3)
    site.start_worker("-j", "1", "--split-after", "60s")
    wait_for(lambda: guarded(site), "it was handed on")
    (copy,) = guarded(site)
    assert (copy.first, copy.count) == (0, 1)
    site.start_worker("-j", "2")
    wait_for(lambda: len(site.begins()) == 3, "all run")
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    assert [result.attempt for result in check(bag)] == [1, 1, 1]
    assert len(site.begins()) == 3


def test_a_retry_of_what_failed_after_handing_on_runs_once(site: Site) -> None:
    """Though the copy is still in the queue, finds no row, and its worker doesn't run it any more."""
    gate = str(site.gate)
    bag = site.submit("wait_and_fail_once", 1, lease_s=LEASE_S, gate=gate, seconds=4.0, retries=0)
    first = site.start_worker("-j", "1", "--max-tasks", "1")
    wait_for(lambda: guarded(site), "it was handed on")
    site.open_gate()
    assert first.exit_code() == 0
    assert bag.counts().failed == 1
    assert bag.retry() == 1
    site.start_worker("-j", "2")
    wait_for(bag.finished, "the bag is finished", timeout_s=30)
    (result,) = check(bag)
    assert result.state == State.DONE
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "nothing is left over")
    assert len(site.begins()) == 2


def test_what_comes_after_a_task_that_was_handed_on_runs_once(site: Site) -> None:
    """Its worker has sent it, and stopped in good order before the copy was seen again."""
    gate = str(site.gate)
    bag = site.submit("wait_and_take", 2, lease_s=LEASE_S, gate=gate, seconds=4.0, serial="log")
    first = site.start_worker("-j", "1", "--max-tasks", "1")
    wait_for(lambda: guarded(site), "it was handed on")
    site.open_gate()
    assert first.exit_code() == 0
    site.start_worker("-j", "2")
    wait_for(bag.finished, "the bag is finished", timeout_s=30)
    assert [result.attempt for result in check(bag)] == [1, 1]
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "nothing is left over")
    assert len(site.begins()) == 2

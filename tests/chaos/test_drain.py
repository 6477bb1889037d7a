"""Workers that are told to stop: interruptions cost nothing."""

from __future__ import annotations

import threading
import time

import pytest

from mtask.bag import BagHandle
from mtask.model import State
from mtask.worker.options import time_to_save_s
from mtask.worker.supervisor import Options, Worker
from tests.chaos.harness import Site, WorkerProcess, check, wait_for


def waiting(site: Site, count: int, *, per_message: int) -> BagHandle:
    """Tasks that run until the gate is opened."""
    return site.submit("wait", count, gate=str(site.gate), per_message=per_message, lease_s=60.0)


def assert_each_is_done_at_the_first_attempt(bag: BagHandle) -> None:
    for result in check(bag):
        assert (result.state, result.attempt) == (State.DONE, 1)
    assert list(bag.attempts()) == []


def ends(worker: WorkerProcess, *, within_s: float) -> None:
    began_s = time.monotonic()
    assert worker.exit_code() == 0, worker.said()
    assert time.monotonic() - began_s < within_s


def test_what_runs_may_end_and_the_rest_is_elsewhere_at_once(site: Site) -> None:
    bag = waiting(site, 10, per_message=5)
    first = site.start_worker("-j", "2", "--grace", "20")
    wait_for(lambda: len(site.begun(first)) == 2, "two tasks run, eight wait in their messages")

    first.terminate()
    second = site.start_worker("-j", "8")
    took_s = wait_for(lambda: len(site.begun(second)) > 0, "the others have what hadn't started")
    assert took_s < 10, "at once, not when the lease of 60 s is over"
    assert first.alive, "it stays for what it runs"
    assert site.begun(first).isdisjoint(site.begun(second))

    site.open_gate()
    ends(first, within_s=3)
    wait_for(bag.finished, "the bag is finished")
    assert_each_is_done_at_the_first_attempt(bag)
    assert len(site.begins()) == 10, "nothing ran twice"


def test_what_runs_longer_than_the_grace_is_given_to_another(site: Site) -> None:
    bag = waiting(site, 4, per_message=2)
    first = site.start_worker("-j", "2", "--grace", "0.5")
    wait_for(lambda: len(site.begun(first)) == 2, "two tasks run")

    first.terminate()
    ends(first, within_s=0.5 + 3)
    second = site.start_worker("-j", "4")
    wait_for(lambda: site.begun(second) == {0, 1, 2, 3}, "all are with another")

    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    assert_each_is_done_at_the_first_attempt(bag)


def test_a_second_signal_hurries(site: Site) -> None:
    bag = waiting(site, 2, per_message=1)
    first = site.start_worker("-j", "2", "--grace", "600")
    wait_for(lambda: len(site.begun(first)) == 2, "two tasks run")

    first.terminate()
    wait_for(lambda: "stopping" in first.said(), "it has heard")
    first.terminate()
    ends(first, within_s=4)

    site.open_gate()
    site.start_worker("-j", "2")
    wait_for(bag.finished, "the bag is finished")
    assert_each_is_done_at_the_first_attempt(bag)


SAVES = """
    state="$MTASK_CHECKPOINT_DIR/state"; mkdir -p "$MTASK_CHECKPOINT_DIR"
    if [ -e "$state" ]; then cat "$state"; exit 0; fi
    trap 'sleep 2.5; echo saved > "$state"; exit 1' TERM
    touch "$begun"; while true; do sleep 0.05; done
"""
SAVES_TOO = """
import os, signal, sys, time
import mtask

def save(begun: str):
    state = mtask.checkpoint_dir() + "/state"
    if os.path.exists(state):
        return open(state).read()
    def on_sigterm(*_):
        time.sleep(2.5)
        open(state, "w").write("saved")
        sys.exit(1)
    signal.signal(signal.SIGTERM, on_sigterm)
    open(begun, "w").close()
    time.sleep(60)
"""


def test_who_hears_sigterm_has_the_last_third_of_the_grace_to_save_its_state(site: Site) -> None:
    (site.folder / "saves.py").write_text(SAVES_TOO)
    begun = [site.folder / "command", site.folder / "function"]
    commands = site.manager.submit([{"begun": str(begun[0])}], shell=SAVES, bag="commands")
    call = f"{site.folder}/saves.py:save"
    functions = site.manager.submit([{"begun": str(begun[1])}], call=call, bag="functions")
    first = site.start_worker("-j", "2", "--grace", "10")
    wait_for(lambda: all(path.exists() for path in begun), "both run")

    began_s = time.monotonic()
    first.terminate()
    ends(first, within_s=10 + 1)
    assert time.monotonic() - began_s > 10 * 2 / 3 + 2.5, "SIGTERM came with the last third only"

    site.start_worker("-j", "2")
    wait_for(lambda: commands.finished() and functions.finished(), "both bags are finished")
    (command,), (function,) = check(commands), check(functions)
    assert (command.stdout, function.value) == ("saved\n", "saved")
    assert_each_is_done_at_the_first_attempt(commands)
    assert_each_is_done_at_the_first_attempt(functions)


@pytest.mark.parametrize(
    ("grace_s", "last_s"), [(0, 2), (1, 2), (6, 2), (9, 3), (30, 10), (600, 10), (float("inf"), 10)]
)
def test_how_long_the_last_part_of_a_grace_is(grace_s: float, last_s: float) -> None:
    assert time_to_save_s(grace_s) == last_s


def test_twenty_drains_in_a_row_cost_a_task_nothing(site: Site) -> None:
    bag = site.submit("wait", 1, gate=str(site.gate), retries=0, max_deliveries=2, lease_s=60.0)
    for drains in range(20):
        made = Worker(site.manager.queue, site.manager.table, Options(slots=1, grace_s=0.0))
        thread = threading.Thread(target=made.run, daemon=True)
        thread.start()
        wait_for(lambda drains=drains: len(site.begins()) > drains, "the task runs")
        made.drain()
        thread.join(10)
        assert not thread.is_alive()
    site.open_gate()
    Worker(site.manager.queue, site.manager.table, Options(slots=1)).run(until=bag.finished)
    assert_each_is_done_at_the_first_attempt(bag)
    assert len(site.begins()) == 21


@pytest.mark.parametrize("when", ["at once", "while its child comes up"])
def test_a_worker_may_be_told_to_stop_at_any_time(site: Site, when: str) -> None:
    bag = site.submit("work", 50, per_message=10)
    first = site.start_worker("-j", "2")
    if when == "at once":
        wait_for(lambda: "slots" in first.said(), "it is up")
    else:
        wait_for(lambda: site.manager.queue.depth().leased, "it has received something")
    first.terminate()
    ends(first, within_s=4)
    site.start_worker("-j", "2")
    wait_for(bag.finished, "the bag is finished")
    assert_each_is_done_at_the_first_attempt(bag)
    assert len(site.begins()) == 50

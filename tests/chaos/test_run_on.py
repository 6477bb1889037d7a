"""Long tasks in one message, outages, and cancelled bags."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtask.errors import UnavailableError
from mtask.manager import connect
from mtask.model import State
from mtask.worker.supervisor import Options, Worker
from tests.chaos.harness import TASKS, Site, check, exists, wait_for


def test_a_message_of_slow_tasks_is_shared(site: Site) -> None:
    """Twenty tasks in one message that one worker holds: after a while another gets some of them."""
    bag = site.submit("work", 20, per_message=20, seconds=0.5)
    first = site.start_worker("-j", "1", "--split-after", "0.5")
    wait_for(lambda: site.begun(first), "one worker has the only message")
    second = site.start_worker("-j", "1", "--split-after", "0.5")
    wait_for(bag.finished, "the bag is finished", timeout_s=40)

    assert len(site.begun(second)) >= 4
    assert {result.state for result in check(bag)} == {State.DONE}
    assert Counter(begin.task for begin in site.begins()) == dict.fromkeys(range(20), 1)


class Faulty:
    """A queue or a table that is away from time to time."""

    def __init__(self, inner: Any, *methods: str) -> None:
        self._inner, self._methods = inner, methods
        self.away = threading.Event()
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._methods:
            return found
        return self._guarded(found)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.away.is_set():
                self.refused += 1
                raise UnavailableError("it is away")
            return method(*args, **kwargs)

        return call


QUEUE = ("send", "receive", "extend", "delete", "release")
TABLE = (
    "bag",
    "block",
    "record",
    "recorded",
    "keep_attempts",
    "set_aside",
    "beat",
    "counts",
    "lanes",
    "shared",
    "swap",
)


@pytest.mark.parametrize("which", ["table", "queue", "both"])
def test_an_outage_in_the_middle_loses_nothing(tmp_path: Path, which: str) -> None:
    """For four seconds, which is longer than the lease, nothing can be written or received."""
    log, said = tmp_path / "log", list[str]()
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        queue, table = Faulty(manager.queue, *QUEUE), Faulty(manager.table, *TABLE)
        rows = [{"x": x, "log": str(log), "seconds": 0.002} for x in range(800)]
        bag = manager.submit(rows, call=f"{TASKS}:work", bag="bag", lease_s=1.0, per_message=5)
        worker = Worker(queue, table, Options(slots=2), say=said.append)  # type: ignore[arg-type]
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            wait_for(lambda: bag.counts().done >= 200, "it is in the middle")
            faulty = {"table": [table], "queue": [queue], "both": [table, queue]}[which]
            for each in faulty:
                each.away.set()
            before = bag.counts().done
            time.sleep(4)
            if which != "queue":
                assert bag.counts().done <= before + 50, "what was being written when it went away"
            assert 0 < sum(each.refused for each in faulty) < 200, "it doesn't hammer"
            for each in faulty:
                each.away.clear()
            wait_for(bag.finished, "the bag is finished")
        finally:
            worker.drain(grace_s=0)
            thread.join(20)
        assert not thread.is_alive()
        assert {result.state for result in check(bag)} == {State.DONE}
        ran = Counter(int(line.split()[0]) for line in log.read_text().splitlines())
        assert set(ran) == set(range(800))
        if which == "table":
            assert max(ran.values()) == 1, "the leases were kept meanwhile"
        wait_for(lambda: manager.queue.depth() == (0, 0, 0), "the queue is empty")
    # The table, the queue, and what is written to both: each once, not a thousand times.
    assert len(said) == len({text.split(" after ")[0] for text in said}), said


def test_a_full_disk_in_the_middle_loses_nothing(site: Site) -> None:
    """No file of the worker may grow, not even what it says; then there is space again."""
    bag = site.submit("work", 300, lease_s=60.0, seconds=0.01, per_message=3)
    worker = site.start_worker("-j", "2")
    wait_for(lambda: bag.counts().done >= 50, "it is in the middle")
    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, most))
    time.sleep(2)
    done = bag.counts().done
    assert done < 100, "what was being written when it became full"
    time.sleep(1)
    assert (worker.alive, bag.counts().done) == (True, done)

    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))
    wait_for(bag.finished, "the bag is finished")
    assert {result.state for result in check(bag)} == {State.DONE}
    assert Counter(begin.task for begin in site.begins()) == dict.fromkeys(range(300), 1)
    worker.terminate()
    assert worker.exit_code() == 0
    assert "answers again" in worker.said(), "which could be written by then"
    assert worker.said().count("\n") < 10, worker.said()


def test_a_cancelled_bag_stops_within_seconds_and_no_other(site: Site) -> None:
    cancelled = site.submit("wait", 6, bag="cancelled", gate=str(site.folder / "never"), per_message=3)
    commands = site.manager.submit([{"s": 600}] * 3, shell="echo $$ >> pids; sleep $s & wait", bag="commands")
    other = site.submit("wait", 1, bag="other", gate=str(site.gate))
    worker = site.start_worker("-j", "6", "--lease", "5")
    pids = site.folder / "pids"
    wait_for(lambda: len(site.begins()) >= 3 and pids.exists(), "they run")
    wait_for(lambda: len(pids.read_text().split()) == 3, "they run")
    children = {begin.child for begin in site.begins()}

    cancelled.cancel()
    commands.cancel()
    took_s = wait_for(
        lambda: (
            sum(map(exists, children)) <= 1 and not any(exists(int(pid)) for pid in pids.read_text().split())
        ),
        "all that ran of it has ended",
    )
    assert took_s < 8

    site.open_gate()
    wait_for(other.finished, "the other bag is finished")
    check(other)
    wait_for(lambda: site.manager.queue.depth() == (0, 0, 0), "the queue is empty")
    assert cancelled.counts().ended == commands.counts().ended == 0
    worker.terminate()
    assert worker.exit_code() == 0

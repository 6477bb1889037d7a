"""Limits over all workers, with simulated clocks and a real table: each `Host` is the limits of one worker."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.errors import UnavailableError
from mtask.manager import connect
from mtask.requirements import Lane, Requirements
from mtask.table import Table
from mtask.worker.limits import DEAD_S, EMPTY_S, LOOK_AGAIN_S, RENEW_S, Limits
from tests.unit.worker_kit import Wrapper, unavailable

_numbers = itertools.count()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    path: Path = tmp_path_factory.mktemp("limits") / "mtask.db"
    with connect(f"sqlite:///{path}", f"sqlite:///{path}") as manager:
        yield manager.table


def a_lane(cpus: float = 1, uid: str | None = None, **limits: Any) -> Lane:
    """Of a bag of its own."""
    uid = f"uid-{next(_numbers)}" if uid is None else uid
    return Lane.of(0, Requirements(cpus=cpus), uid=uid, **limits)


class Host:
    def __init__(self, fleet: Fleet, *, ahead_s: float = 0, table: Any = None) -> None:
        self.running = self.started = 0
        self.limits = Limits(
            table or fleet.table,
            f"host-{next(_numbers)}",
            lambda _: self.running,
            clock=lambda: fleet.now_s,
            wall=lambda: 1e9 + fleet.now_s + ahead_s,
        )

    def start(self, lane: Lane, want: int, *, there: int = 10**9) -> int:
        """Ask for so many, of a lane with so many messages."""
        if not (allowed := self.limits.allow(lane, want)):
            return 0
        messages = min(allowed, there)
        self.running += messages
        self.started += messages
        self.limits.arrived(lane, messages, messages)
        return messages


class Fleet:
    def __init__(self, table: Table, hosts: int = 0) -> None:
        self.table, self.now_s = table, 0.0
        self.hosts = [Host(self) for _ in range(hosts)]

    def pass_s(self, seconds: float) -> None:
        """Time passes, in which those that live renew."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + RENEW_S)
            for host in self.hosts:
                host.limits.renew()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["start", "end", "die", "pass", "leave"]), st.integers(0, 6)
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(1, 5), steps=STEPS)
def test_never_more_than_allowed_run_on_those_that_live(
    table: Table, most: int, steps: list[tuple[int, str, int]]
) -> None:
    lane, fleet = a_lane(max_running=most), Fleet(table, 3)
    for number, action, amount in steps:
        host = fleet.hosts[number]
        if action == "start":
            host.start(lane, amount, there=amount // 2 + 1)
        elif action == "end":
            host.running = max(0, host.running - amount)
        elif action == "pass":
            fleet.pass_s(amount)
        else:
            if action == "leave":
                host.running = 0
                host.limits.leave()
            fleet.hosts[number] = Host(fleet)
        assert sum(host.running for host in fleet.hosts) <= most
    for host in fleet.hosts:
        host.running = 0
    fleet.hosts[0].start(lane, 1)
    fleet.pass_s(DEAD_S + EMPTY_S)
    assert fleet.hosts[0].start(lane, most) + 1 >= most, "no share is lost for ever"


def test_lanes_of_one_bag_have_one_limit(table: Table) -> None:
    fleet = Fleet(table, 2)
    one = a_lane(max_running=3)
    other = a_lane(cpus=2, uid=one.uid, max_running=3)
    first, second = fleet.hosts
    assert first.start(one, 2) == 2
    assert second.start(other, 3) == 1
    assert first.start(other, 1) == 0


def test_a_lane_that_is_empty_does_not_keep_the_bags_others_from_starting(table: Table) -> None:
    fleet = Fleet(table, 1)
    one = a_lane(max_running=3)
    other = a_lane(cpus=2, uid=one.uid, max_running=3)
    (host,) = fleet.hosts
    assert host.start(one, 2, there=0) == 0
    assert host.start(one, 2) == 0, "it is looked at again a little later"
    assert host.start(other, 2) == 2
    fleet.pass_s(EMPTY_S)
    assert host.start(one, 2) == 1


def test_the_share_of_one_that_died_is_free_after_a_while_and_of_one_that_leaves_at_once(
    table: Table,
) -> None:
    lane, fleet = a_lane(max_running=2), Fleet(table, 3)
    dead, leaving, other = fleet.hosts
    assert (dead.start(lane, 1), leaving.start(lane, 1), other.start(lane, 2)) == (1, 1, 0)
    leaving.limits.leave()
    fleet.hosts = [other]
    assert other.start(lane, 2) == 1
    fleet.pass_s(DEAD_S - 1)
    assert other.start(lane, 1) == 0
    fleet.pass_s(2)
    assert other.start(lane, 1) == 1


def test_a_worker_that_lives_keeps_its_share_however_long_its_task_runs(table: Table) -> None:
    lane, fleet = a_lane(max_running=1), Fleet(table, 2)
    fleet.hosts[0].start(lane, 1)
    for _ in range(10):
        assert fleet.hosts[1].start(lane, 1) == 0
        fleet.pass_s(DEAD_S)


@pytest.mark.parametrize("rate", [0.2, 3.0, 20.0, 150.0])
@pytest.mark.parametrize("hosts", [1, 3])
def test_the_rate_is_kept(table: Table, rate: float, hosts: int) -> None:
    """Also if some of what was allowed isn't there, or isn't started."""
    lane, fleet = a_lane(rate=rate), Fleet(table, hosts)
    most = max(20, int(rate / 2))
    seconds = max(20.0, 60 / rate)
    step_s = 0.05 if rate > 1 else 0.5
    for number in range(int(seconds / step_s)):
        for host in fleet.hosts:
            if number % 7 == 3 and (allowed := host.limits.allow(lane, most)):
                host.limits.arrived(lane, allowed, 0)
            host.start(lane, most)
            host.running = 0
        fleet.pass_s(step_s)
    started = sum(host.started for host in fleet.hosts)
    assert started == pytest.approx(rate * seconds, rel=0.1, abs=1)


def test_what_was_allowed_and_did_not_start_may_start_elsewhere(table: Table) -> None:
    """With one an hour, that matters."""
    lane, fleet = a_lane(rate=1 / 3600), Fleet(table, 2)
    first, second = fleet.hosts
    assert first.limits.allow(lane, 1) == 1
    assert second.start(lane, 1) == 0
    first.limits.arrived(lane, 1, 0)  # its bag was cancelled
    fleet.pass_s(LOOK_AGAIN_S)
    assert second.start(lane, 1) == 1
    fleet.pass_s(3500)
    assert first.start(lane, 1) == second.start(lane, 1) == 0
    fleet.pass_s(100)
    assert first.start(lane, 1) + second.start(lane, 1) == 1


def test_what_could_not_be_given_back_is_given_back_later(table: Table) -> None:
    lane, fleet = a_lane(rate=1 / 3600, max_running=1), Fleet(table, 1)
    away = Wrapper(table)
    host = Host(fleet, table=away)
    assert host.limits.allow(lane, 1) == 1
    away.faults["swap"] = unavailable
    with pytest.raises(UnavailableError):
        host.limits.arrived(lane, 0)
    assert fleet.hosts[0].start(lane, 1) == 0
    away.faults.clear()
    host.limits.renew()
    fleet.pass_s(LOOK_AGAIN_S)
    assert fleet.hosts[0].start(lane, 1) == 1


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_a_clock_that_is_wrong_by_an_hour_blocks_nobody_for_long(table: Table, ahead_s: float) -> None:
    lane, fleet = a_lane(rate=2.0), Fleet(table, 1)
    (right,) = fleet.hosts
    wrong = Host(fleet, ahead_s=ahead_s)
    for host in (right, wrong, right):
        host.start(lane, 1)
        fleet.pass_s(1)
    assert wrong.start(lane, 1), "nor itself"
    right.started = 0
    for _ in range(100):
        right.start(lane, 10)
        fleet.pass_s(0.1)
    assert right.started == pytest.approx(20, abs=3)


def test_threads_that_contend_lose_nothing(table: Table) -> None:
    lane, most, each = a_lane(max_running=3), 3, 40
    lock, seen, now = threading.Lock(), [0], [0]

    def work(host: Host) -> None:
        while host.started < each:
            if host.start(lane, 1):
                with lock:
                    now[0] += 1
                    seen[0] = max(seen[0], now[0])
                time.sleep(0.001)
                with lock:
                    now[0] -= 1
                host.running = 0
        host.limits.leave()

    fleet = Fleet(table, 5)
    threads = [threading.Thread(target=work, args=(host,), daemon=True) for host in fleet.hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert seen[0] <= most
    raw, _ = table.shared(f"limit/{lane.uid}")
    assert msgspec.json.decode(raw)["held"] == {}

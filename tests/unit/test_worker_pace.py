"""When a slot is given its next message: some behind quick ones, one shortly before the end of a long one."""

from __future__ import annotations

import math
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from mtask.queue import QueueLimits
from mtask.requirements import DEFAULT_LANE, Capabilities
from mtask.worker.dispatcher import Dispatcher
from mtask.worker.options import Options
from mtask.worker.pace import LEAD_S, Pace
from mtask.worker.receiver import Wish
from mtask.worker.room import Room

LONG_S = 60.0


def pace_of(*took_s: float) -> Pace:
    pace = Pace()
    for each_s in took_s:
        pace.over(each_s)
    return pace


def test_a_tenth_of_a_second_of_work_waits_behind_quick_ones() -> None:
    assert [pace_of(each_s).room_behind() for each_s in (0.001, 0.02, 0.05, 0.06)] == [32, 5, 2, 0]
    assert not Pace().room_behind()


def test_the_end_can_be_told_when_some_took_as_long_as_each_other() -> None:
    assert not pace_of(LONG_S).steady, "one says nothing"
    even = pace_of(*[LONG_S] * 60)
    assert even.steady
    assert even.ends_s(100.0) == pytest.approx(100.0 + LONG_S)
    even.over(LONG_S + 1)
    assert not even.steady
    even.forget()
    assert not even.steady
    assert not even.room_behind()


class Slot:
    """With a runner whose one job began when it is told."""

    retiring = False
    share = None

    def __init__(self, began_s: float, lane: Any = DEFAULT_LANE) -> None:
        self.jobs = deque([a_job(lane)])
        self.runner = SimpleNamespace(front_began_s=lambda: began_s)

    def gpus(self) -> tuple[str, ...]:
        return ()

    def takes_behind(self, job: Any) -> bool:
        return True

    def start(self, job: Any) -> None:
        self.jobs.append(job)


def a_job(lane: Any = DEFAULT_LANE) -> Any:
    return SimpleNamespace(held=SimpleNamespace(lane=lane, is_suspect=False), ready_s=0.0)


class Dispatching:
    """A dispatcher over such slots, which are all there are, and what it has asked the receiver for."""

    def __init__(self, *slots: Slot, took_s: tuple[float, ...] = (LONG_S,) * 60) -> None:
        self.wish: Wish | None = None
        nothing: Any = SimpleNamespace(full=lambda: False, quiet=lambda: True)
        room = Room(Capabilities(cpus=len(slots)), len(slots))
        for _ in slots:
            room.take(DEFAULT_LANE.requires)
        self.dispatcher = Dispatcher(
            slots,  # type: ignore[arg-type]
            room,
            receiver=SimpleNamespace(want=self._want),  # type: ignore[arg-type]
            recorder=nothing,
            limits=QueueLimits(message_bytes=10**6, send_batch=10, receive_batch=10),
            options=Options(),
        )
        for each_s in took_s:
            self.dispatcher.job_over(each_s)
        self.dispatcher.dispatch()

    def _want(self, wish: Wish | None, rounds: int) -> None:
        self.wish = wish


def test_nothing_is_asked_for_long_before_the_end_and_the_time_for_it_is_known() -> None:
    began_s = time.monotonic()
    dispatching = Dispatching(Slot(began_s), Slot(began_s - 1.0))
    assert dispatching.wish is None
    assert dispatching.dispatcher.due_s == pytest.approx(began_s - 1.0 + LONG_S - LEAD_S)


def test_shortly_before_the_end_of_some_one_message_is_asked_for_each() -> None:
    now_s = time.monotonic()
    first, other = Slot(now_s - LONG_S), Slot(now_s - LONG_S + 1.0)
    dispatching = Dispatching(first, other)
    assert dispatching.wish is not None
    assert dispatching.wish.messages(DEFAULT_LANE) == 1
    dispatching.dispatcher.ready.extend([a_job(), a_job()])
    dispatching.dispatcher.dispatch()
    assert (len(first.jobs), len(other.jobs), len(dispatching.dispatcher.ready)) == (2, 1, 1)


def test_none_waits_for_one_that_takes_longer_than_expected() -> None:
    dispatching = Dispatching(Slot(time.monotonic() - LONG_S - 1.0))
    assert dispatching.wish is None
    assert dispatching.dispatcher.due_s == math.inf


def test_none_is_asked_for_in_advance_where_the_times_differ() -> None:
    dispatching = Dispatching(Slot(time.monotonic() - LONG_S), took_s=(LONG_S, LONG_S + 5.0) * 30)
    assert dispatching.wish is None
    assert dispatching.dispatcher.due_s == math.inf


def test_a_worker_that_stops_waits_for_no_such_moment() -> None:
    dispatching = Dispatching(Slot(time.monotonic()))
    assert dispatching.dispatcher.due_s < math.inf
    dispatching.dispatcher.give_back_all()
    assert dispatching.dispatcher.due_s == math.inf

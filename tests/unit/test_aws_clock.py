"""The server's clock, from the dates of its answers."""

from __future__ import annotations

import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask_aws.clock import ServerClock

DELAYS = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 100)), min_size=1, max_size=30)


class Local:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@given(ahead_s=st.floats(-1e5, 1e5), delays=DELAYS)
def test_it_is_right_within_what_the_answers_allow(
    ahead_s: float, delays: list[tuple[float, float, float]]
) -> None:
    local = Local()
    clock = ServerClock(local)
    for there_s, back_s, pause_s in delays:
        asked_at = clock.local()
        local.now += there_s
        date = formatdate(math.floor(local.now + ahead_s), usegmt=True)
        local.now += back_s
        clock.saw(date, asked_at)
        assert abs(clock.now() - local.now - ahead_s) <= 1 + there_s + back_s + 1e-3
        local.now += pause_s
    quickest_s = min(there_s + back_s for there_s, back_s, _ in delays)
    assert abs(clock.now() - local.now - ahead_s) <= 1 + quickest_s + 1e-3


def test_a_clock_that_may_be_right_is_left_alone() -> None:
    local = Local()
    clock = ServerClock(local)
    clock.saw(formatdate(local.now - 0.2, usegmt=True), local.now - 0.1)
    assert clock.now() == local.now


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_clock_that_is_set_is_noticed(step_s: float) -> None:
    local = Local()
    clock, true = ServerClock(local), Local()
    for _ in range(3):
        clock.saw(formatdate(true.now, usegmt=True), local.now)
        local.now, true.now = local.now + 1, true.now + 1
    local.now += step_s
    clock.saw(formatdate(true.now, usegmt=True), local.now)
    assert abs(clock.now() - true.now) <= 1


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_changes_nothing(date: str | None) -> None:
    local = Local()
    clock = ServerClock(local)
    clock.saw(date, local.now)
    assert clock.now() == local.now

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mtask.model import Spec
from mtask.retry import backoff_s, is_last


def a_spec(**fields: object) -> Spec:
    return Spec(kind="call", target=("m:f",), **fields)  # type: ignore[arg-type]


@given(st.integers(0, 20))
def test_a_task_has_one_attempt_more_than_retries(retries: int) -> None:
    spec = a_spec(retries=retries)
    assert [is_last(spec, attempt) for attempt in range(1, retries + 2)] == [False] * retries + [True]


@given(st.integers(1, 10**6), st.floats(0, 100), st.floats(0, 10**4), st.integers())
def test_a_pause_is_within_its_limits(attempt: int, first_s: float, more_s: float, seed: int) -> None:
    spec = a_spec(backoff_s=first_s, backoff_max_s=first_s + more_s)
    pause_s = backoff_s(spec, attempt, random.Random(seed))
    assert 0 <= pause_s <= spec.backoff_max_s
    assert pause_s <= first_s * 2 ** min(attempt - 1, 60)


def test_pauses_double_and_have_full_jitter() -> None:
    spec = a_spec(backoff_s=1.0, backoff_max_s=60.0)
    rng = random.Random(1)
    for attempt, limit_s in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (50, 60)]:
        pauses = [backoff_s(spec, attempt, rng) for _ in range(2000)]
        assert max(pauses) > 0.95 * limit_s
        assert min(pauses) < 0.05 * limit_s
        assert abs(sum(pauses) / len(pauses) - limit_s / 2) < 0.05 * limit_s


def test_without_a_generator_pauses_differ() -> None:
    assert len({backoff_s(a_spec(), 5) for _ in range(10)}) == 10


def test_no_backoff_is_no_pause() -> None:
    assert backoff_s(a_spec(backoff_s=0.0, backoff_max_s=0.0), 10) == 0

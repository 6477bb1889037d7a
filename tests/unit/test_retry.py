from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.model import Failure, Reason, Result, Spec
from mtask.retry import backoff_s, is_last, pause_s


def a_spec(**fields: object) -> Spec:
    return Spec(kind="call", target=("m:f",), **fields)  # type: ignore[arg-type]


def a_failure(attempt: int = 1, exit_code: int | None = None, **fields: object) -> Result:
    error = Failure(**{"reason": Reason.EXIT, "type": "exit", "message": "", **fields})  # type: ignore[arg-type]
    return Result.failed("b", 0, error, attempt=attempt, exit_code=exit_code)


@pytest.mark.parametrize(
    ("spec", "failure", "last"),
    [
        ({}, {"final": True}, True),
        ({"retry_on": ("75",)}, {"exit_code": 75}, False),
        ({"retry_on": ("75",)}, {"exit_code": 1}, True),
        ({"no_retry": ("2",)}, {"exit_code": 2}, True),
        ({"no_retry": ("2",)}, {"exit_code": 3}, False),
        ({"retry_on": ("timeout",)}, {"reason": Reason.TIMEOUT, "type": "timeout"}, False),
        ({"retry_on": ("SIGSEGV",)}, {"reason": Reason.SIGNAL, "type": "SIGSEGV", "exit_code": -11}, False),
        (
            {"retry_on": ("signal",), "no_retry": ("SIGSEGV",)},
            {"reason": Reason.SIGNAL, "type": "SIGSEGV"},
            True,
        ),
        (
            {"retry_on": ("OSError",)},
            {"reason": Reason.RAISED, "type": "ValueError"},
            False,
        ),  # the child judged
    ],
)
def test_the_spec_chooses_which_failures_are_tried_again(spec: dict, failure: dict, last: bool) -> None:
    assert is_last(a_spec(**spec), a_failure(**failure)) is last


def test_a_task_may_choose_its_pause() -> None:
    assert pause_s(a_spec(), a_failure(retry_after_s=17.0)) == 17
    assert pause_s(a_spec(backoff_s=0.0, backoff_max_s=0.0), a_failure()) == 0


@given(st.integers(0, 20))
def test_a_task_has_one_attempt_more_than_retries(retries: int) -> None:
    spec = a_spec(retries=retries)
    assert [is_last(spec, a_failure(attempt)) for attempt in range(1, retries + 2)] == [False] * retries + [
        True
    ]


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

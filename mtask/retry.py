"""When a failed attempt is tried again, and after which pause. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Set

from mtask.model import Failure, Reason, Result, Spec

__all__ = ["backoff_s", "is_last", "is_wanted", "names_of", "pause_s"]


def is_last(spec: Spec, result: Result) -> bool:
    """Is this failed attempt the task's last one?"""
    error = result.error
    if result.attempt > spec.retries or (error is not None and error.final):
        return True
    # What a function raised was judged where it was raised, by its class and the bases of that.
    if error is None or error.reason in (Reason.RAISED, Reason.SETUP) or not (spec.retry_on or spec.no_retry):
        return False
    return not is_wanted(spec, names_of(error, result.exit_code))


def is_wanted(spec: Spec, names: Set[str]) -> bool:
    """Shall a failure that goes by these names be tried again, as far as `retry_on` and `no_retry` say?"""
    return (not spec.retry_on or not names.isdisjoint(spec.retry_on)) and names.isdisjoint(spec.no_retry)


def names_of(error: Failure, exit_code: int | None) -> set[str]:
    """By what `retry_on` and `no_retry` may call a failure that is no exception."""
    return {str(error.reason), error.type, *([] if exit_code is None else [str(exit_code)])}


def pause_s(spec: Spec, result: Result) -> float:
    """Seconds to wait after this failed attempt: what the task asked for, or the backoff."""
    if result.error is not None and result.error.retry_after_s is not None:
        return result.error.retry_after_s
    return backoff_s(spec, result.attempt)


def backoff_s(spec: Spec, attempt: int, rng: random.Random | None = None) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1).

    Exponential with full jitter: uniform between 0 and the doubled limit. Source: M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    limit = min(spec.backoff_max_s, spec.backoff_s * 2.0 ** min(attempt - 1, 60))
    return (rng or random).uniform(0, limit)

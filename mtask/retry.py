"""When a failed attempt is tried again. Pure functions."""

from __future__ import annotations

import random

from mtask.model import Spec

__all__ = ["backoff_s", "is_last"]


def is_last(spec: Spec, attempt: int) -> bool:
    """Is this attempt (counted from 1) the last one?"""
    return attempt > spec.retries


def backoff_s(spec: Spec, attempt: int, rng: random.Random | None = None) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1).

    Exponential with full jitter: uniform between 0 and the doubled limit. Source: M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    limit = min(spec.backoff_max_s, spec.backoff_s * 2.0 ** min(attempt - 1, 60))
    return (rng or random).uniform(0, limit)

"""A worker within a function of a cloud, which has only so much time."""

from __future__ import annotations

import os
import re
import sys
import tempfile

from mtask.errors import UsageError
from mtask.worker.capabilities import cpus_of_machine
from mtask.worker.options import Options

__all__ = ["GRACE_S", "LEAST_S", "MARGIN_S", "number_of", "options_within"]

LEAST_S = 10.0
"""In less time nothing can be run and written down."""
MARGIN_S = (5.0, 10.0)
"""For the last writes and the answer, at least and at most."""
GRACE_S = 30.0
"""What runs may take so long to end once the time is nearly over, at most."""


def options_within(left_s: float, setting: str) -> Options:
    """So that all is over before the function's time is. `setting`: what sets that; for people.

    MTASK_SLOTS and MTASK_CHECKPOINTS are heeded. Raises UsageError where that can't be.
    """
    if left_s < LEAST_S:
        raise UsageError(
            f"this function has only {left_s:.1f} s left; set {setting} to {LEAST_S:.0f} s at the very least, and to "
            "several times what a task takes"
        )
    margin_s = min(max(MARGIN_S[0], left_s / 6), MARGIN_S[1])
    grace_s = min(GRACE_S, (left_s - margin_s) / 3)
    runtime_s = left_s - margin_s - grace_s
    return Options(
        slots=number_of("MTASK_SLOTS") or cpus_of_machine(),
        grace_s=grace_s,
        max_runtime_s=runtime_s,
        timeout_s=runtime_s,  # what began at once and isn't done by then never will be
        checkpoints=os.environ.get("MTASK_CHECKPOINTS") or os.path.join(tempfile.gettempdir(), "checkpoints"),
        path=tuple(part for part in sys.path if part),  # some clouds set it in this process only
        lanes=False,
    )


def number_of(variable: str) -> int | None:
    """Of the environment; None: it isn't set. Raises UsageError."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise UsageError(f"{variable} must be a number from 1 to 999999999, not {text[:40]!r}")
    return int(text)

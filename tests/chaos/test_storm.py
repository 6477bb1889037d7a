"""Short storms over real workers; `make chaos` runs a long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.storm import ALL, CHANCES, Plan, Storm

SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))
"""Of this run; what failed can be tried again with the same one."""


@pytest.mark.parametrize("rates", [{}, CHANCES], ids=["hard", "flaky"])
def test_nothing_is_lost_whatever_happens(tmp_path: Path, rates: dict[str, float]) -> None:
    """Hard: workers die, freeze and drain, and queue or table go away. Flaky: beside that, single requests
    fail, hang, take effect twice, or not at all, and messages come in another order."""
    print(f"CHAOS_SEED={SEED}")
    storm = Storm(
        tmp_path,
        Plan(seed=SEED, tasks=400, workers=3, every_s=0.6, kinds=ALL, task_s=0.2, rates=rates),
    )
    try:
        storm.rage(10)
        storm.calm(timeout_s=60)
        wrongs = storm.wrongs()
        print(storm.figures())
    finally:
        storm.site.close()
    assert wrongs == []

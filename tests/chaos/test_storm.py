"""Short storms over real workers; `make chaos` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import CHANCES, storm_is_survived


@pytest.mark.parametrize("rates", [{}, CHANCES], ids=["hard", "flaky"])
def test_nothing_is_lost_whatever_happens(tmp_path: Path, rates: dict[str, float]) -> None:
    """Hard: workers die, freeze and drain, and queue or table go away. Flaky: beside that, single requests
    fail, hang, take effect twice, or not at all, and messages come in another order."""
    storm_is_survived(tmp_path, tasks=400, seconds=10, every_s=0.6, rates=rates)

"""What tasks need, where this machine alone runs them: `mtask.map` and `mtask.Executor`."""

from __future__ import annotations

import os
from collections import Counter

import pytest

import mtask


def environment(tags: str = "", memory: int = 0) -> dict[str, str]:
    return {"cpus": os.environ["MTASK_CPUS"], "tags": tags, "memory": str(memory)}


def test_columns_of_a_map_are_parameters_whatever_their_name() -> None:
    rows = [{"tags": "not a tag!", "memory": 5}, {"tags": "red;blue", "memory": 7}]
    values = mtask.map(environment, rows, slots=1)
    assert [(value["tags"], value["memory"]) for value in values] == [("not a tag!", "5"), ("red;blue", "7")]


def test_a_map_with_needs_that_this_machine_has() -> None:
    values = mtask.map(environment, [{"memory": n} for n in range(3)], slots=4, cpus=2, tags="here")
    assert Counter(value["cpus"] for value in values) == {"2": 3}


@pytest.mark.parametrize("needs", [{"gpus": 99}, {"cpus": 3}, {"only_on": "elsewhere"}])
def test_needs_that_this_machine_will_never_have_are_refused(needs: dict[str, object]) -> None:
    with pytest.raises(mtask.UsageError, match="which this machine, with 2 slots, doesn't have"):
        mtask.map(environment, [{}], slots=2, **needs)
    with pytest.raises(mtask.UsageError, match="which this machine, with 2 slots, doesn't have"):
        mtask.Executor(2, **needs)


def test_an_executor_with_needs() -> None:
    with mtask.Executor(2, cpus=2, memory="100MB", max_running=1) as executor:
        futures = [executor.submit(environment) for _ in range(3)]
        assert {future.result(timeout=30)["cpus"] for future in futures} == {"2"}


def test_an_executor_has_no_columns() -> None:
    with pytest.raises(mtask.UsageError, match="has no columns"):
        mtask.Executor(1, serial="x")

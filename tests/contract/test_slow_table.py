"""The slow table of the arXiv example: a table as any other, but that its `record` takes its time, one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from examples.arxiv.slow_table.mtask_slow import SlowTable, stored
from examples.arxiv.studies import processes
from mtask.errors import UsageError
from mtask.model import Bag, Result, Spec
from mtask.registry import open_table
from mtask.testing.table_contract import TableContract


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `mtask.registry` finds it by its entry point."""
    monkeypatch.syspath_prepend(str(processes.PACKAGES))


class TestSlowTable(TableContract):
    @pytest.fixture
    def table(self, tmp_path: Path) -> Iterator[SlowTable]:
        with closing(opened(tmp_path, 0.001)) as table:
            yield table


def opened(folder: Path, service_s: float) -> SlowTable:
    return cast(SlowTable, open_table(f"slow:///{folder}/tasks.db?reliable={service_s}"))


def done(bag: str, *indexes: int) -> list[Result]:
    return [Result.done(bag, index) for index in indexes]


def test_it_serves_one_at_a_time_and_says_when_rows_were_stored(tmp_path: Path) -> None:
    tables = [opened(tmp_path, 0.1) for _ in range(3)]
    spec = Spec(kind="call", target=("m:f",))
    for name in ("reliable-1", "quick"):
        tables[0].create_bag(Bag(name=name, spec=spec, columns=("x",), total=9))
    began_at = time.time()
    threads = [
        threading.Thread(target=table.record, args=(done("reliable-1", 2 * n, 2 * n + 1),))
        for n, table in enumerate(tables)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = stored(tmp_path / "tasks.db.stored", "reliable-1")
    assert [call.rows for call in calls] == [2, 2, 2]
    ends = [began_at, *(call.at for call in calls)]
    assert all(after - before > 0.09 for before, after in pairwise(ends))
    assert tables[0].recorded("reliable-1", range(9)) == set(range(6))

    began_s = time.monotonic()
    for index in range(3):
        tables[1].record(done("quick", index))
    assert time.monotonic() - began_s < 0.1
    assert sum(call.rows for call in stored(tmp_path / "tasks.db.stored", "quick")) == 3
    for table in tables:
        table.close()


def test_a_url_that_makes_no_sense(tmp_path: Path) -> None:
    for options in ("?reliable=soon", "?reliable"):
        with pytest.raises(UsageError, match=r"should look like slow:///tasks.db\?fast=0.06"):
            open_table(f"slow:///{tmp_path}/tasks.db{options}")

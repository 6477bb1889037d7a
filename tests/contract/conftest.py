"""A file's own fixture is `url`: of an empty queue, of an empty table, or of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from mtask.queue import Queue
from mtask.registry import open_queue, open_table
from mtask.table import Table


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    with closing(open_queue(url)) as queue:
        yield queue


@pytest.fixture
def table(url: str) -> Iterator[Table]:
    with closing(open_table(url)) as table:
        yield table

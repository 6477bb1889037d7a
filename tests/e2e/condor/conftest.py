"""What the tests on a real pool share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.manager import Manager, connect
from tests.servers.condor import CondorPool


@pytest.fixture(autouse=True)
def _importable(importable: None) -> None:
    """All of them submit it."""


@pytest.fixture
def table(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/table.db"


@pytest.fixture
def manager(pool: CondorPool, table: str) -> Iterator[Manager]:
    with connect(pool.url(), table) as made:
        yield made


@pytest.fixture
def marks(pool: CondorPool) -> Path:
    """A folder in which jobs leave traces."""
    folder = pool.folder / "queues" / f"marks-{os.urandom(4).hex()}"
    folder.mkdir()
    folder.chmod(0o777)
    return folder

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mtask.settings import Urls
from tests.chaos.harness import Site


@pytest.fixture
def urls() -> Urls | None:
    """Where queue and table are; None: in one file."""
    return None


@pytest.fixture
def site(tmp_path: Path, urls: Urls | None) -> Iterator[Site]:
    with Site(tmp_path, urls) as site:
        yield site

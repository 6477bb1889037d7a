"""Temporary folders of tests are in memory where that is possible: a slow disk makes no test slow.

And no test leaves its folders where the next one would import from.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import pytest

pytest_plugins = [
    "tests.servers.aws",
    "tests.servers.azure",
    "tests.servers.condor",
    "tests.servers.firestore",
    "tests.servers.gcp",
    "tests.servers.pipelines",
    "tests.servers.postgres",
    "tests.servers.rabbitmq",
    "tests.servers.rabbitmq_long",
]

MEMORY = "/dev/shm"
LEAST_FREE_BYTES = 1 << 30

if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > LEAST_FREE_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
# Tests that want notices of a cloud start their own metadata service.
os.environ.setdefault("MTASK_NOTICES", "off")


@pytest.fixture(autouse=True)
def search_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before

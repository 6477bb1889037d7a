"""Servers that speak AWS's protocols: moto (SQS, DynamoDB, S3, STS, …) and dynalite (DynamoDB, stricter).

A test that uses `moto` or `dynalite` has its environment set for boto3: endpoint, region and credentials.
"""

from __future__ import annotations

import functools
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import answers, free_port, missing, running

NODE = Path(__file__).parents[2] / ".servers/node_modules/.bin"
MOTO = Path(__file__).with_name("moto_server.py")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a moto server, for the whole session: name what you make as nobody else does."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    args = [sys.executable, str(MOTO), "-", "-H", "127.0.0.1", "-p", str(port)]
    with running(args, lambda: answers(f"{url}/moto-api/"), tmp_path_factory.mktemp("moto") / "log"):
        yield url


@pytest.fixture(scope="session")
def dynalite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("dynalite") or shutil.which("dynalite", path=str(NODE))
    if program is None:
        missing("dynalite", "`make servers` does it, or `npm install dynalite --prefix .servers`")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    args = [
        program,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--createTableMs",
        "0",
        "--deleteTableMs",
        "0",
    ]
    with running(args, lambda: answers(url), tmp_path_factory.mktemp("dynalite") / "log"):
        yield url


def reset(moto_url: str) -> None:
    """Empty a moto server."""
    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")).close()


@functools.cache
def shared_loader(*args: Any) -> Any:
    """What reads the descriptions of AWS's services: megabytes of JSON, and here not again for each of many clients."""
    from botocore.loaders import create_loader

    return create_loader(*args)


def point_at(url: str, patch: pytest.MonkeyPatch) -> str:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        patch.delenv(name, raising=False)
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": url}).items():
        patch.setenv(name, value)
    patch.setattr("botocore.session.create_loader", shared_loader)
    return url


@pytest.fixture
def moto(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a moto server with nothing in it."""
    yield point_at(moto_url, monkeypatch)
    reset(moto_url)


@pytest.fixture
def dynalite(dynalite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a dynalite server: name tables as nobody else does."""
    return point_at(dynalite_url, monkeypatch)

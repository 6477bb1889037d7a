"""Azure's blobs, as Azurite has them: the vendor's own emulator, from npm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.servers.aws import NODE
from tests.servers.process import answers, free_port, missing, running

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite, from its documentation."""


@pytest.fixture(scope="session")
def blobs_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    program = shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(NODE))
    if program is None:
        missing("azurite", "`make servers` does it, or `npm install azurite --prefix .servers`")
    port, folder = free_port(), tmp_path_factory.mktemp("blobs")
    args = [program, "--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with running(
        [*args, "--location", str(folder)], lambda: answers(f"http://127.0.0.1:{port}/"), folder / "log"
    ):
        yield port


@pytest.fixture
def blobs(blobs_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection string of a server for the whole session, which is in the environment, too: name containers as
    nobody else does."""
    said = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
        f"BlobEndpoint=http://127.0.0.1:{blobs_port}/{ACCOUNT};"
    )
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", said)
    return said

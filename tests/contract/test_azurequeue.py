"""The queue on Azure: the contract, the machine, and what Azure alone does. What can go wrong: test_azurequeue_faults.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import settings

from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import SETTINGS, QueueMachine
from tests.servers.azure import Azurite, azurite, azurite_server

pytest.importorskip("azure.storage.queue")
from mtask_azure.queue import AzureQueue

__all__ = ["azurite", "azurite_server"]


class AzureFixtures:
    short_s = 30.0
    margin_s = 0.5
    quiet_s = 0.1
    tells_expired = False

    @pytest.fixture(autouse=True)
    def _server(self, azurite: Azurite) -> None:
        self.server = azurite
        self.url = azurite.new()

    def advance(self, seconds: float) -> None:
        self.server.advance(seconds)

    @pytest.fixture
    def queue(self) -> Iterator[AzureQueue]:
        with closing(self.server.open(self.url)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: AzureQueue) -> Iterator[AzureQueue]:
        with closing(self.server.open(self.url)) as other:
            yield other


class TestQueue(AzureFixtures, QueueContract):
    pass


def test_the_queue_is_like_its_model(azurite: Azurite) -> None:
    class Harness:
        late_settles, tells_expired = True, False

        def __init__(self) -> None:
            self.url = azurite.new()

        def open(self) -> AzureQueue:
            return azurite.open(self.url)

        def advance(self, seconds: float) -> None:
            azurite.advance(seconds)

        def close(self) -> None:
            pass

    with azurite.standing_still():
        QueueMachine.run(Harness, settings(SETTINGS, max_examples=8, stateful_step_count=25))

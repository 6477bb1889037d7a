"""The queue on Pub/Sub, at Google's own emulator: the contract, and what Pub/Sub alone does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from mtask.testing.queue_contract import QueueContract
from mtask_gcp import PubSubQueue, make_queue, open_queue
from tests.servers.gcp import Emulator


class PubSubFixtures:
    short_s = 1.0
    margin_s = 0.1
    quiet_s = 0.2
    patience_s = 15.0

    @pytest.fixture(autouse=True)
    def _server(self, pubsub: Emulator) -> None:
        self.url = pubsub.url()
        make_queue(self.url)

    @pytest.fixture
    def queue(self) -> Iterator[PubSubQueue]:
        with closing(open_queue(self.url)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: PubSubQueue) -> Iterator[PubSubQueue]:
        with closing(open_queue(self.url)) as other:
            yield other


class TestQueue(PubSubFixtures, QueueContract):
    pass

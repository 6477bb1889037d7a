"""A task that runs for longer than RabbitMQ lets a message be held, while other tests run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mtask.model import Delivery
from mtask.settings import Urls
from mtask.testing.samples import a_message
from mtask_rabbitmq import RabbitQueue, make_queue, open_queue
from tests.chaos.harness import Site
from tests.servers.rabbitmq import CONSUMER_TIMEOUT_S, PASSWORD, Broker

LONG_S = CONSUMER_TIMEOUT_S + 8.0
"""Of the task; the broker of the tests looks for what was held for too long once a second."""


class LongTask:
    """Two workers, and one task that is running; and somebody who holds a message meanwhile."""

    def __init__(self, folder: Path, server: Broker) -> None:
        url = server.url()
        make_queue(url)
        self.site = Site(folder, Urls(url, f"sqlite:///{folder}/t.db"))
        self.bag = self.site.submit("work", 1, lease_s=5, seconds=LONG_S)
        for _ in range(2):
            self.site.start_worker("-j", "1")
        self.began_s = time.monotonic()
        held_url = server.url(options="heartbeat_s=5")  # nobody told it of the broker's timeout
        make_queue(held_url)
        self.queue: RabbitQueue = open_queue(held_url)
        self.queue.send([a_message()])
        (self.held,) = self.queue.receive(max_messages=1, lease_s=10_000, wait_s=10)

    def extend(self) -> list[Delivery]:
        """Those that are lost."""
        extension = self.queue.extend([self.held], lease_s=10_000)
        for _, self.held in extension.extended:
            pass
        return extension.lost

    def close(self) -> None:
        self.site.close()
        self.queue.close()


@pytest.fixture(scope="session")
def long_task(rabbitmq_server: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongTask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTASK_AMQP_PASSWORD", PASSWORD)
        long_task = LongTask(tmp_path_factory.mktemp("long"), rabbitmq_server)
    with closing(long_task):
        yield long_task

"""What tests of a queue have in common: the numbers that suit a backend, and steps such as `take`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

import pytest

from mtask.model import Delivery
from mtask.queue import Queue
from mtask.testing.samples import a_message

__all__ = ["QueueSteps"]


class QueueSteps:
    """The numbers suit a server with a real clock; a backend may set others."""

    short_s: ClassVar[float] = 2.0
    """A lease or delay to be waited for."""
    margin_s: ClassVar[float] = 1.0
    """How much later than promised a message may come."""
    patience_s: ClassVar[float] = 20.0
    """Longest time until a message that can be received is received."""
    quiet_s: ClassVar[float] = 0.5
    """How long to look for what should not come."""
    wakeup_s: ClassVar[float] = 2.0
    """Longest time from the end of a `send` to the return of a `receive` that waits."""
    tells_expired: ClassVar[bool] = True
    """Does `extend` know that a lease is over before somebody else has received the message?"""

    @pytest.fixture
    def other_queue(self, queue: Queue) -> Queue:
        return queue

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def expire(self) -> None:
        """Let a short lease or delay pass."""
        self.advance(self.short_s + self.margin_s)

    def take(self, queue: Queue, count: int = 1, *, lease_s: float | None = None) -> list[Delivery]:
        """Receive exactly `count` messages, with a long lease unless told otherwise."""
        deadline = time.monotonic() + self.patience_s
        taken: list[Delivery] = []
        while len(taken) < count and time.monotonic() < deadline:
            batch = min(count - len(taken), queue.limits.receive_batch)
            lease = 100 * self.short_s if lease_s is None else lease_s
            taken += queue.receive(max_messages=batch, lease_s=lease, wait_s=1)
        assert len(taken) == count
        return taken

    def take_one(self, queue: Queue, *, lease_s: float | None = None) -> Delivery:
        return self.take(queue, lease_s=lease_s)[0]

    def assert_nothing(self, queue: Queue) -> None:
        assert queue.receive(max_messages=1, lease_s=self.short_s, wait_s=self.quiet_s) == []

    def stale(self, queue: Queue) -> tuple[Delivery, Delivery]:
        """One message held twice: by one whose lease is over, and by its present holder."""
        queue.send([a_message()])
        old = self.take_one(queue, lease_s=self.short_s)
        self.expire()
        return old, self.take_one(queue)

    @staticmethod
    def needs_extension(queue: Queue) -> None:
        if not queue.limits.extends:
            pytest.skip("this queue can't extend leases")

    def eventually(self, condition: Callable[[], bool]) -> None:
        """A server's numbers may lag behind."""
        deadline = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def is_clock_fake(self) -> bool:
        return type(self).advance is not QueueSteps.advance

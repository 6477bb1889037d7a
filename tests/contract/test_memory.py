"""The queue in a process's memory: the contract and the machine."""

from __future__ import annotations

import pytest

from mtask.memory import MemoryQueue
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import QueueMachine
from mtask.testing.samples import a_message, index_of, messages


class Clock:
    """A clock that is moved by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class TestQueue(QueueContract):
    short_s = 30.0
    margin_s = 0.0
    quiet_s = 0.02
    wakeup_s = 1.0
    tells_expired = False

    @pytest.fixture
    def queue(self) -> MemoryQueue:
        self.clock = Clock()
        return MemoryQueue(clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def test_a_late_extension_counts_while_nobody_else_has_the_message(self, queue: MemoryQueue) -> None:
        queue.send(messages(2))
        _, late = self.take(queue, 2, lease_s=self.short_s)
        self.expire()
        self.take_one(queue)
        assert len(queue.extend([late], lease_s=self.short_s).extended) == 1
        self.assert_nothing(queue)
        self.expire()
        assert index_of(self.take_one(queue)) == index_of(late)

    def test_what_is_lent_is_held(self, queue: MemoryQueue) -> None:
        lent = queue.lend(a_message(3), lease_s=self.short_s)
        self.assert_nothing(queue)
        self.expire()
        again = self.take_one(queue)
        assert (again.body, lent.deliveries, again.deliveries) == (lent.body, 1, 2)
        queue.delete([lent])
        queue.delete([again])
        assert queue.depth() == (0, 0, 0)


class Harness:
    """One queue; all clients are in one process."""

    late_settles, tells_expired = True, False

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = MemoryQueue(clock=self.clock)

    def open(self) -> MemoryQueue:
        return self.queue

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def close(self) -> None:
        pass


def test_it_is_like_its_model() -> None:
    QueueMachine.run(Harness)

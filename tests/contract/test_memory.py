"""The queue in a process's memory: the contract and the machine."""

from __future__ import annotations

import pytest

from mtask.memory import MemoryQueue
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import QueueMachine


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

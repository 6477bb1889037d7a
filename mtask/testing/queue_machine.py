"""A queue against a model of one, in random sequences of steps that hypothesis chooses and shrinks.

A backend's test is `QueueMachine.run(MyHarness)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from mtask.model import Delivery
from mtask.queue import Depth, Queue
from mtask.testing.samples import a_message, index_of

__all__ = ["SETTINGS", "QueueHarness", "QueueMachine"]

SETTINGS = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
"""2,000 steps."""

SECONDS = st.sampled_from([1, 5, 20, 100])
CLIENTS = st.sampled_from([0, 1])


class QueueHarness(Protocol):
    """A new, empty queue whose clock can be moved."""

    late_settles: bool
    """Do `delete` and `release` count when the lease is over, but nobody else has the message?"""

    def open(self) -> Queue:
        """Another client of the queue."""
        ...

    def advance(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Copy:
    """What the model knows of a message."""

    visible_at: float
    holder: Delivery | None = None
    deliveries: int = 0


class QueueMachine(RuleBasedStateMachine):
    """Two clients of one queue, and a dictionary that says what they should see."""

    deliveries: Bundle[Delivery] = Bundle("deliveries")

    def __init__(self, harness: QueueHarness) -> None:
        super().__init__()
        self.harness = harness
        self.queues = [harness.open(), harness.open()]
        self.now = 0.0
        self.sent = 0
        self.model: dict[int, _Copy] = {}

    @classmethod
    def run(cls, make: Callable[[], QueueHarness], settings: settings = SETTINGS) -> None:
        """Run it; each sequence of steps begins with a harness of its own. Prints the failing one."""
        run_state_machine_as_test(lambda: cls(make()), settings=settings)  # type: ignore[arg-type]

    def teardown(self) -> None:
        for queue in self.queues:
            queue.close()
        self.harness.close()

    def held_by(self, delivery: Delivery, *, settling: bool = False) -> _Copy | None:
        """The message, if this delivery is its present holder."""
        copy = self.model.get(index_of(delivery))
        if copy is None or copy.holder is not delivery:
            return None
        late = settling and self.harness.late_settles
        return copy if late or copy.visible_at > self.now else None

    @rule(client=CLIENTS, count=st.integers(1, 4), delay_s=st.sampled_from([0, 0, 5, 50]))
    def send(self, client: int, count: int, delay_s: float) -> None:
        indexes = range(self.sent, self.sent + count)
        self.sent += count
        self.queues[client].send([a_message(index) for index in indexes], delay_s=delay_s)
        for index in indexes:
            self.model[index] = _Copy(self.now + delay_s)

    @rule(target=deliveries, client=CLIENTS, max_messages=st.integers(1, 3), lease_s=SECONDS)
    def receive(self, client: int, max_messages: int, lease_s: float) -> MultipleResults[Delivery]:
        visible = {index for index, copy in self.model.items() if copy.visible_at <= self.now}
        taken = self.queues[client].receive(max_messages=max_messages, lease_s=lease_s, wait_s=0)
        indexes = [index_of(delivery) for delivery in taken]
        assert len(set(indexes)) == len(indexes) <= max_messages
        assert set(indexes) <= visible
        assert bool(indexes) == bool(visible)
        for index, delivery in zip(indexes, taken, strict=True):
            copy = self.model[index]
            copy.visible_at, copy.holder, copy.deliveries = self.now + lease_s, delivery, copy.deliveries + 1
            if self.queues[client].limits.counts_deliveries:
                assert delivery.deliveries == copy.deliveries
        return multiple(*taken)

    @rule(target=deliveries, client=CLIENTS, delivery=deliveries, lease_s=SECONDS)
    def extend(self, client: int, delivery: Delivery, lease_s: float) -> MultipleResults[Delivery]:
        copy = self.held_by(delivery)
        extended, lost = self.queues[client].extend([delivery], lease_s=lease_s)
        if copy is None:
            assert (extended, lost) == ([], [delivery])
            return multiple()
        ((given, new),) = extended
        assert (given, lost) == (delivery, [])
        assert (new.body, new.deliveries) == (delivery.body, delivery.deliveries)
        assert new.token != delivery.token
        copy.visible_at, copy.holder = self.now + lease_s, new
        return multiple(new)

    @rule(client=CLIENTS, some=st.lists(deliveries, max_size=3))
    def delete(self, client: int, some: list[Delivery]) -> None:
        self.queues[client].delete(some)
        for delivery in some:
            if self.held_by(delivery, settling=True) is not None:
                del self.model[index_of(delivery)]

    @rule(client=CLIENTS, some=st.lists(deliveries, max_size=3), delay_s=st.sampled_from([0, 0, 5, 50]))
    def release(self, client: int, some: list[Delivery], delay_s: float) -> None:
        self.queues[client].release(some, delay_s=delay_s)
        for delivery in some:
            copy = self.held_by(delivery, settling=True)
            if copy is not None:
                copy.visible_at, copy.holder = self.now + delay_s, None
                copy.deliveries -= not self.queues[client].limits.counts_releases

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.harness.advance(seconds)

    @rule(client=CLIENTS)
    def reopen(self, client: int) -> None:
        self.queues[client].close()
        self.queues[client] = self.harness.open()

    @rule()
    def reopen_all(self) -> None:
        for queue in self.queues:
            queue.close()
        self.queues = [self.harness.open(), self.harness.open()]

    @invariant()
    def depth_is_right(self) -> None:
        if not self.queues[0].limits.knows_depth:
            return
        later = [copy for copy in self.model.values() if copy.visible_at > self.now]
        leased = sum(copy.holder is not None for copy in later)
        expected = Depth(len(self.model) - len(later), leased, len(later) - leased)
        for known, number in zip(self.queues[0].depth(), expected, strict=True):
            assert known in (None, number)

"""A queue against a model of one, in random sequences of steps that hypothesis chooses and shrinks.

A backend's test is `QueueMachine.run(MyHarness)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
NAMES = ("", "b")
"""Of the lanes; the empty one is the queue itself."""
LANES = st.sampled_from(NAMES)


class QueueHarness(Protocol):
    """A new, empty queue whose clock can be moved. If it has `ends_with_client = True`, the leases of a client are over
    when it is closed."""

    late_settles: bool
    """Do `delete` and `release` count when the lease is over, but nobody else has the message?"""
    tells_expired: bool
    """Does `extend` know by then that it is over?"""

    def open(self) -> Queue:
        """Another client of the queue."""
        ...

    def advance(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Copy:
    """What the model knows of a message."""

    lane: str
    visible_at: float
    holder: Delivery | None = None
    deliveries: int = 0
    client: int | None = None
    """Who received it last."""


class QueueMachine(RuleBasedStateMachine):
    """Two clients of one queue and a lane of it, and a dictionary that says what they should see."""

    deliveries: Bundle[Delivery] = Bundle("deliveries")

    def __init__(self, harness: QueueHarness) -> None:
        super().__init__()
        self.harness = harness
        self.queues = [self.open(), self.open()]
        """Of each client, by lane."""
        self.now = 0.0
        self.lanes: list[str] = []
        """By the index of each message that was sent."""
        self.model: dict[int, _Copy] = {}

    @classmethod
    def run(cls, make: Callable[[], QueueHarness], settings: settings = SETTINGS) -> None:
        """Run it; each sequence of steps begins with a harness of its own. Prints the failing one."""
        run_state_machine_as_test(lambda: cls(make()), settings=settings)  # type: ignore[arg-type]

    def teardown(self) -> None:
        for client in (0, 1):
            self.close(client)
        self.harness.close()

    def open(self) -> dict[str, Queue]:
        main = self.harness.open()
        return {name: main.lane(name) if name else main for name in NAMES}

    def close(self, client: int) -> None:
        for queue in self.queues[client].values():
            queue.close()
        if getattr(self.harness, "ends_with_client", False):
            for copy in self.model.values():
                if copy.client == client:
                    copy.visible_at, copy.holder, copy.client = min(copy.visible_at, self.now), None, None

    def by_lane(self, client: int, some: list[Delivery]) -> Iterator[tuple[Queue, list[Delivery]]]:
        for name, queue in self.queues[client].items():
            yield queue, [delivery for delivery in some if self.lanes[index_of(delivery)] == name]

    def held_by(self, delivery: Delivery, *, settling: bool = False) -> _Copy | None:
        """The message, if this delivery is its present holder."""
        copy = self.model.get(index_of(delivery))
        if copy is None or copy.holder is not delivery:
            return None
        return copy if settling or copy.visible_at > self.now else None

    @rule(client=CLIENTS, lane=LANES, count=st.integers(1, 4), delay_s=st.sampled_from([0, 0, 5, 50]))
    def send(self, client: int, lane: str, count: int, delay_s: float) -> None:
        indexes = range(len(self.lanes), len(self.lanes) + count)
        self.lanes += [lane] * count
        self.queues[client][lane].send([a_message(index) for index in indexes], delay_s=delay_s)
        for index in indexes:
            self.model[index] = _Copy(lane, self.now + delay_s)

    @rule(target=deliveries, client=CLIENTS, lane=LANES, max_messages=st.integers(1, 3), lease_s=SECONDS)
    def receive(self, client: int, lane: str, max_messages: int, lease_s: float) -> MultipleResults[Delivery]:
        queue = self.queues[client][lane]
        visible = {i for i, copy in self.model.items() if copy.lane == lane and copy.visible_at <= self.now}
        taken = queue.receive(max_messages=max_messages, lease_s=lease_s, wait_s=0)
        indexes = [index_of(delivery) for delivery in taken]
        assert len(set(indexes)) == len(indexes) <= max_messages
        assert set(indexes) <= visible
        assert bool(indexes) == bool(visible)
        for index, delivery in zip(indexes, taken, strict=True):
            copy = self.model[index]
            copy.visible_at, copy.holder, copy.deliveries = self.now + lease_s, delivery, copy.deliveries + 1
            copy.client = client
            if queue.limits.counts_deliveries:
                assert delivery.deliveries == copy.deliveries
        return multiple(*taken)

    @rule(target=deliveries, client=CLIENTS, delivery=deliveries, lease_s=SECONDS)
    def extend(self, client: int, delivery: Delivery, lease_s: float) -> MultipleResults[Delivery]:
        copy = self.held_by(delivery, settling=not self.harness.tells_expired)
        queue = self.queues[client][self.lanes[index_of(delivery)]]
        extended, lost = queue.extend([delivery], lease_s=lease_s)
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
        for queue, deliveries in self.by_lane(client, some):
            queue.delete(deliveries)
        for delivery in some:
            if self.held_by(delivery, settling=self.harness.late_settles) is not None:
                del self.model[index_of(delivery)]

    @rule(client=CLIENTS, some=st.lists(deliveries, max_size=3), delay_s=st.sampled_from([0, 0, 5, 50]))
    def release(self, client: int, some: list[Delivery], delay_s: float) -> None:
        for queue, deliveries in self.by_lane(client, some):
            queue.release(deliveries, delay_s=delay_s)
        for delivery in some:
            copy = self.held_by(delivery, settling=self.harness.late_settles)
            if copy is not None:
                copy.visible_at, copy.holder, copy.client = self.now + delay_s, None, None
                copy.deliveries -= not self.queues[client][copy.lane].limits.counts_releases

    @rule(client=CLIENTS)
    def remove(self, client: int) -> None:
        removed = self.queues[client]["b"].remove()
        assert not (removed and any(copy.lane == "b" for copy in self.model.values()))

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.harness.advance(seconds)

    @rule(client=CLIENTS)
    def reopen(self, client: int) -> None:
        self.close(client)
        self.queues[client] = self.open()

    @rule()
    def reopen_all(self) -> None:
        for client in (0, 1):
            self.close(client)
        self.queues = [self.open(), self.open()]

    @invariant()
    def depth_is_right(self) -> None:
        for name, queue in self.queues[0].items():
            copies = [copy for copy in self.model.values() if copy.lane == name]
            later = [copy for copy in copies if copy.visible_at > self.now]
            leased = sum(copy.holder is not None for copy in later)
            expected = Depth(len(copies) - len(later), leased, len(later) - leased)
            if queue.limits.knows_depth:
                for known, number in zip(queue.depth(), expected, strict=True):
                    assert known in (None, number)

"""Lanes: the physical queues of a logical one, each for a priority and a set of requirements.

A queue that knows nothing of priorities or filters (SQS) serves both this way: a worker looks at the
list of lanes in the table, and receives from those that it can serve. `Lanes` makes one queue of them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.errors import BackendError, SendError
from mtask.model import DeadMessage, Delivery, Message
from mtask.queue import Depth, Extension, KeepsDead, Queue, QueueLimits
from mtask.requirements import Lane
from mtask.table import Table

__all__ = ["Lanes"]

OLD_S = 7 * 86400.0
EMPTY = Depth(0, 0, 0)


class Lanes:
    """A queue of several: messages go to the lane they name, deliveries come from the lane asked for.

    `main` is the queue itself, the lane without a name; the others are opened when first used.
    """

    def __init__(self, main: Queue) -> None:
        self.main = main
        self._others: dict[str, Queue] = {}
        self._to_list: dict[str, tuple[Lane, Table]] = {}
        self._lock = threading.Lock()

    @classmethod
    def over(cls, queue: Queue) -> Lanes:
        return queue if isinstance(queue, Lanes) else cls(queue)

    @property
    def limits(self) -> QueueLimits:
        return self.main.limits

    def lane(self, name: str) -> Queue:
        """The physical queue; made when it isn't there."""
        if not name:
            return self.main
        queue = self._others.get(name)
        if queue is None:
            # Without the lock: it may take long, and others have leases to keep.
            opened = self.main.lane(name)
            with self._lock:
                queue = self._others.setdefault(name, opened)
            if queue is not opened:
                opened.close()
        return queue

    def remove(self) -> bool:
        return self.main.remove()

    def remove_lane(self, name: str) -> bool:
        """Take the physical queue away if nothing is in it; False: there is something, or may be."""
        if not name or not self.lane(name).remove():
            return False
        with self._lock:
            queue = self._others.pop(name, None)
        if queue is not None:
            queue.close()
        return True

    def clean(self, table: Table, *, unused_s: float = OLD_S) -> list[str]:
        """Take away the lanes that nothing was sent to for long and that are empty; returns their names."""
        gone = []
        for lane, age_s in table.lanes():
            if age_s < unused_s or self.lane(lane.name).depth() != EMPTY:
                continue
            # First from the list: a submit that enters it again meanwhile is not undone.
            if table.remove_lane(lane.name, unused_s=unused_s):
                if self.remove_lane(lane.name):
                    gone.append(lane.name)
                else:
                    table.put_lanes([lane])
        return gone

    def list_when_used(self, lane: Lane, table: Table) -> None:
        """From now on, enter it in the table's list, which the workers read, before anything is sent to it."""
        with self._lock:
            self._to_list[lane.name] = lane, table

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        unsent: list[tuple[Message, str]] = []
        groups = list(_grouped((message.lane, message) for message in messages))
        # Each time: a transaction that is undone undoes it. All of a table at once, so that it can keep an order:
        # two who enter the same ones one by one may wait for each other.
        listed = (self._to_list[name] for name, _ in groups if name in self._to_list)
        for table, lanes in _grouped((table, lane) for lane, table in listed):
            table.put_lanes(lanes)
        for name, group in groups:
            try:
                self.lane(name).send(group, delay_s=delay_s)
            except SendError as error:
                unsent += error.unsent
        if unsent:
            raise SendError(unsent)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float, lane: str = "") -> list[Delivery]:
        deliveries = self.lane(lane).receive(max_messages=max_messages, lease_s=lease_s, wait_s=wait_s)
        return [msgspec.structs.replace(each, lane=lane) for each in deliveries] if lane else deliveries

    def wake(self) -> None:
        with self._lock:
            queues = [self.main, *self._others.values()]
        for queue in queues:
            queue.wake()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        extended: list[tuple[Delivery, Delivery]] = []
        lost: list[Delivery] = []
        fault: BackendError | None = None
        for name, group in _grouped((delivery.lane, delivery) for delivery in deliveries):
            try:
                answer = self.lane(name).extend(group, lease_s=lease_s)
            except BackendError as error:
                fault = error  # the other lanes' new tokens must not be lost with it
                continue
            extended += [(old, msgspec.structs.replace(new, lane=name)) for old, new in answer.extended]
            lost += answer.lost
        if fault is not None and not extended and not lost:
            raise fault
        return Extension(extended, lost)

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, lambda queue, group: queue.delete(group))

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        self._settle(deliveries, lambda queue, group: queue.release(group, delay_s=delay_s))

    def _settle(
        self, deliveries: Sequence[Delivery], settle: Callable[[Queue, list[Delivery]], None]
    ) -> None:
        """In each lane, also when another one is out of reach: that is raised at the end."""
        fault: BackendError | None = None
        for name, group in _grouped((delivery.lane, delivery) for delivery in deliveries):
            try:
                settle(self.lane(name), group)
            except BackendError as error:
                fault = error
        if fault is not None:
            raise fault

    def depth(self, names: Iterable[str] = ("",)) -> Depth:
        """Of these lanes together; None where one of them can't know."""
        depths = [Depth(0, 0, 0), *(self.lane(name).depth() for name in names)]
        return Depth(*(None if None in column else sum(column) for column in zip(*depths, strict=True)))

    def dead(self) -> Iterator[DeadMessage]:
        """What the vendor has taken out by itself, if it does that."""
        return self.main.dead() if isinstance(self.main, KeepsDead) else iter(())

    def close(self) -> None:
        with self._lock:
            for queue in self._others.values():
                queue.close()
            self._others.clear()
        self.main.close()


def _grouped(items: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, list[Any]]]:
    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    for name, item in items:
        groups[name].append(item)
    return groups.items()

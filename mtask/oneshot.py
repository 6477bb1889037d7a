"""Deliveries that are handed to a process, instead of being asked for: by AWS Lambda, HTCondor, Slurm.

The ordinary worker works them off. What it deletes has been done; what it releases, or leaves, is somebody
else's again, and whoever handed it over is told so (`OneShotQueue.undone`).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from mtask.errors import BackendError
from mtask.giveback import give_back
from mtask.lanes import Lanes
from mtask.model import Delivery, Message
from mtask.queue import Depth, Extension, Queue, QueueLimits

__all__ = ["OneShotQueue"]


class OneShotQueue:
    """A queue that holds just these deliveries.

    Their leases last as long as this process: who hands a message over doesn't give it to another before
    that. So none is lost, and to extend one costs nothing.
    """

    def __init__(self, deliveries: Sequence[Delivery], behind: Queue | None = None) -> None:
        """`behind`: the queue they came from, which their tokens are of; it stays the caller's to close. What is
        sent goes there, and what is released comes back there at once. Without it nothing can be sent."""
        self._given = list(deliveries)
        self._waiting = deque(
            msgspec.structs.replace(each, token=number) for number, each in enumerate(self._given)
        )
        self._behind = behind
        self._deleted: set[int] = set()
        self._released: set[int] = set()
        self._changed, self._woken = threading.Condition(), False
        self.limits = _limits(behind, len(self._given))
        self.meter = getattr(behind, "meter", None)

    # -- for whoever handed them over ---------------------------------------------------------------

    def settled(self) -> bool:
        """Has every delivery been deleted or released?"""
        with self._changed:
            return len(self._deleted | self._released) == len(self._given)

    def undone(self) -> list[int]:
        """Which deliveries, by their place in the sequence, were not deleted: they must be given to someone else."""
        with self._changed:
            return [number for number in range(len(self._given)) if number not in self._deleted]

    def give_back_rest(self) -> None:
        """What nobody has received here goes to someone else, without looking like the death of a worker."""
        with self._changed:
            rest = list(self._waiting)
            self._waiting.clear()
        if rest:
            give_back(Lanes(self), rest)

    # -- Queue --------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        _required(self._behind).send(messages, delay_s=delay_s)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:  # noqa: ARG002
        with self._changed:
            if not self._waiting:
                self._changed.wait_for(lambda: self._woken, wait_s)
            self._woken = False
            return [self._waiting.popleft() for _ in range(min(max_messages, len(self._waiting)))]

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:  # noqa: ARG002
        with self._changed:
            held = [(each, each) for each in deliveries if self._holds(each)]
            return Extension(held, [each for each in deliveries if not self._holds(each)])

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._deleted.update(each.token for each in deliveries if self._holds(each))

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        with self._changed:
            held = [each.token for each in deliveries if self._holds(each)]
        if held and self._behind is not None:
            self._behind.release([self._given[number] for number in held], delay_s=delay_s)
        with self._changed:
            self._released.update(held)

    def depth(self) -> Depth:
        with self._changed:
            ready = len(self._waiting)
            ended = len(self._deleted | self._released)
        return Depth(ready, len(self._given) - ready - ended, 0)

    def lane(self, name: str) -> Queue:
        return _Elsewhere(self._behind, name)

    def remove(self) -> bool:
        return False

    def close(self) -> None:
        self.wake()

    def _holds(self, delivery: Delivery) -> bool:
        return delivery.token not in self._deleted and delivery.token not in self._released


class _Elsewhere:
    """Another lane: there is nothing in it for this process, but it may send something there."""

    def __init__(self, behind: Queue | None, name: str) -> None:
        self._behind, self._name = behind, name
        self._opened: Queue | None = None
        self._woken = threading.Event()
        self.limits = _limits(behind, 1)

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        if self._opened is None:
            self._opened = _required(self._behind).lane(self._name)
        self._opened.send(messages, delay_s=delay_s)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:  # noqa: ARG002
        self._woken.wait(wait_s)
        self._woken.clear()
        return []

    def wake(self) -> None:
        self._woken.set()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:  # noqa: ARG002
        return Extension([], list(deliveries))

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        pass

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        pass

    def depth(self) -> Depth:
        return Depth(None, None, None)

    def lane(self, name: str) -> Queue:
        raise BackendError(f"the lane {self._name!r} has no lane {name!r}")

    def remove(self) -> bool:
        return False

    def close(self) -> None:
        self.wake()
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def _limits(behind: Queue | None, deliveries: int) -> QueueLimits:
    """Those of the queue for what is sent; none for what is held."""
    if behind is None:
        return QueueLimits(
            message_bytes=2**31, send_batch=1, receive_batch=max(1, deliveries), workers_send=False
        )
    return msgspec.structs.replace(
        behind.limits,
        receive_batch=max(1, deliveries),
        lease_s=math.inf,
        hold_s=math.inf,
        wait_s=math.inf,
        extends=True,
    )


def _required(behind: Queue | None) -> Queue:
    if behind is None:
        raise BackendError("this process was handed its messages, and can't send any")
    return behind

"""The LeaseKeeper, against queues that fail, lose leases, or can't extend them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from mtask.errors import UnavailableError
from mtask.model import Delivery
from mtask.queue import Extension, QueueLimits
from mtask.worker.held import Held
from mtask.worker.leases import ALONG, LeaseKeeper
from mtask.worker.notes import Notes
from tests.unit.worker_kit import held_of, wait_until

LIMITS = QueueLimits(message_bytes=10**6, send_batch=10, receive_batch=10)


class FakeQueue:
    """Extends, or does what the test says."""

    def __init__(self) -> None:
        self.limits = LIMITS
        self.extensions: list[tuple[list[object], float, float]] = []
        """(tokens, lease, when)."""
        self.away = False
        self.lost: set[object] = set()
        """Tokens."""
        self.faulty: set[object] = set()
        """Tokens of those that meet a passing fault."""
        self.gate = threading.Event()
        self.gate.set()
        self._tokens = itertools.count(1000)

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        self.extensions.append(([d.token for d in deliveries], lease_s, time.monotonic()))
        self.gate.wait(10)
        if self.away:
            raise UnavailableError("it is away")
        result = Extension([], [])
        for delivery in deliveries:
            if delivery.token in self.lost:
                result.lost.append(delivery)
            elif delivery.token not in self.faulty:
                new = msgspec.structs.replace(delivery, token=next(self._tokens))
                result.extended.append((delivery, new))
        return result


class Kept:
    def __init__(self) -> None:
        self.queue, self.lost, self.said = FakeQueue(), list[Held](), list[str]()
        self.keeper = LeaseKeeper(self.queue, self.lost.append, Notes(self.said.append))  # type: ignore[arg-type]
        self.keeper.start()


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.queue.gate.set()
    kept.keeper.stop()
    kept.keeper.join(5)
    assert not kept.keeper.is_alive()


def short(token: object, lease_s: float = 0.3) -> Held:
    return held_of(lease_s=lease_s, token=token)


def test_a_lease_is_extended_at_a_third_of_its_life_again_and_again(kept: Kept) -> None:
    held = short(1, lease_s=0.6)
    began_s = held.renewed_s
    kept.keeper.add([held])
    wait_until(lambda: len(kept.queue.extensions) >= 3)

    times = [at_s - began_s for _, _, at_s in kept.queue.extensions]
    assert 0.19 <= times[0] <= 0.45
    assert 0.14 <= times[1] - times[0] <= 0.4
    # each time with the token of the last
    assert [tokens for tokens, _, _ in kept.queue.extensions][:3] == [[1], [1000], [1001]]
    assert held.delivery.token >= 1001
    assert held.expires_s > began_s + 0.9
    assert kept.lost == []


def test_an_extended_lease_is_counted_from_before_it_was_asked_for(kept: Kept) -> None:
    """The queue may have begun it at any time since; a slow answer doesn't make it last longer."""
    kept.queue.gate.clear()
    held = short(1, lease_s=5)
    held.renewed_s = 0
    kept.keeper.add([held])
    wait_until(lambda: kept.queue.extensions)
    (_, _, asked_s) = kept.queue.extensions[0]
    time.sleep(0.1)
    kept.queue.gate.set()
    wait_until(lambda: held.delivery.token == 1000)
    wait_until(lambda: held.renewed_s > 0)
    assert held.renewed_s <= asked_s
    assert asked_s + 4.9 <= held.expires_s <= asked_s + 5


def test_leases_are_extended_in_batches_one_for_each_length(kept: Kept) -> None:
    kept.queue.gate.clear()
    kept.keeper.add([short(at, 0.3) for at in range(3)] + [short(at, 0.33) for at in range(3, 6)])
    wait_until(lambda: kept.queue.extensions)
    kept.queue.gate.set()
    wait_until(lambda: len(kept.queue.extensions) >= 2)
    first, second = kept.queue.extensions[:2]
    assert {frozenset(first[0]), frozenset(second[0])} == {frozenset(range(3)), frozenset(range(3, 6))}
    assert {first[1], second[1]} == {0.3, 0.33}


def test_what_is_due_takes_along_what_was_not_just_received(kept: Kept) -> None:
    """A request for ten leases costs as much as one for one."""
    due, along, new = short(1, 3), short(2, 3), short(3, 3)
    due.renewed_s -= 1.1
    along.renewed_s -= 3 * ALONG + 0.05
    kept.keeper.add([due, along, new])
    wait_until(lambda: kept.queue.extensions)
    assert sorted(kept.queue.extensions[0][0]) == [1, 2]


def test_an_extension_that_fails_is_tried_again_and_said_once(kept: Kept) -> None:
    kept.queue.away = True
    held = short(1, lease_s=2)
    held.renewed_s -= 1
    kept.keeper.add([held])
    wait_until(lambda: len(kept.queue.extensions) >= 3)
    kept.queue.away = False
    wait_until(lambda: held.delivery.token != 1)
    assert kept.lost == []
    assert [text.partition(" ")[2][:20] for text in kept.said] == [
        "queue doesn't answer",
        "queue answers again ",
    ]


def test_a_lease_is_given_up_only_when_it_is_over(kept: Kept) -> None:
    kept.queue.away = True
    held = short(1)
    kept.keeper.add([held])
    wait_until(lambda: kept.lost)
    assert held.expires_s <= time.monotonic() <= held.expires_s + 0.2
    assert held.lost
    assert kept.lost == [held]
    tries = len(kept.queue.extensions)
    assert tries >= 3
    time.sleep(0.2)
    assert len(kept.queue.extensions) == tries  # it is not extended any more


def test_a_lease_that_the_queue_calls_lost_is_lost_at_once_and_the_others_are_kept(kept: Kept) -> None:
    lost, other = short(1, 5), short(2, 5)
    lost.renewed_s = other.renewed_s = 0
    kept.queue.lost = {1}
    kept.keeper.add([lost, other])
    wait_until(lambda: kept.lost)
    assert time.monotonic() < lost.expires_s - 2
    assert kept.lost == [lost]
    assert lost.lost
    assert not other.lost
    assert kept.keeper.held() == [other]


def test_a_passing_fault_of_one_is_tried_again_for_it_alone(kept: Kept) -> None:
    faulty, other = short(1, 2), short(2, 2)
    faulty.renewed_s = other.renewed_s = 0
    kept.queue.faulty = {1}
    kept.keeper.add([faulty, other])
    wait_until(lambda: len(kept.queue.extensions) >= 2)
    assert kept.queue.extensions[1][0] == [1]
    kept.queue.faulty = set()
    wait_until(lambda: faulty.delivery.token != 1)
    assert not kept.lost


def test_a_queue_that_cant_extend_is_not_asked_and_its_leases_end(kept: Kept) -> None:
    kept.queue.limits = msgspec.structs.replace(LIMITS, extends=False)
    held = short(1)
    kept.keeper.add([held])
    wait_until(lambda: kept.lost)
    assert kept.queue.extensions == []
    assert time.monotonic() >= held.expires_s


def test_forget_waits_for_the_extension_under_way_so_that_the_token_holds(kept: Kept) -> None:
    kept.queue.gate.clear()
    held = short(1, 5)
    held.renewed_s = 0
    kept.keeper.add([held])
    wait_until(lambda: kept.queue.extensions)

    forgotten = threading.Event()
    forgetting = threading.Thread(target=lambda: (kept.keeper.forget([held]), forgotten.set()))
    forgetting.start()
    assert not forgotten.wait(0.1)
    kept.queue.gate.set()
    assert forgotten.wait(5)
    forgetting.join()
    assert held.delivery.token == 1000
    time.sleep(0.05)
    assert len(kept.queue.extensions) == 1


def test_what_is_added_later_with_a_shorter_lease_is_extended_first(kept: Kept) -> None:
    kept.keeper.add([short(1, 60)])
    kept.keeper.add([short(2, 0.3)])
    wait_until(lambda: kept.queue.extensions)
    assert kept.queue.extensions[0][0] == [2]


def test_an_error_that_nobody_foresaw_is_told(kept: Kept) -> None:
    errors: list[BaseException] = []
    kept.keeper.on_failure = errors.append

    def extend(deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:
        raise ZeroDivisionError

    kept.queue.extend = extend  # type: ignore[method-assign]
    held = short(1, 5)
    held.renewed_s = 0
    kept.keeper.add([held])
    wait_until(lambda: errors)
    kept.keeper.join(5)
    kept.keeper.forget([held])  # and nobody waits for it in vain

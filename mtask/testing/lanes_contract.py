"""The part of the contract of a queue that is about its lanes; `QueueContract` brings it along."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from mtask.errors import UnavailableError
from mtask.model import Delivery
from mtask.queue import Queue
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, index_of, messages

__all__ = ["LanesContract"]

NAME = "c0ffee0123456789"
"""As long as the names that the engine makes."""


class LanesContract(QueueSteps):
    """Tests of lanes, with the fixtures of `mtask.testing.queue_contract`."""

    @pytest.fixture
    def lane(self, queue: Queue) -> Iterator[Queue]:
        with closing(queue.lane(NAME)) as lane:
            yield lane

    def test_a_lane_is_a_queue_like_its_main_one(self, queue: Queue, lane: Queue) -> None:
        assert isinstance(lane, Queue)
        assert lane.limits == queue.limits

    def test_lanes_are_apart(self, queue: Queue, lane: Queue) -> None:
        with closing(queue.lane("b")) as third:
            queues = (queue, lane, third)
            for number, each in enumerate(queues):
                each.send([a_message(number)])
            assert [index_of(self.take_one(each)) for each in queues] == [0, 1, 2]
            for each in queues:
                self.assert_nothing(each)

    def test_one_name_is_one_lane(self, queue: Queue, other_queue: Queue, lane: Queue) -> None:
        lane.send([a_message(1)])
        with closing(other_queue.lane(NAME)) as same, closing(queue.lane(NAME)) as third:
            delivery = self.take_one(same)
            assert index_of(delivery) == 1
            self.assert_nothing(lane)
            same.release([delivery])
            assert index_of(self.take_one(third)) == 1

    def test_leases_and_delivery_counts_are_apart(self, queue: Queue, lane: Queue) -> None:
        queue.send([a_message(0)])
        lane.send([a_message(1)])
        lent = self.take_one(lane, lease_s=self.short_s)
        held = self.take_one(queue)
        self.expire()
        self.assert_nothing(queue)
        again = self.take_one(lane)
        if queue.limits.counts_deliveries:
            assert (lent.deliveries, again.deliveries, held.deliveries) == (1, 2, 1)
        lane.delete([again])
        self.assert_nothing(lane)
        queue.release([held])
        assert index_of(self.take_one(queue)) == 0

    def test_delays_are_apart(self, queue: Queue, lane: Queue) -> None:
        lane.send([a_message(0)], delay_s=self.short_s)
        queue.send([a_message(1)])
        assert index_of(self.take_one(queue)) == 1
        self.assert_nothing(lane)
        self.expire()
        assert index_of(self.take_one(lane)) == 0

    def test_a_lease_in_a_lane_is_extended_and_given_back(self, queue: Queue, lane: Queue) -> None:
        self.needs_extension(queue)
        lane.send([a_message()])
        first = self.take_one(lane, lease_s=self.short_s)
        ((_, second),) = lane.extend([first], lease_s=100 * self.short_s).extended
        self.expire()
        self.assert_nothing(lane)
        lane.release([second])
        self.take_one(lane)

    def test_depths_are_apart(self, queue: Queue, lane: Queue) -> None:
        if not queue.limits.knows_depth:
            pytest.skip("this queue does not know its depth")
        queue.send(messages(2))
        lane.send(messages(3))
        lane.send([a_message(3)], delay_s=50 * self.short_s)
        self.take_one(lane)
        for each, depth in ((queue, (2, 0, 0)), (lane, (2, 1, 1))):
            self.eventually(
                lambda each=each, depth=depth: all(  # type: ignore[misc]
                    known in (None, number) for known, number in zip(each.depth(), depth, strict=True)
                )
            )

    def test_each_lane_is_closed_by_itself(self, queue: Queue, other_queue: Queue) -> None:
        one, two = queue.lane(NAME), queue.lane(NAME)
        one.send([a_message(1)])
        one.close()
        queue.send([a_message(0)])
        assert index_of(self.take_one(queue)) == 0
        assert index_of(self.take_one(two)) == 1
        two.close()
        with closing(other_queue.lane(NAME)) as three:
            three.send([a_message(2)])
            assert index_of(self.take_one(three)) == 2

    # -- removal ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("how", ["ready", "leased", "delayed"])
    def test_a_lane_with_something_in_it_stays(self, other_queue: Queue, lane: Queue, how: str) -> None:
        lane.send([a_message(1)], delay_s=self.short_s if how == "delayed" else 0)
        held: list[Delivery] = [self.take_one(lane)] if how == "leased" else []
        with closing(other_queue.lane(NAME)) as same:
            assert not same.remove()
        lane.release(held)
        if how == "delayed":
            self.expire()
        assert index_of(self.take_one(lane)) == 1

    def remove_empty(self, lane: Queue) -> None:
        if not lane.limits.knows_depth:
            pytest.skip("this queue never knows that a lane is empty")
        self.eventually(lane.remove)

    def send_anew(self, lane: Queue, index: int) -> None:
        """A vendor may keep the name of what was removed for a while."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return lane.send([a_message(index)])
            except UnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.5)

    def test_an_empty_lane_is_removed_and_made_again(
        self, queue: Queue, other_queue: Queue, lane: Queue
    ) -> None:
        queue.send([a_message(0)])
        lane.send([a_message(1)])
        lane.delete([self.take_one(lane)])
        self.remove_empty(lane)
        assert index_of(self.take_one(queue)) == 0
        with closing(other_queue.lane(NAME)) as same:
            self.send_anew(lane, 2)
            assert index_of(self.take_one(same)) == 2
        self.assert_nothing(queue)

    def test_who_has_a_removed_lane_open_finds_nothing_and_may_send(
        self, other_queue: Queue, lane: Queue
    ) -> None:
        with closing(other_queue.lane(NAME)) as same:
            self.remove_empty(same)
            self.assert_nothing(lane)
            self.send_anew(lane, 1)
            assert index_of(self.take_one(lane)) == 1

"""What every queue must do: the sentences of `mtask.queue.Queue` as tests.

A backend's tests are its fixtures and one line, `class TestMine(MyFixtures, QueueContract): pass`.
The fixtures are

    queue           a new, empty queue (required)
    other_queue     the same queue as another client sees it; by default the same object

and, where time can be moved, a method `advance(seconds)`. What a vendor can't do it says in
`queue.limits`, and the tests of it are skipped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from mtask.errors import SendError
from mtask.giveback import give_back
from mtask.model import Delivery
from mtask.queue import Queue
from mtask.testing.lanes_contract import LanesContract
from mtask.testing.samples import a_message, a_message_of_bytes, index_of, messages

__all__ = ["QueueContract"]


class QueueContract(LanesContract):
    """Tests of a queue and its lanes; see `QueueSteps` for the numbers that a backend may set."""

    # -- sending and receiving ----------------------------------------------------------------------

    def test_it_is_a_queue(self, queue: Queue) -> None:
        assert isinstance(queue, Queue)

    def test_a_message_comes_out_as_it_went_in(self, queue: Queue) -> None:
        message = a_message(7, attempt=2, deaths=1, check=True, sent_at=1.5, not_before=2.5)
        queue.send([message])
        delivery = self.take_one(queue)
        assert delivery.body == message.encode()
        assert delivery.deliveries == 1

    @pytest.mark.parametrize(
        "text", ["grüße 🦠", "\x00\x01\x7f\x9f", "\u2028'\"\\</a>&#10;]]>", "\ufffe\uffff"]
    )
    def test_every_text_survives(self, queue: Queue, text: str) -> None:
        message = a_message(value=text)
        queue.send([message])
        assert self.take_one(queue).body == message.encode()

    def test_an_empty_queue_gives_nothing_after_the_wait(self, queue: Queue) -> None:
        started = time.monotonic()
        assert queue.receive(max_messages=1, lease_s=self.short_s, wait_s=0.3) == []
        assert 0.25 <= time.monotonic() - started < 0.3 + self.patience_s

    def test_one_that_is_woken_loses_nothing(self, queue: Queue) -> None:
        queue.wake()
        waker = threading.Timer(0.1, queue.wake)
        waker.start()
        assert queue.receive(max_messages=1, lease_s=self.short_s, wait_s=0.3) == []
        waker.join()
        queue.send([a_message(0)])
        assert self.take_one(queue).body == a_message(0).encode()

    def test_it_returns_no_more_than_asked_for(self, queue: Queue) -> None:
        queue.send(messages(5))
        assert len(queue.receive(max_messages=2, lease_s=100 * self.short_s, wait_s=self.patience_s)) in (
            1,
            2,
        )

    def test_it_returns_as_soon_as_there_is_one(self, queue: Queue) -> None:
        queue.send([a_message()])
        started = time.monotonic()
        wait_s = self.patience_s + 10
        assert len(queue.receive(max_messages=10, lease_s=self.short_s, wait_s=wait_s)) == 1
        assert time.monotonic() - started < self.patience_s

    def test_a_send_wakes_one_that_waits(self, queue: Queue, other_queue: Queue) -> None:
        sent_at: list[float] = []

        def send() -> None:
            other_queue.send([a_message()])
            sent_at.append(time.monotonic())

        timer = threading.Timer(0.2, send)
        timer.start()
        wait_s = min(self.patience_s, queue.limits.wait_s)
        assert len(queue.receive(max_messages=1, lease_s=100 * self.short_s, wait_s=wait_s)) == 1
        received_at = time.monotonic()
        timer.join()
        assert received_at - sent_at[0] < self.wakeup_s

    def test_more_than_one_batch(self, queue: Queue) -> None:
        count = 2 * queue.limits.send_batch + 1
        queue.send(messages(count))
        indexes = Counter(index_of(delivery) for delivery in self.take(queue, count))
        assert indexes == Counter(range(count))

    def test_nothing_is_fine_everywhere(self, queue: Queue) -> None:
        queue.send([])
        queue.delete([])
        queue.release([])
        assert queue.extend([], lease_s=self.short_s) == ([], [])

    def test_the_largest_message(self, queue: Queue) -> None:
        message = a_message_of_bytes(queue.limits.message_bytes)
        queue.send([message])
        assert self.take_one(queue).body == message.encode()

    def test_a_larger_one_is_named_and_the_others_are_sent(self, queue: Queue) -> None:
        big = a_message_of_bytes(queue.limits.message_bytes + 1, 1)
        with pytest.raises(SendError) as caught:
            queue.send([a_message(0), big, a_message(2)])
        assert [message for message, _ in caught.value.unsent] == [big]
        assert {index_of(delivery) for delivery in self.take(queue, 2)} == {0, 2}
        self.assert_nothing(queue)

    # -- delays -------------------------------------------------------------------------------------

    def test_a_delayed_message_comes_after_its_delay(self, queue: Queue) -> None:
        queue.send([a_message()], delay_s=self.short_s)
        self.assert_nothing(queue)
        self.expire()
        self.take_one(queue)

    def test_one_that_waits_gets_it_when_its_time_comes(self, queue: Queue) -> None:
        queue.send([a_message()], delay_s=self.short_s)
        taken: list[Delivery] = []
        thread = threading.Thread(target=lambda: taken.extend(self.take(queue)))
        thread.start()
        self.expire()
        thread.join()
        assert len(taken) == 1

    def test_a_delayed_message_holds_up_no_other(self, queue: Queue) -> None:
        queue.send([a_message(0)], delay_s=50 * self.short_s)
        queue.send([a_message(1)])
        assert index_of(self.take_one(queue)) == 1

    # -- leases -------------------------------------------------------------------------------------

    def test_a_leased_message_is_nobody_elses(self, queue: Queue, other_queue: Queue) -> None:
        queue.send([a_message()])
        self.take_one(queue)
        self.assert_nothing(other_queue)

    def test_it_comes_again_when_its_lease_is_over(self, queue: Queue, other_queue: Queue) -> None:
        queue.send([a_message(3)])
        self.take_one(queue, lease_s=self.short_s)
        self.expire()
        assert index_of(self.take_one(other_queue)) == 3

    def test_deliveries_are_counted(self, queue: Queue) -> None:
        if not queue.limits.counts_deliveries:
            pytest.skip("this queue does not count deliveries")
        queue.send([a_message()])
        for expected in (1, 2, 3):
            assert self.take_one(queue, lease_s=self.short_s).deliveries == expected
            self.expire()

    def test_a_deleted_message_never_comes_again(self, queue: Queue) -> None:
        queue.send([a_message()])
        delivery = self.take_one(queue, lease_s=self.short_s)
        queue.delete([delivery])
        self.expire()
        self.assert_nothing(queue)
        queue.delete([delivery])  # silently

    def test_another_thread_may_settle(self, queue: Queue) -> None:
        queue.send(messages(2))
        taken: list[Delivery] = []
        thread = threading.Thread(target=lambda: taken.extend(self.take(queue, 2, lease_s=self.short_s)))
        thread.start()
        thread.join()
        queue.delete(taken[:1])
        queue.release(taken[1:])
        assert self.take_one(queue).body == taken[1].body
        self.expire()
        self.assert_nothing(queue)

    # -- stale holders can do no harm ---------------------------------------------------------------

    def test_a_stale_delete_is_harmless(self, queue: Queue, other_queue: Queue) -> None:
        old, new = self.stale(queue)
        queue.delete([old])
        other_queue.release([new])
        self.take_one(queue)

    def test_a_stale_release_is_harmless(self, queue: Queue) -> None:
        old, new = self.stale(queue)
        queue.release([old])
        self.assert_nothing(queue)
        queue.delete([new])

    def test_a_stale_extend_is_lost_and_harmless(self, queue: Queue) -> None:
        self.needs_extension(queue)
        old, new = self.stale(queue)
        assert queue.extend([old], lease_s=self.short_s) == ([], [old])
        self.expire()  # had it counted, the new lease would be this short
        self.assert_nothing(queue)
        queue.delete([new])
        self.advance(100 * self.short_s if self.is_clock_fake() else 0)
        self.assert_nothing(queue)

    def test_an_expired_lease_that_nobody_took_settles_without_error(self, queue: Queue) -> None:
        queue.send(messages(2))
        one, two = self.take(queue, 2, lease_s=self.short_s)
        self.expire()
        queue.delete([one])
        queue.release([two])

    # -- extension ----------------------------------------------------------------------------------

    def test_an_extended_lease_lasts(self, queue: Queue) -> None:
        self.needs_extension(queue)
        queue.send([a_message()])
        first = self.take_one(queue, lease_s=self.short_s)
        extended, lost = queue.extend([first], lease_s=100 * self.short_s)
        assert ([given for given, _ in extended], lost) == ([first], [])
        second = extended[0][1]
        assert (second.body, second.deliveries) == (first.body, first.deliveries)
        self.expire()
        self.assert_nothing(queue)
        queue.delete([second])
        assert queue.extend([second], lease_s=self.short_s).extended == []

    def test_an_extension_counts_from_now(self, queue: Queue) -> None:
        self.needs_extension(queue)
        queue.send([a_message()])
        delivery = self.take_one(queue)
        queue.extend([delivery], lease_s=self.short_s)
        self.expire()
        self.take_one(queue)

    @pytest.mark.parametrize("settle", ["delete", "release"])
    def test_an_extension_voids_the_old_token(self, queue: Queue, settle: str) -> None:
        self.needs_extension(queue)
        queue.send([a_message()])
        old = self.take_one(queue)
        new = queue.extend([old], lease_s=100 * self.short_s).extended[0][1]
        getattr(queue, settle)([old])
        self.assert_nothing(queue)
        assert queue.extend([old], lease_s=self.short_s).extended == []
        queue.release([new])
        self.take_one(queue)

    def test_an_expired_lease_can_not_be_extended(self, queue: Queue) -> None:
        self.needs_extension(queue)
        if not self.tells_expired:
            pytest.skip("this queue extends an expired lease when nobody else has the message")
        queue.send(messages(2))
        expired = self.take_one(queue, lease_s=self.short_s)
        held = self.take_one(queue)
        self.expire()
        extended, lost = queue.extend([expired, held], lease_s=self.short_s)
        assert ([given for given, _ in extended], lost) == ([held], [expired])

    # -- release ------------------------------------------------------------------------------------

    def test_a_released_message_comes_at_once(self, queue: Queue, other_queue: Queue) -> None:
        queue.send([a_message()])
        first = self.take_one(queue)
        queue.release([first])
        second = self.take_one(other_queue)
        assert second.body == first.body
        if queue.limits.counts_deliveries:
            assert second.deliveries == (2 if queue.limits.counts_releases else 1)

    def test_a_release_with_a_delay(self, queue: Queue) -> None:
        queue.send([a_message()])
        queue.release([self.take_one(queue)], delay_s=self.short_s)
        self.assert_nothing(queue)
        self.expire()
        self.take_one(queue)

    def test_a_released_token_is_void(self, queue: Queue) -> None:
        queue.send([a_message()])
        old = self.take_one(queue)
        queue.release([old])
        new = self.take_one(queue)
        queue.delete([old])
        queue.release([new])
        self.take_one(queue)

    @pytest.mark.parametrize("version", [1, 99], ids=["", "of a newer mtask"])
    def test_what_is_given_back_is_no_death(self, queue: Queue, version: int) -> None:
        message = a_message(v=version)
        queue.send([message])
        for _ in range(2):
            give_back(queue, [self.take_one(queue)])
        last = self.take_one(queue)
        assert last.body == message.encode()
        if queue.limits.counts_deliveries:
            assert last.deliveries == 1
        self.assert_nothing(queue)

    # -- depth --------------------------------------------------------------------------------------

    def test_depth(self, queue: Queue) -> None:
        if not queue.limits.knows_depth:
            assert None in queue.depth()
            pytest.skip("this queue does not know its depth")
        queue.send(messages(3))
        queue.send([a_message(3)], delay_s=50 * self.short_s)
        held = self.take_one(queue)
        self.eventually(lambda: all(n in (None, m) for n, m in zip(queue.depth(), (2, 1, 1), strict=True)))
        queue.delete([held])
        self.eventually(lambda: all(n in (None, m) for n, m in zip(queue.depth(), (2, 0, 1), strict=True)))

    # -- many at once -------------------------------------------------------------------------------

    def test_no_two_hold_the_same_message(self, queue: Queue, other_queue: Queue) -> None:
        count, lock = 120, threading.Lock()
        handled: Counter[int] = Counter()
        queue.send(messages(count))
        start = threading.Barrier(4)

        def work(mine: Queue) -> None:
            start.wait()
            deadline = time.monotonic() + self.patience_s
            while time.monotonic() < deadline and handled.total() < count:
                taken = mine.receive(max_messages=3, lease_s=100 * self.short_s, wait_s=0.05)
                with lock:
                    handled.update(index_of(delivery) for delivery in taken)
                mine.delete(taken)

        threads = [threading.Thread(target=work, args=(q,)) for q in (queue, other_queue) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handled == Counter(range(count))

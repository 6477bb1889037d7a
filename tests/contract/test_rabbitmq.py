"""The queue at RabbitMQ, on a real broker: the contract, the machine, and what RabbitMQ alone does.

The clock of leases, which is this side's, can be moved; delays are the broker's, and are waited for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mtask.errors import SendError, UnusableError
from mtask.lanes import Lanes
from mtask.model import Delivery
from mtask.queue import Depth, KeepsDead, Queue
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import SETTINGS, QueueMachine
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, index_of, messages
from mtask_rabbitmq import RabbitQueue, make_queue, names, open_queue
from mtask_rabbitmq.broker import Broker as Connections
from mtask_rabbitmq.outgoing import Outgoing
from mtask_rabbitmq.sender import Letter
from tests.servers.rabbitmq import PASSWORD, USER, Broker

NAME = "c0ffee0123456789"
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Of the machine: shrinking takes minutes, with a broker."""


class Clock:
    """Of the leases of some queues."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self.queues: list[RabbitQueue] = []

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Returns when what is over by then has been given back."""
        self._ahead_s += seconds
        for queue in self.queues:
            if not queue._closed.is_set():
                queue.broker.call(_look(queue))


async def _look(queue: RabbitQueue) -> None:
    queue._end_leases()
    if queue._line is not None and queue._line.is_open:
        await queue._line.sync()


class RabbitFixtures:
    short_s = 1.0
    margin_s = 0.6
    quiet_s = 0.3
    patience_s = 15.0

    @pytest.fixture(autouse=True)
    def _server(self, rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.clock, self.delayed_until_s = rabbitmq, Clock(), 0.0
        self.url = rabbitmq.url()
        make_queue(self.url)
        init, send = RabbitQueue.__init__, Outgoing.post

        def noted(queue: RabbitQueue, *args: Any, **options: Any) -> None:
            init(queue, *args, **options)
            self.clock.queues.append(queue)

        async def sent(outgoing: Outgoing, bodies: Any, delay_s: float) -> list[str]:
            if 0 < delay_s <= self.short_s:
                self.delayed_until_s = time.monotonic() + delay_s + self.margin_s
            return await send(outgoing, bodies, delay_s)

        monkeypatch.setattr(RabbitQueue, "__init__", noted)
        monkeypatch.setattr(Outgoing, "post", sent)

    def advance(self, seconds: float) -> None:
        time.sleep(max(0.0, self.delayed_until_s - time.monotonic()))
        self.clock.advance(seconds)

    @pytest.fixture
    def queue(self) -> Iterator[RabbitQueue]:
        with closing(RabbitQueue.open(self.url, clock=self.clock)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: RabbitQueue) -> Iterator[RabbitQueue]:
        with closing(RabbitQueue.open(self.url, clock=self.clock)) as other:
            yield other

    def raw(self) -> pika.BlockingConnection:
        """Somebody else's connection."""
        credentials = pika.PlainCredentials(USER, PASSWORD)
        return pika.BlockingConnection(
            pika.ConnectionParameters("127.0.0.1", self.server.port, credentials=credentials)
        )


class TestQueue(RabbitFixtures, QueueContract):
    def test_each_lane_is_closed_by_itself(self, queue: Queue, other_queue: Queue) -> None:
        """What is held by one that is closed goes to others at once."""
        one, two = queue.lane(NAME), queue.lane(NAME)
        one.send([a_message(1)])
        one.close()
        queue.send([a_message(0)])
        assert index_of(self.take_one(queue)) == 0
        assert index_of(self.take_one(two)) == 1
        two.close()
        with closing(other_queue.lane(NAME)) as three:
            again = self.take_one(three)
            assert (index_of(again), again.deliveries) == (1, 2)


class TestLostConnections(RabbitFixtures, QueueSteps):
    def test_a_lost_connection_is_a_lost_lease(self, queue: RabbitQueue, other_queue: RabbitQueue) -> None:
        queue.send(messages(2))
        held = self.take(queue, 2)
        self.cut(queue)
        again = self.take(other_queue, 2)
        assert [each.deliveries for each in again] == [2, 2]
        queue.delete(held[:1])
        queue.release(held[1:])
        assert queue.extend(held, lease_s=10) == ([], held)
        self.assert_nothing(queue)
        assert len(other_queue.extend(again, lease_s=10).extended) == 2

    def cut(self, queue: RabbitQueue) -> None:
        """Have the broker close this queue's connections, as it does when it is stopped."""
        self.server.control("close_all_connections", "--vhost", "/", "--global", "by the test")
        self.eventually(lambda: not any(link.is_open for link in queue.broker._links.values()))

    def test_after_a_lost_connection_all_goes_on(self, queue: RabbitQueue) -> None:
        queue.send([a_message(0)])
        self.cut(queue)
        queue.send([a_message(1)])
        assert sorted(index_of(each) for each in self.take(queue, 2)) == [0, 1]
        assert queue.depth().ready == 0

    def test_a_receive_that_waits_says_that_the_connection_is_lost(self, queue: RabbitQueue) -> None:
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(queue.receive, max_messages=1, lease_s=10, wait_s=20)
            self.eventually(lambda: bool(queue._woken))
            self.cut(queue)
            assert "broke off" in str(waits.exception(10))


class TestWhatIsRabbitmqAlone(RabbitFixtures, QueueSteps):
    def test_leases_end_by_themselves(self, queue: RabbitQueue, other_queue: RabbitQueue) -> None:
        """By the real clock."""
        queue.send([a_message()])
        (held,) = queue.receive(max_messages=1, lease_s=0.5, wait_s=5)
        (again,) = other_queue.receive(max_messages=1, lease_s=60, wait_s=10)
        assert again.deliveries == 2
        assert queue.extend([held], lease_s=60).lost == [held]

    def test_nothing_is_fetched_ahead(self, queue: RabbitQueue, other_queue: RabbitQueue) -> None:
        queue.send(messages(50))
        mine = queue.receive(max_messages=3, lease_s=100, wait_s=5)
        assert len(mine) == 3
        others = other_queue.receive(max_messages=100, lease_s=100, wait_s=5)
        others += other_queue.receive(max_messages=100, lease_s=100, wait_s=0)
        assert sorted(map(index_of, mine + others)) == list(range(50))
        assert {each.deliveries for each in mine + others} == {1}

    def test_what_comes_while_a_receive_gives_up_is_not_lost(
        self, queue: RabbitQueue, other_queue: RabbitQueue
    ) -> None:
        """Between the cancelling of a consumer and the broker's answer, too. Now and then (about one in 4,000 of these) the
        broker itself takes a message back then, and counts that."""
        count, taken = 400, list[Delivery]()

        def send() -> None:
            for index in range(count):
                other_queue.send([a_message(index)])

        sender = threading.Thread(target=send)
        sender.start()
        deadline = time.monotonic() + 60
        while len(taken) < count and time.monotonic() < deadline:
            got = queue.receive(max_messages=2, lease_s=1000, wait_s=0.002)
            assert len(got) <= 2
            taken += got
        sender.join()
        assert sorted(map(index_of, taken)) == list(range(count))
        assert sum(each.deliveries > 1 for each in taken) <= count // 40
        assert max(each.deliveries for each in taken) <= 2

    def test_a_delivery_held_for_too_long_is_lost_and_the_limit_is_learned(self, rabbitmq: Broker) -> None:
        """The broker says it when it closes the channel; it is 60 s there, so here the channel is closed in its words."""
        from pika.exceptions import ChannelClosedByBroker

        with closing(
            open_queue(self.server.url(self.url.rpartition("/")[2].partition("?")[0], options=""))
        ) as q:
            assert q.limits.hold_s == 1800
            q.send([a_message()])
            self.take_one(q)
            text = (
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 60000 ms. "
                "This timeout value can be configured, see consumers doc guide to learn more"
            )
            line = q._line
            assert line is not None
            line._closed(ChannelClosedByBroker(406, text))
            assert q.limits.hold_s == 60

    def test_what_was_delivered_too_often_is_kept(self, queue: RabbitQueue) -> None:
        queue.send([a_message(7)])
        with closing(queue.lane(NAME)) as lane:
            lane.send([a_message(8)])
            for each in (queue, lane):
                for _ in range(names.DELIVERIES + 1):
                    self.take_one(each, lease_s=1)
                    self.clock.advance(1)
                self.assert_nothing(each)
        self.eventually(lambda: len(list(queue.dead())) == 2)
        for _ in range(2):  # looking takes nothing away
            dead = list(queue.dead())
            assert [each.body for each in dead] == [a_message(7).encode(), a_message(8).encode()]
            assert "delivered too often" in dead[0].reason
            assert abs(dead[0].at - time.time()) < 60
        assert isinstance(queue, KeepsDead)
        assert len(list(Lanes(queue).dead())) == 2

    def test_what_is_given_back_is_not_counted(self, queue: RabbitQueue) -> None:
        queue.send([a_message()])
        for _ in range(3):
            held = self.take_one(queue, lease_s=1)
            self.clock.advance(1)
            held = self.take_one(queue)
            queue.release([held])
        assert self.take_one(queue).deliveries == 4

    def test_many_workers_make_the_same_lane_at_once(
        self, queue: RabbitQueue, other_queue: RabbitQueue
    ) -> None:
        with ThreadPoolExecutor(8) as pool:
            lanes = list(pool.map(lambda n: (queue, other_queue)[n % 2].lane("b"), range(8)))
        lanes[0].send([a_message(1)])
        assert index_of(self.take_one(lanes[7])) == 1
        for lane in lanes:
            lane.close()

    def test_a_lane_that_somebody_consumes_or_holds_stays(self, queue: RabbitQueue) -> None:
        with closing(queue.lane("b")) as lane, closing(queue.lane("b")) as same:
            lane.send([a_message()])
            held = self.take_one(lane)
            assert same.depth() == (0, None, 0)
            assert not same.remove()
            lane.delete([held])
            self.eventually(same.remove)
        assert not queue.remove(), "the queue itself is never removed"

    def test_delays_are_as_long_as_they_should_be(self, queue: RabbitQueue) -> None:
        """Sums of several levels, one behind the other; none holds up another."""
        began_s = time.monotonic()
        for index, delay_s in enumerate((3.4, 0.2, 2.5, 1.0, 1.4)):
            queue.send([a_message(index)], delay_s=delay_s)
        came = {}
        while len(came) < 5:
            (delivery,) = self.take(queue)
            came[index_of(delivery)] = time.monotonic() - began_s
        for index, least_s in enumerate((3.5, 0.5, 2.5, 1.0, 1.5)):
            assert least_s - 0.05 <= came[index] < least_s + 1.5, came

    def test_a_delayed_message_for_a_lane_that_was_removed_meanwhile(self, queue: RabbitQueue) -> None:
        with closing(queue.lane("b")) as lane, closing(queue.lane("b")) as same:
            assert same.remove()
            lane.send([a_message(3)], delay_s=0.5)
            assert index_of(self.take_one(same)) == 3

    @pytest.mark.parametrize("lane", ["", NAME])
    def test_delays_that_are_gone_are_made_again(self, queue: RabbitQueue, lane: str) -> None:
        """As after a broker that was lost and made anew."""
        with closing(queue.lane(lane) if lane else self.more(queue)) as target:
            target.send([a_message(0)], delay_s=0.9)
            for level in range(2):
                with closing(self.raw()) as connection:
                    channel = connection.channel()
                    channel.exchange_delete(names.delay(queue.name, level))
                    channel.queue_delete(names.delay(queue.name, level))
            target.send([a_message(1)], delay_s=0.9)
            target.send([a_message(2)])
            assert sorted(map(index_of, self.take(target, 2))) == [1, 2]

    def more(self, queue: RabbitQueue) -> RabbitQueue:
        return RabbitQueue(queue.broker.share(), clock=self.clock)

    def test_what_only_init_makes_is_asked_for(self, queue: RabbitQueue) -> None:
        with closing(self.raw()) as connection:
            connection.channel().exchange_delete(names.due(queue.name))
        with pytest.raises(UnusableError, match="make it with `mtask init`"):
            queue.send([a_message(1)], delay_s=0.5)

    def test_a_release_that_waits_beyond_its_lease_takes_no_time(
        self, queue: RabbitQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        post, looks = queue._outgoing.post, list[float]()
        end_leases = queue._end_leases

        async def slow(bodies: Any, delay_s: float) -> list[str]:
            await asyncio.sleep(0.5)
            return await post(bodies, delay_s)

        monkeypatch.setattr(queue._outgoing, "post", slow)
        monkeypatch.setattr(queue, "_end_leases", lambda: (looks.append(0.0), end_leases())[1])
        queue.send([a_message()])
        queue.release([self.take_one(queue, lease_s=0.2)])
        assert len(looks) <= 3
        assert self.take_one(queue).deliveries == 1

    def test_a_look_that_was_given_up_leaves_the_channel_usable(self, queue: RabbitQueue) -> None:
        queue.send(messages(2))

        async def give_up() -> None:
            line = await queue._ready_line()
            look = asyncio.ensure_future(line.get(queue.name))
            while line._got is None:
                await asyncio.sleep(0)
            look.cancel()
            got = await line.get(queue.name)
            assert got is not None
            line.give_back(got[0])

        queue.broker.call(give_up())
        assert sorted(map(index_of, self.take(queue, 2))) == [0, 1]

    def test_what_a_lane_learns_of_the_timeout_holds_for_all(self, queue: RabbitQueue) -> None:
        """And a lease is short enough to be looked at before it."""
        from pika.exceptions import ChannelClosedByBroker

        with closing(queue.lane(NAME)) as lane:
            lane.send([a_message()])
            self.take_one(lane)
            text = "delivery acknowledgement on channel 1 timed out. Timeout value used: 30000 ms."
            assert lane._line is not None
            lane._line._closed(ChannelClosedByBroker(406, text))
            for each in (queue, lane, Lanes(queue)):
                assert each.limits.hold_s == 30
                assert each.limits.lease_s == 10

    def test_credentials_that_are_away_for_a_while(
        self, queue: RabbitQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("MTASK_AMQP_PASSWORD")
        monkeypatch.setenv("NETRC", str(tmp_path / "away"))
        for link in queue.broker._links.values():
            queue.broker.call(link.end())
        queue.send([a_message(1)])
        assert index_of(self.take_one(queue)) == 1

    def test_what_others_send_comes_as_it_is(self, queue: RabbitQueue) -> None:
        """A foreign message, with headers that say nothing, or lie."""
        with closing(self.raw()) as connection:
            channel = connection.channel()
            headers = {"mtask-deliveries": "many", "x": [1, None]}
            channel.basic_publish("", queue.name, b"\xffhello", pika.BasicProperties(headers=headers))
            channel.basic_publish("", queue.name, b"")
        assert [(each.body, each.deliveries) for each in self.take(queue, 2)] == [(b"\xffhello", 1), (b"", 1)]

    def test_a_full_queue_refuses_by_message(self, queue: RabbitQueue) -> None:
        self.server.control(
            "set_policy", "full", f"^{queue.name}$", '{"max-length": 2}', "--apply-to", "queues"
        )
        try:
            with pytest.raises(SendError, match="full") as caught:
                for _ in range(20):  # the limit takes a moment to hold
                    queue.send(messages(5))
            assert 0 < len(caught.value.unsent) <= 5
        finally:
            self.server.control("clear_policy", "full")

    def test_a_queue_that_was_deleted(self, queue: RabbitQueue) -> None:
        with closing(self.raw()) as connection:
            connection.channel().queue_delete(queue.name)
        for call in (
            lambda: queue.send([a_message()]),
            lambda: queue.receive(max_messages=1, lease_s=1, wait_s=0),
            lambda: queue.receive(max_messages=1, lease_s=1, wait_s=1),
            queue.depth,
        ):
            with pytest.raises(UnusableError, match="make it with `mtask init`"):
                call()

    def test_init_makes_what_is_missing_and_refuses_what_is_another_thing(self) -> None:
        url = self.server.url()
        assert [how for _, how in make_queue(url)] == ["made", "made"]
        assert [how for _, how in make_queue(url)] == ["was there", "was there"]
        name = f"classic{time.monotonic_ns()}"
        with closing(self.raw()) as connection:
            connection.channel().queue_declare(name, durable=True)
        with pytest.raises(UnusableError, match="has other settings than mtask's"):
            make_queue(self.server.url(name))


@given(st.floats(0, 86_400), st.just("reads-c0ffee"))
def test_a_path_takes_as_long_as_its_delay(delay_s: float, queue: str) -> None:
    number = names.steps(delay_s)
    words = names.path(number, queue).split(".")
    assert words[-1] == queue
    waited_s = 0.0
    for level in reversed(range(names.LEVELS)):
        matching = [pattern for pattern in names.patterns(level) if _matches(pattern, words)]
        assert len(matching) == 1
        if matching == [names.patterns(level)[1]]:
            arguments = names.delay_arguments("reads", level)
            waited_s += arguments["x-message-ttl"] / 1000
    assert delay_s <= waited_s <= max(delay_s + 0.5, 0.5)
    assert _matches(names.due_pattern(queue), words)
    assert not _matches(names.due_pattern("reads"), words)


def _matches(pattern: str, words: Sequence[str]) -> bool:
    """As a topic exchange does; `#` only at the end."""
    parts = pattern.split(".")
    if parts[-1] == "#":
        parts = parts[:-1]
        words = words[: len(parts)]
    return len(parts) == len(words) and all(p in ("*", w) for p, w in zip(parts, words, strict=True))


class _MovedOutgoing(Outgoing):
    async def post(self, bodies: Sequence[tuple[bytes, int]], delay_s: float) -> list[str]:
        if not delay_s:
            return await super().post(bodies, 0)
        await self._letters([], delay_s)  # with all that is made for it
        _Moved.harness.later += [(_Moved.harness.now_s + delay_s, self._name, *each) for each in bodies]
        return [""] * len(bodies)


class _Moved(RabbitQueue):
    """Of a machine: delays pass by the machine's clock."""

    harness: Harness

    def __init__(self, broker: Connections, lane: str = "", *, clock: Callable[[], float]) -> None:
        super().__init__(broker, lane, clock=clock)
        self._outgoing = _MovedOutgoing(broker, lane)
        _Moved.harness.clock.queues.append(self)

    async def _delayed(self) -> int:
        return len(_Moved.harness.later)

    def depth(self) -> Depth:
        """The broker's numbers lag behind a little."""
        super().depth()
        return Depth(None, None, None)

    def remove(self) -> bool:
        return RabbitQueue.depth(self) == (0, 0, 0) and self.broker.call(self._remove())


class Harness:
    late_settles, tells_expired, ends_with_client = False, True, True

    def __init__(self, server: Broker) -> None:
        self.url, self.clock, self.now_s = server.url(), Clock(), 0.0
        self.clock.__class__ = _Standing
        self.later: list[tuple[float, str, bytes, int]] = []
        make_queue(self.url)
        _Moved.harness = self
        self.sender = open_queue(self.url)

    def open(self) -> RabbitQueue:
        self.settle()
        return _Moved.open(self.url, clock=self.clock)

    def settle(self) -> None:
        """Until the broker knows of the channels that were closed."""
        for name in {queue.name for queue in self.clock.queues}:
            deadline = time.monotonic() + 10
            while (found := self.sender.broker.call(self.sender.broker.number(name))) is not None:
                if found[1] == sum(_held(queue) for queue in self.clock.queues if queue.name == name):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.005)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        due = [each for each in self.later if each[0] <= self.now_s]
        self.later = [each for each in self.later if each[0] > self.now_s]
        letters = [Letter("", name, body, deliveries) for _, name, body, deliveries in due]
        assert not any(self.sender.broker.call(self.sender.broker.send(letters)))
        self.clock.advance(seconds)

    def close(self) -> None:
        self.sender.close()


class _Standing(Clock):
    """Only `advance` lets time pass."""

    def __call__(self) -> float:
        return self._ahead_s


def _held(queue: RabbitQueue) -> int:
    """Each message that it holds, when it didn't wait for it, counts as one who receives."""
    return len(queue._line.leases) if queue._line is not None and not queue._closed.is_set() else 0


def test_the_queue_is_like_its_model(rabbitmq: Broker) -> None:
    QueueMachine.run(
        lambda: Harness(rabbitmq), settings(SETTINGS, max_examples=12, stateful_step_count=25, phases=PHASES)
    )

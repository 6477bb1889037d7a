"""The queue on SQS: the contract, the machine, and what SQS alone does. What can go wrong: test_sqs_faults.py."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import boto3
import pytest
from hypothesis import settings

from mtask.errors import UsageError
from mtask.lanes import Lanes
from mtask.meter import since
from mtask.model import Delivery
from mtask.queue import Depth, KeepsDead, Queue
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import SETTINGS, QueueMachine
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, a_message_of_bytes, index_of, messages
from mtask_aws.names import address_of, physical
from mtask_aws.prices import PRICES
from mtask_aws.queue import SqsQueue
from mtask_aws.setup_queue import make_queue
from tests.servers.sqs import REGION, Sqs, sqs, sqs_server

__all__ = ["sqs", "sqs_server"]


class SqsFixtures:
    short_s = 30.0
    margin_s = 0.5
    quiet_s = 0.1
    fifo = False

    @pytest.fixture(autouse=True)
    def _server(self, sqs: Sqs) -> None:
        self.server = sqs
        self.url = sqs.new(fifo=self.fifo)

    def advance(self, seconds: float) -> None:
        self.server.advance(seconds)

    @pytest.fixture
    def queue(self) -> Iterator[SqsQueue]:
        with closing(self.server.open(self.url)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: SqsQueue) -> Iterator[SqsQueue]:
        with closing(self.server.open(self.url)) as other:
            yield other

    def remove_empty(self, lane: Queue) -> None:
        assert not lane.remove()
        self.advance(61)
        assert lane.remove()


class TestQueue(SqsFixtures, QueueContract):
    pass


class TestFifoQueue(SqsFixtures, QueueContract):
    """While some of a bag's messages are held, nobody gets others of it: where the contract holds one and takes
    another, this takes one of another bag, or settles first."""

    fifo = True

    def test_more_than_one_batch(self, queue: Queue) -> None:
        count = 2 * queue.limits.send_batch + 1
        queue.send(messages(count))
        indexes: list[int] = []
        while len(indexes) < count:
            taken = queue.receive(max_messages=100, lease_s=100, wait_s=1)
            assert 0 < len(taken) <= 10
            indexes += map(index_of, taken)
            self.assert_nothing(queue)
            queue.delete(taken)
        assert indexes == list(range(count)), "in order"

    def test_an_expired_lease_can_not_be_extended(self, queue: Queue) -> None:
        queue.send([a_message(0), a_message(1, uid="other")])
        expired = self.take_one(queue, lease_s=self.short_s)
        held = self.take_one(queue)
        self.expire()
        extended, lost = queue.extend([expired, held], lease_s=self.short_s)
        assert ([given for given, _ in extended], lost) == ([held], [expired])

    def test_one_that_waits_gets_it_when_its_time_comes(self, queue: Queue) -> None:
        """It is put off when it is seen first: the clock must not be moved in that moment."""
        queue.send([a_message()], delay_s=self.short_s)
        self.assert_nothing(queue)
        taken: list[Delivery] = []
        thread = threading.Thread(target=lambda: taken.extend(self.take(queue)))
        thread.start()
        self.expire()
        thread.join()
        assert len(taken) == 1

    def test_depth(self, queue: Queue) -> None:
        """What is delayed counts as ready, until somebody has seen it."""
        queue.send(messages(3))
        queue.send([a_message(3)], delay_s=50 * self.short_s)
        held = self.take_one(queue)
        assert queue.depth() == (3, 1, 0)
        queue.delete([held])
        assert queue.depth() == (3, 0, 0)

    def test_depths_are_apart(self, queue: Queue, lane: Queue) -> None:
        queue.send(messages(2))
        lane.send(messages(3))
        self.take_one(lane)
        assert (queue.depth(), lane.depth()) == ((2, 0, 0), (2, 1, 0))

    def test_each_lane_is_closed_by_itself(self, queue: Queue, other_queue: Queue) -> None:
        one, two = queue.lane("b"), queue.lane("b")
        one.send([a_message(1)])
        one.close()
        queue.send([a_message(0)])
        assert index_of(self.take_one(queue)) == 0
        two.delete([self.take_one(two)])
        two.close()
        with closing(other_queue.lane("b")) as three:
            three.send([a_message(2)])
            assert index_of(self.take_one(three)) == 2

    def test_what_is_sent_twice_on_purpose_comes_twice(self, queue: SqsQueue) -> None:
        queue.send([a_message(7)])
        queue.send([a_message(7)])
        assert [index_of(each) for each in self.take(queue, 2)] == [7, 7]

    def test_a_delayed_one_was_not_delivered_until_it_was(self, queue: SqsQueue) -> None:
        queue.send([a_message(1)], delay_s=100)
        self.assert_nothing(queue)  # who looks receives it, and puts it off
        assert queue.depth() == (0, 1, 0)
        self.advance(90)
        self.assert_nothing(queue)
        self.advance(10.5)
        first = self.take_one(queue, lease_s=self.short_s)
        assert first.deliveries == 1
        self.expire()
        assert self.take_one(queue).deliveries == 2

    def test_a_delayed_one_that_nobody_looked_for_comes_in_time(self, queue: SqsQueue) -> None:
        queue.send([a_message(1)], delay_s=100)
        self.advance(100.5)
        assert self.take_one(queue).deliveries == 1


class TestWhatIsSqsAlone(SqsFixtures, QueueSteps):
    def attributes(self, queue: SqsQueue) -> dict[str, str]:
        client = boto3.client("sqs", region_name=REGION)
        url = client.get_queue_url(QueueName=queue.name)["QueueUrl"]
        found: dict[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])[
            "Attributes"
        ]
        return found | {"url": url}

    def test_many_at_once(self, queue: SqsQueue) -> None:
        queue.send(messages(37))
        taken = queue.receive(max_messages=1000, lease_s=100, wait_s=1)
        assert sorted(map(index_of, taken)) == list(range(37))
        queue.delete(taken)
        assert queue.depth() == (0, 0, 0)

    def test_nobody_holds_it_for_more_than_twelve_hours(self, queue: SqsQueue) -> None:
        queue.send([a_message()])
        held = self.take_one(queue, lease_s=7200)
        for _ in range(6):
            ((_, held),) = queue.extend([held], lease_s=7200).extended
            self.advance(7100)
        ((_, held),) = queue.extend([held], lease_s=7200).extended  # SQS refuses so much: 10 minutes are left
        self.assert_nothing(queue)
        self.advance(610)
        assert queue.extend([held], lease_s=7200).lost == [held]
        assert self.take_one(queue).deliveries == 2

    def test_what_was_received_too_often_is_in_the_dead_letter_queue(self, queue: SqsQueue) -> None:
        found = self.attributes(queue)
        policy = json.loads(found["RedrivePolicy"])
        assert policy["maxReceiveCount"] == 1000
        assert policy["deadLetterTargetArn"].endswith(f":{queue.name}-dead")
        policy["maxReceiveCount"] = 2
        boto3.client("sqs", region_name=REGION).set_queue_attributes(
            QueueUrl=found["url"], Attributes={"RedrivePolicy": json.dumps(policy)}
        )
        assert list(queue.dead()) == []
        queue.send(messages(12))
        for _ in range(2):
            self.take(queue, 12, lease_s=self.short_s)
            self.expire()
        self.assert_nothing(queue)
        bodies = sorted(a_message(index).encode() for index in range(12))
        for _ in range(2):  # looking takes nothing away
            dead = list(queue.dead())
            assert sorted(each.body for each in dead) == bodies
            assert f"{queue.name}-dead" in dead[0].reason
            assert [each.at for each in dead] == sorted(each.at for each in dead)
        assert isinstance(queue, KeepsDead)
        assert len(list(Lanes(queue).dead())) == 12

    def test_a_lane_is_made_like_its_queue(self, queue: SqsQueue) -> None:
        found = self.attributes(queue)
        client = boto3.client("sqs", region_name=REGION)
        client.tag_queue(QueueUrl=found["url"], Tags={"project": "reads"})
        client.set_queue_attributes(
            QueueUrl=found["url"],
            Attributes={"KmsMasterKeyId": "alias/aws/sqs", "MessageRetentionPeriod": "86400"},
        )
        with closing(queue.lane("c0ffee")) as lane:
            assert lane.name == f"{queue.name}-c0ffee"
            alike = self.attributes(lane)
            assert alike["MessageRetentionPeriod"] == "86400"
            assert alike["KmsMasterKeyId"] == "alias/aws/sqs"
            assert alike["RedrivePolicy"] == self.attributes(queue)["RedrivePolicy"]
            assert client.list_queue_tags(QueueUrl=alike["url"])["Tags"] == {"project": "reads"}
            assert lane.meter is queue.meter

    def test_many_workers_make_the_same_lane_at_once(self, queue: SqsQueue) -> None:
        with ThreadPoolExecutor(8) as pool:
            lanes = list(pool.map(lambda _: queue.lane("b"), range(8)))
        lanes[0].send([a_message(1)])
        assert index_of(self.take_one(lanes[7])) == 1
        for lane in lanes:
            lane.close()

    def test_a_lane_must_look_empty_for_a_minute(self, queue: SqsQueue) -> None:
        with closing(queue.lane("b")) as lane:
            assert not lane.remove()
            self.advance(59)
            lane.send([a_message()])
            lane.delete([self.take_one(lane)])
            assert not lane.remove()
            self.advance(59)
            assert not lane.remove()
            self.advance(2)
            assert lane.remove()
        self.advance(100)
        assert not queue.remove(), "the queue itself is never removed"
        self.advance(100)
        assert not queue.remove()

    def test_init_makes_what_is_missing_and_only_that(self) -> None:
        url = f"sqs://{REGION}/init{time.monotonic_ns()}"
        assert [outcome for _, outcome in make_queue(url)] == ["made", "made"]
        assert [outcome for _, outcome in make_queue(url)] == ["was there", "was there"]
        with closing(self.server.open(url)) as queue:
            found = self.attributes(queue)
            client = boto3.client("sqs", region_name=REGION)
            client.set_queue_attributes(
                QueueUrl=found["url"], Attributes={"MessageRetentionPeriod": "3600", "RedrivePolicy": ""}
            )
            client.set_queue_attributes(QueueUrl=found["url"], Attributes={"VisibilityTimeout": "77"})
            made = make_queue(url)
            assert [outcome for _, outcome in made] == ["was there", "changed"]
            assert queue.name in made[1][0]
            now = self.attributes(queue)
            assert (now["MessageRetentionPeriod"], now["VisibilityTimeout"]) == ("1209600", "77")
            assert "RedrivePolicy" in now

    def test_requests_are_counted_as_they_are_billed(self, queue: SqsQueue) -> None:
        def used(action: Callable[[], Any]) -> dict[str, float]:
            before = queue.meter.used()
            action()
            return since(before, queue.meter.used())

        assert used(lambda: queue.send(messages(10))) == {"sqs requests": 1, "sqs sends": 1}
        big = [a_message_of_bytes(60 * 1024, index) for index in range(5)]  # 300 KiB: five times 64 KiB
        assert used(lambda: queue.send(big)) == {"sqs requests": 5, "sqs sends": 1}
        taken: list[Delivery] = []
        spent = used(lambda: taken.extend(self.take(queue, 15)))
        # The payload of each answer is counted for itself.
        assert spent["sqs receives"] == 2
        assert 5 <= spent["sqs requests"] <= 6
        assert used(lambda: self.assert_nothing(queue)) == {"sqs requests": 1, "sqs receives": 1}
        extended = queue.extend(taken, lease_s=100).extended
        assert used(lambda: queue.delete([new for _, new in extended])) == {
            "sqs requests": 2,
            "sqs deletes": 2,
        }
        assert set(queue.meter.used()) & set(PRICES.dollars) == {"sqs requests"}


@pytest.mark.parametrize(
    ("url", "lane", "dead", "name"),
    [
        ("sqs://us-east-1/reads", "", False, "reads"),
        ("sqs://us-east-1/reads?fifo=0", "c0ffee", False, "reads-c0ffee"),
        ("sqs://us-east-1/reads", "", True, "reads-dead"),
        ("sqs://us-east-1/reads?fifo=1", "", False, "reads.fifo"),
        ("sqs://us-east-1/reads?fifo=1", "c0ffee", False, "reads-c0ffee.fifo"),
        ("sqs://us-east-1/reads?fifo=1", "", True, "reads-dead.fifo"),
    ],
)
def test_names(url: str, lane: str, dead: bool, name: str) -> None:
    assert physical(address_of(url), lane, dead=dead) == name


def test_no_two_names_are_the_same_and_none_is_too_long() -> None:
    found = set()
    urls = [f"sqs://us-east-1/{'x' * length}{fifo}" for length in (64, 75) for fifo in ("", "?fifo=1")]
    for url in urls:
        address = address_of(url)
        names = [physical(address, lane) for lane in ("", "c0ffee0123456789", "dead", "b" * 16)]
        for name in (*names, physical(address, dead=True)):
            assert len(name) <= 80
            assert name not in found
            found.add(name)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqs://us-east-1/reads?fifo=yes", "fifo is 1"),
        ("sqs://us-east-1/reads?fif=1", "did you mean 'fifo'"),
        (f"sqs://us-east-1/{'x' * 76}?fifo=1", "at most 75"),
        (f"sqs://us-east-1/{'x' * 81}", "1 to 80"),
        ("sqs://us-east-1/", "1 to 80"),
        ("sqs://us-east-1/reads.fifo", "letters, digits"),
        ("sqs://key:secret@us-east-1/reads", "credentials don't belong"),
        ("sqs:///reads", "not the URL"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SqsQueue.open(url)


class _Ready(SqsQueue):
    """SQS counts what was given back with a delay as leased; the machine's model does not."""

    def depth(self) -> Depth:
        return Depth(super().depth().ready, None, None)


@pytest.mark.timeout(600)
def test_the_queue_is_like_its_model(sqs: Sqs) -> None:
    class Harness:
        late_settles, tells_expired = False, True

        def __init__(self) -> None:
            self.url = sqs.new()

        def open(self) -> SqsQueue:
            return _Ready.open(self.url, clock=sqs.clock)

        def advance(self, seconds: float) -> None:
            sqs.advance(seconds)

        def close(self) -> None:
            pass

    with sqs.standing_still():
        QueueMachine.run(Harness, settings(SETTINGS, max_examples=3, stateful_step_count=20))

"""The queue on Pub/Sub, at Google's own emulator: the contract, and what Pub/Sub alone does. What can go wrong:
test_pubsub_faults.py."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtask_gcp.requests as requests_module
from mtask.errors import UnusableError, UsageError
from mtask.lanes import Lanes
from mtask.model import Message
from mtask.queue import Depth, KeepsDead, Queue
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, a_message_of_bytes, index_of, messages
from mtask_gcp import PubSubQueue, make_queue, open_queue
from mtask_gcp.client import Client
from mtask_gcp.delays import LOOKS, Kind, Received, ServerTime, sort_out
from mtask_gcp.names import Envelope, address_of, physical
from mtask_gcp.prices import billed
from mtask_gcp.purge import main as purge
from mtask_gcp.requests import batches
from mtask_gcp.sender import LIGHT_S
from tests.servers.gcp import Emulator


class PubSubFixtures:
    short_s = 1.0
    margin_s = 0.1
    quiet_s = 0.2
    patience_s = 15.0

    @pytest.fixture(autouse=True)
    def _server(self, pubsub: Emulator) -> None:
        self.url = pubsub.url()
        make_queue(self.url)

    @pytest.fixture
    def queue(self) -> Iterator[PubSubQueue]:
        with closing(open_queue(self.url)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: PubSubQueue) -> Iterator[PubSubQueue]:
        with closing(open_queue(self.url)) as other:
            yield other

    @pytest.fixture
    def client(self) -> Iterator[Client]:
        """Somebody else's."""
        client = Client(address_of(self.url))
        yield client
        client.close()


class TestQueue(PubSubFixtures, QueueContract):
    pass


class TestPubSub(PubSubFixtures, QueueSteps):
    def nack(self, client: Client, queue: PubSubQueue) -> int:
        """Somebody receives it, and gives it back to Pub/Sub itself; which delivery that was."""
        found = client.subscriber.pull(subscription=queue.subscription, max_messages=1, timeout=5)
        (received,) = found.received_messages
        client.subscriber.modify_ack_deadline(
            subscription=queue.subscription, ack_ids=[received.ack_id], ack_deadline_seconds=0
        )
        return received.delivery_attempt

    def test_deaths_are_counted_and_what_is_given_back_is_not(
        self, queue: PubSubQueue, client: Client
    ) -> None:
        queue.send([a_message()])
        assert [self.nack(client, queue) for _ in range(2)] == [1, 2]
        for _ in range(2):
            delivery = self.take_one(queue)
            assert delivery.deliveries == 3
            queue.release([delivery])
        assert self.nack(client, queue) == 1
        assert self.take_one(queue).deliveries == 4

    def test_looks_at_what_is_delayed_are_no_deliveries(
        self, queue: PubSubQueue, other_queue: PubSubQueue
    ) -> None:
        queue.send([a_message()], delay_s=1.5)
        began_s = time.monotonic()
        for each in (queue, other_queue):
            self.assert_nothing(each)
        delivery = self.take_one(queue)
        assert 1.4 <= time.monotonic() - began_s < 4
        assert delivery.deliveries == 1
        before = queue.meter.used()["pubsub pulls"]
        queue.release([delivery], delay_s=1.2)
        assert self.take_one(queue).deliveries == 1
        assert queue.meter.used()["pubsub pulls"] - before < 25, "it doesn't spin"

    def test_what_is_delayed_for_long_leaves_its_rows_in_the_table(
        self, queue: PubSubQueue, client: Client
    ) -> None:
        queue.send([a_message_of_bytes(5000)], delay_s=LIGHT_S + 1)
        found = client.subscriber.pull(subscription=queue.subscription, max_messages=1, timeout=5)
        message = Message.decode(found.received_messages[0].message.data)
        assert (message.has_rows, message.count) == (False, 1)

    def test_a_request_ends_before_its_limits(
        self, queue: PubSubQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests_module, "ACK_BYTES", 200)
        large = [a_message_of_bytes(6_000_000, index) for index in range(3)]
        queue.send([*large, *messages(40)[3:]])
        assert queue.meter.used()["pubsub publishes"] == 3
        taken = self.take(queue, 40)
        assert Counter(map(index_of, taken)) == Counter(range(40))
        extended, lost = queue.extend(taken, lease_s=60)
        assert (len(extended), lost) == (40, [])
        assert queue.meter.used()["pubsub extensions"] > 20
        queue.delete([new for _, new in extended])
        queue.delete(taken)
        assert queue.meter.used()["pubsub acks"] > 10
        self.assert_nothing(queue)

    def test_what_is_billed_is_counted(self, queue: PubSubQueue) -> None:
        message, large = a_message(), a_message_of_bytes(30_000, 1)
        queue.send([message])
        assert queue.meter.used()["pubsub bytes"] == 1000
        queue.send([message, large])
        assert queue.meter.used()["pubsub bytes"] == 1000 + billed(2, len(message.encode()) + 30_000)
        before = queue.meter.used()["pubsub bytes"]
        queue.delete(self.take(queue, 3))
        used = queue.meter.used()
        assert 30_000 < used["pubsub bytes"] - before < 34_000
        before = used["pubsub bytes"]
        queue.receive(max_messages=1, lease_s=5, wait_s=0)
        assert queue.meter.used()["pubsub bytes"] - before == 1000

    def test_the_depth_is_not_known(self, queue: PubSubQueue) -> None:
        with closing(queue.lane("b")) as lane:
            assert queue.depth() == lane.depth() == Depth(None, None, None)
            assert not lane.remove()
        assert Lanes(queue).depth(["", "b"]) == (None, None, None)

    # -- dead letters -------------------------------------------------------------------------------

    def test_what_was_delivered_too_often_is_a_dead_letter(self, queue: PubSubQueue, client: Client) -> None:
        topic = queue.topic + "-dead"
        fewer = {"dead_letter_topic": topic, "max_delivery_attempts": 5}
        change = {"subscription": {"name": queue.subscription, "dead_letter_policy": fewer}}
        client.subscriber.update_subscription(
            request={**change, "update_mask": {"paths": ["dead_letter_policy"]}}
        )
        assert isinstance(queue, KeepsDead)
        assert list(queue.dead()) == []
        queue.send([a_message(7)])
        assert [self.nack(client, queue) for _ in range(5)] == [1, 2, 3, 4, 5]
        self.assert_nothing(queue)
        for _ in range(2):  # it stays there
            (dead,) = queue.dead()
            assert dead.body == a_message(7).encode()
            assert "5 times" in dead.reason
            assert abs(dead.at - time.time()) < 60

    def test_without_a_policy_deliveries_are_not_counted(self, queue: PubSubQueue, client: Client) -> None:
        assert queue.limits.counts_deliveries
        change = {
            "subscription": {"name": queue.subscription},
            "update_mask": {"paths": ["dead_letter_policy"]},
        }
        client.subscriber.update_subscription(request=change)
        with closing(open_queue(self.url)) as other:
            assert not other.limits.counts_deliveries
            other.send([a_message()])
            self.nack(client, queue)
            assert self.take_one(other).deliveries == 1

    # -- setup --------------------------------------------------------------------------------------

    def test_what_is_there_is_changed_only_where_it_could_lose_messages(
        self, queue: PubSubQueue, client: Client
    ) -> None:
        assert {how for _, how in make_queue(self.url)} == {"was there"}
        loose = {
            "subscription": {
                "name": queue.subscription,
                "ack_deadline_seconds": 30,
                "message_retention_duration": {"seconds": 86_400},
            },
            "update_mask": {
                "paths": [
                    "ack_deadline_seconds",
                    "message_retention_duration",
                    "dead_letter_policy",
                ]
            },
        }
        client.subscriber.update_subscription(request=loose)
        assert [how for _, how in make_queue(self.url)] == ["was there", "was there", "was there", "changed"]
        found = client.subscriber.get_subscription(subscription=queue.subscription)
        assert found.message_retention_duration.days == 7
        assert not found.expiration_policy.ttl
        assert found.dead_letter_policy.max_delivery_attempts == 100
        assert found.ack_deadline_seconds == 30

    def test_a_lane_is_made_like_the_main_one(self, queue: PubSubQueue, client: Client) -> None:
        with closing(queue.lane("b")) as lane:
            found = client.subscriber.get_subscription(subscription=lane.subscription)
        main = client.subscriber.get_subscription(subscription=queue.subscription)
        for setting in ("ack_deadline_seconds", "message_retention_duration", "dead_letter_policy"):
            assert getattr(found, setting) == getattr(main, setting)
        assert (main.labels["mtask"], found.labels["mtask"]) == ("queue", "lane")
        assert lane.name == f"{queue.name}-b"

    def test_a_lane_that_was_deleted_is_made_again(self, queue: PubSubQueue, client: Client) -> None:
        with closing(queue.lane("b")) as lane:
            client.publisher.delete_topic(topic=lane.topic)
            client.subscriber.delete_subscription(subscription=lane.subscription)
            self.assert_nothing(lane)
            lane.send([a_message(3)])
            assert index_of(self.take_one(lane)) == 3

    def test_what_is_not_there(self, queue: PubSubQueue, client: Client, pubsub: Emulator) -> None:
        with pytest.raises(UnusableError, match=r"no subscription 'q-.*make it with `mtask init`"):
            open_queue(pubsub.url())
        client.publisher.delete_topic(topic=queue.topic)
        with pytest.raises(UnusableError, match=r"make it again with `mtask init`.*mtask repair"):
            queue.send([a_message()])
        with pytest.raises(UnusableError, match=r"of a topic that was deleted.*mtask repair"):
            open_queue(self.url)
        client.subscriber.delete_subscription(subscription=queue.subscription)
        with pytest.raises(UnusableError, match="mtask init"):
            queue.receive(max_messages=1, lease_s=5, wait_s=0)
        with pytest.raises(UnusableError, match="mtask init"):
            queue.lane("b")

    def test_a_purge_empties_the_queue_and_its_lanes_and_nothing_else(
        self, queue: PubSubQueue, capsys: Any
    ) -> None:
        neighbour = f"{self.url}-2"
        make_queue(neighbour)
        with closing(queue.lane("b")) as lane, closing(open_queue(neighbour)) as other:
            for each in (queue, lane, other):
                each.send(messages(2))
            held = self.take_one(queue)
            assert purge([self.url]) == 0
            assert capsys.readouterr().out.startswith(f"emptied {queue.name}, {lane.name};")
            self.assert_nothing(queue)
            self.assert_nothing(lane)
            self.take(other, 2)
            queue.delete([held])
            queue.send([a_message(5)])
            assert index_of(self.take_one(queue)) == 5
        assert purge(["pubsub://test-project/nothing"]) == 2
        assert purge([]) == 2


# -- without a server -------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 7), st.integers(20, 120))
def test_batches(sizes: list[int], most: int, most_bytes: int) -> None:
    runs = list(batches(sizes, most, most_bytes))
    assert [number for run in runs for number in run] == list(range(len(sizes)))
    for run in runs:
        assert 0 < len(run) <= most
        assert sum(sizes[number] for number in run) <= most_bytes or len(run) == 1
    for run, after in itertools.pairwise(runs):
        assert len(run) == most or sum(sizes[number] for number in run) + sizes[after[0]] > most_bytes


@given(
    st.floats(0, 10**6),
    st.integers(0, 10),
    st.integers(0, 99),
    st.floats(-100, 2 * 10**6),
)
def test_no_message_is_run_early_or_counted_wrong(
    delay_s: float, deliveries: int, attempt: int, later_s: float
) -> None:
    sent = Envelope(b"body", delay_s, deliveries)
    due = sort_out(Received("id", b"body", sent.attributes, 1e9, attempt), 1e9 + later_s)
    assert due.envelope.body == b"body"
    assert due.envelope.deliveries == deliveries
    if delay_s == 0:
        assert (due.kind, due.deliveries) == (Kind.READY, deliveries + max(1, attempt))
        return
    early_s = max(0.0, delay_s - later_s)
    assert due.early_s == pytest.approx(early_s, abs=0.002)
    assert due.envelope.delay_s == due.early_s
    if attempt >= LOOKS or due.early_s == 0:
        assert due.kind is Kind.ANEW
    else:
        assert due.kind is Kind.EARLY


@given(
    st.dictionaries(st.sampled_from(["mtask-delay-ms", "mtask-deliveries", "other"]), st.text(max_size=25))
)
def test_attributes_of_anybody_are_read(attributes: dict[str, str]) -> None:
    envelope = Envelope.of(b"", attributes)
    assert envelope.delay_s >= 0
    assert envelope.deliveries >= 0


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("pubsub://project", "a name has 3 to 200"),
        ("pubsub://project/a", "a name has 3 to 200"),
        ("pubsub://project/1abc", "begins with a letter"),
        ("pubsub://project/google", "not with 'goog'"),
        ("pubsub:///reads", "it should look like pubsub://my-project/reads"),
        ("pubsub://Project!/reads", "it should look like"),
        ("pubsub://me:secret@project/reads", "credentials don't belong into a URL"),
        ("pubsub://project/reads?fifo=1", "unknown option 'fifo'; there are none"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        open_queue(url)
    assert "secret" not in str(caught.value)


def test_names() -> None:
    address = address_of("pubsub://example.com:my-project/reads")
    assert address.project == "example.com:my-project"
    assert physical(address, "c0ffee") == "reads-c0ffee"
    assert physical(address, dead=True) == "reads-dead" != physical(address, "dead")
    with pytest.raises(UsageError, match="letters and digits"):
        physical(address, "a/b")


def test_a_clock_that_was_set_back_is_seen_through() -> None:
    clock = ServerTime(lambda: 1000.0)
    assert clock.now() == 1000
    clock.saw(4600.0)
    clock.saw(4000.0)
    assert 4600 <= clock.now() < 4610
    assert ServerTime(lambda: 1e10).now() == 1e10


def test_the_limits_say_what_is_true(pubsub: Emulator) -> None:
    url = pubsub.url()
    make_queue(url)
    with closing(open_queue(url)) as queue:
        opened: Queue = queue
        assert not opened.limits.knows_depth
        assert opened.limits.lease_s == 600

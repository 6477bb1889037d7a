"""The queue on Azure: the contract, the machine, and what Azure alone does. What can go wrong: test_azurequeue_faults.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtask_azure
from mtask.costs import cost_of
from mtask.errors import BackendError, UsageError
from mtask.estimate import Load
from mtask.fleet import FleetSpec, backlog_of
from mtask.lanes import Lanes
from mtask.manager import connect
from mtask.meter import Tab, since
from mtask.model import Block, Delivery, Message
from mtask.packing import fit, pack
from mtask.queue import KeepsDead
from mtask.testing.queue_contract import QueueContract
from mtask.testing.queue_machine import SETTINGS, QueueMachine
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_bag, a_message, a_message_of_bytes, index_of, messages
from mtask_azure.address import queue_address
from mtask_azure.bodies import BODY_BYTES, from_text, to_text
from mtask_azure.names import physical
from mtask_azure.prices import OPERATIONS
from mtask_azure.queue import AzureQueue
from mtask_azure.waiting import LONGEST_S, Waiting
from tests.servers.azure import ACCOUNT, Azurite


class AzureFixtures:
    short_s = 30.0
    margin_s = 0.5
    quiet_s = 0.1
    tells_expired = False

    @pytest.fixture(autouse=True)
    def _server(self, azurite: Azurite) -> None:
        self.server = azurite
        self.url = azurite.new()

    def advance(self, seconds: float) -> None:
        self.server.advance(seconds)

    @pytest.fixture
    def queue(self) -> Iterator[AzureQueue]:
        with closing(self.server.open(self.url)) as queue:
            yield queue

    @pytest.fixture
    def other_queue(self, queue: AzureQueue) -> Iterator[AzureQueue]:
        with closing(self.server.open(self.url)) as other:
            yield other


class TestQueue(AzureFixtures, QueueContract):
    pass


class TestWhatIsAzuresAlone(AzureFixtures, QueueSteps):
    def test_a_message_is_kept_and_can_be_held_for_ever(self, queue: AzureQueue) -> None:
        """Longer than the week after which a message with the usual time to live is gone, and than one lease may be."""
        queue.send(messages(2))
        held = self.take_one(queue, lease_s=6 * 86400)
        for _ in range(4):
            self.advance(5 * 86400)
            ((_, held),) = queue.extend([held], lease_s=6 * 86400).extended
        assert held.deliveries == 1
        other = self.take_one(queue)
        assert {index_of(held), index_of(other)} == {0, 1}
        queue.delete([held, other])
        assert queue.depth() == (0, 0, 0)

    def test_a_lease_and_a_delay_last_a_week_at_most(self, queue: AzureQueue) -> None:
        queue.send([a_message(0)])
        queue.send([a_message(1)], delay_s=30 * 86400)
        self.take_one(queue, lease_s=30 * 86400)
        self.advance(queue.limits.lease_s - 10)
        self.assert_nothing(queue)
        self.advance(11)
        assert sorted(index_of(each) for each in self.take(queue, 2)) == [0, 1]

    def test_thirty_two_at_once(self, queue: AzureQueue) -> None:
        queue.send(messages(40))
        assert queue.depth() == (40, None, None)
        first = queue.receive(max_messages=1000, lease_s=100, wait_s=1)
        rest = queue.receive(max_messages=1000, lease_s=100, wait_s=1)
        assert (len(first), len(rest)) == (32, 8)
        assert sorted(map(index_of, first + rest)) == list(range(40))
        extended = queue.extend(first, lease_s=200).extended
        assert len({new.token for _, new in extended}) == 32
        queue.delete([new for _, new in extended] + rest)
        assert queue.depth() == (0, 0, 0)

    def test_what_is_done_side_by_side_is_on_the_account_of_who_asked_for_it(self, queue: AzureQueue) -> None:
        before = queue.meter.used()
        with Tab([queue]) as tab:
            queue.send(messages(10))
            queue.delete(self.take(queue, 10))
        assert tab.used() == since(before, queue.meter.used())
        assert tab.used()[OPERATIONS] >= 21

    def test_one_that_is_woken_returns_soon(self, queue: AzureQueue) -> None:
        began_s = time.monotonic()
        waker = threading.Timer(0.3, queue.wake)
        waker.start()
        assert queue.receive(max_messages=1, lease_s=30, wait_s=20) == []
        waker.join()
        assert time.monotonic() - began_s < 5

    def test_nobody_asks_often_for_nothing(self, queue: AzureQueue) -> None:
        before = queue.meter.used()[OPERATIONS]
        assert queue.receive(max_messages=1, lease_s=30, wait_s=2) == []
        assert queue.meter.used()[OPERATIONS] - before <= 5  # at 0, 0.25, 0.75, 1.75 and 2 s, or so

    def test_what_was_received_too_often_goes_to_the_poison_queue(
        self, queue: AzureQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As far as mtask is concerned, of any lane; and what is there can be looked at again and again."""
        monkeypatch.setattr("mtask_azure.queue.RECEIPTS", 2)
        lanes = Lanes(queue)
        assert isinstance(queue, KeepsDead)
        lane = queue.lane("c0ffee")
        queue.send([a_message(0)])
        lane.send([a_message(1)])
        for each in (queue, lane):
            for _ in range(2):
                self.take_one(each, lease_s=self.short_s)
                self.expire()
            self.assert_nothing(each)
            assert each.depth() == (0, 0, 0)
        for _ in range(2):
            dead = list(lanes.dead())
            assert sorted(each.body for each in dead) == [a_message(n).encode() for n in (0, 1)]
            assert {each.reason for each in dead} == {
                f"received too often and never deleted; it was moved to {queue.name}-poison"
            }
        lane.close()

    def test_more_than_thirty_two_of_them_are_shown_and_stay(self, queue: AzureQueue) -> None:
        """As Azure Functions puts them there: in base64, or as they are."""
        poison = self.server.client(self.url, "-poison")
        for index in range(40):
            poison.send_message(
                to_text(a_message(index).encode()) if index else '{"order": "ö"}', time_to_live=-1
            )
        for _ in range(2):
            found = [each.body for each in queue.dead()]
            assert len(found) == 40
            assert '{"order": "ö"}'.encode() in found
        assert len(poison.peek_messages(max_messages=32)) == 32

    def test_without_a_poison_queue_there_are_none(self, queue: AzureQueue) -> None:
        self.server.client(self.url, "-poison").delete_queue()
        assert list(queue.dead()) == []

    def test_what_others_send_comes_as_it_is(self, queue: AzureQueue) -> None:
        theirs = self.server.client(self.url)
        for text in ("hello", "aGVsbG8=", '{"order": 7}', "<a>&amp; ü 🦠</a>", "abcd", ""):
            theirs.send_message(text)
            delivery = self.take_one(queue)
            assert delivery.body == text.encode()
            queue.delete([delivery])

    def test_what_is_sent_is_base64_and_never_expires(self, queue: AzureQueue) -> None:
        queue.send([a_message(value="</MessageText>")])
        [message] = self.server.client(self.url).peek_messages()
        assert message.content == to_text(a_message(value="</MessageText>").encode())
        assert message.expires_on.year == 9999

    def test_messages_as_large_as_they_may_be_together(self, queue: AzureQueue) -> None:
        queue.send([a_message_of_bytes(BODY_BYTES, index) for index in range(8)])
        assert len(self.take(queue, 8)) == 8

    def test_a_fleet_counts_what_workers_hold(self, tmp_path: Path) -> None:
        """Azure doesn't say how many that are: so what has no row is counted."""
        spec = FleetSpec(name="f", most=100)
        with connect(self.url, f"sqlite:///{tmp_path}/t.db") as manager:
            assert backlog_of(manager.queue, manager.table, spec.can).messages == 0
            manager.submit([{"x": x} for x in range(5)], run="echo {x}", bag="bag", per_message=1)
            assert backlog_of(manager.queue, manager.table, spec.can).messages == 5
            assert len(manager.queue.receive(max_messages=5, lease_s=60, wait_s=1)) == 5
            assert backlog_of(manager.queue, manager.table, spec.can).messages == 5

    def test_a_full_block_is_one_message_with_its_rows(self) -> None:
        rows = list(pack((b'["' + b"x" * 90 + b'"]' for _ in range(5000)), per_message=1000))
        bag = a_bag("b" * 100, columns=("a" * 50,))
        largest = max(rows, key=lambda row: len(row[2]))
        message = Message.of(
            bag, Block(bag=bag.name, number=999, first=10**6, count=largest[1], rows=largest[2])
        )
        assert len(message.encode()) > 0.97 * BODY_BYTES
        assert fit(message, BODY_BYTES).has_rows

    def test_a_closed_queue_says_so(self, queue: AzureQueue) -> None:
        lane = queue.lane("a")
        queue.close()
        with pytest.raises(BackendError, match="is closed"):
            queue.send([a_message()])
        lane.send([a_message()])  # its connections are still there
        lane.close()
        lane.close()

    def test_make_tells_what_it_made(self) -> None:
        url = f"azureq://{ACCOUNT}/{self.server.name()}"
        name = url.rpartition("/")[2]
        made = mtask_azure.make_queue(url)
        assert made == [
            (f"queue {name} in {ACCOUNT}", "made"),
            (f"poison queue {name}-poison in {ACCOUNT}", "made"),
        ]
        assert {how for _, how in mtask_azure.make_queue(url)} == {"was there"}

    def test_operations_are_counted_as_they_are_billed(self, queue: AzureQueue) -> None:
        def used(action: Callable[[], Any]) -> dict[str, float]:
            before = queue.meter.used()
            action()
            return since(before, queue.meter.used())

        assert used(lambda: queue.send(messages(10))) == {OPERATIONS: 10}
        taken: list[Delivery] = []
        assert used(lambda: taken.extend(self.take(queue, 10))) == {OPERATIONS: 1}
        assert used(lambda: queue.receive(max_messages=1, lease_s=30, wait_s=0)) == {OPERATIONS: 1}
        extended: list[Delivery] = []
        assert used(lambda: extended.extend(new for _, new in queue.extend(taken, lease_s=30).extended)) == {
            OPERATIONS: 10
        }
        assert used(lambda: queue.delete(extended)) == {OPERATIONS: 10}
        lane = queue.lane("a")
        assert used(lambda: lane.send([a_message()])) == {OPERATIONS: 1}
        lane.close()
        load = Load(tasks=100, messages=64, message_bytes=10**6, result_bytes=10**4)
        units = mtask_azure.queue_units(self.url, load)
        assert units == {OPERATIONS: 130}
        cost = cost_of(units, 100, [mtask_azure.PRICES])
        assert cost is not None
        assert cost.dollars == pytest.approx(130 * 4e-7)


# -- pure -------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_every_body_that_is_json_comes_back(body: bytes) -> None:
    assert from_text(to_text(b"{" + body)) == b"{" + body


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=100))
def test_any_text_can_be_read(text: str) -> None:
    assert from_text(text) == text.encode("utf-8", "surrogatepass") or from_text(text).startswith(b"{")


def test_the_largest_body_is_the_largest_text() -> None:
    assert len(to_text(b"x" * BODY_BYTES)) == 64 * 1024


def test_pauses_grow_and_begin_anew() -> None:
    waiting = Waiting(lambda least, most: (least + most) / 2)
    pauses = []
    for _ in range(8):
        began_s = time.monotonic()
        waiting.found_nothing()
        pauses.append(round(waiting._looks_at_s - began_s, 2))
    assert pauses == [0.25, 0.5, 1, 2, 4, LONGEST_S, LONGEST_S, LONGEST_S]
    waiting.found()
    assert waiting.wait(time.monotonic() + 10)  # at once
    waiting.found_nothing()
    assert waiting._looks_at_s - time.monotonic() < 0.3


@pytest.mark.parametrize(
    ("lane", "poison", "name"),
    [("", False, "reads-1"), ("c0ffee", False, "reads-1-c0ffee"), ("", True, "reads-1-poison")],
)
def test_names(lane: str, poison: bool, name: str) -> None:
    assert physical(queue_address("azureq://mystorage/reads-1"), lane, poison=poison) == name


def test_no_two_names_are_the_same_and_all_are_allowed() -> None:
    found = set()
    for name in ("x" * 3, "x" * 46 + "-y" * 8, "x" * 63, "x" * 57):
        address = queue_address(f"azureq://mystorage/{name}")
        names = [physical(address, lane) for lane in ("", "c0ffee0123456789", "poison", "B", "b", "b" * 16)]
        for each in (*names, physical(address, poison=True)):
            queue_address(f"azureq://mystorage/{each}")
            assert each not in found
            found.add(each)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("azureq://mystorage/", "3 to 63 lowercase"),
        ("azureq://mystorage/Reads", "3 to 63 lowercase"),
        ("azureq://mystorage/re", "3 to 63 lowercase"),
        ("azureq://mystorage/" + "x" * 64, "3 to 63 lowercase"),
        ("azureq://mystorage/a--b", "single hyphens"),
        ("azureq://mystorage/reads-", "single hyphens"),
        ("azureq://mystorage/reads/more", "3 to 63 lowercase"),
        ("azureq://my-storage/reads", "3 to 24 lowercase letters and digits"),
        ("azureq://mystorage.queue.core.windows.net/reads", "name the account alone"),
        ("azureq:///reads", "not the URL"),
        ("azureq://mystorage/reads#x", "not the URL"),
        ("azureq://mystorage/reads?fifo=1", "unknown option 'fifo'"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        AzureQueue.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "azureq://mystorage:s3cret@host/reads",
        "azureq://mystorage:s3cret/reads",
        "azureq://mystorage/reads?sv=1&sig=s3cret",
        "azureq://mystorage/reads#s3cret",
        "azureq://mystorage/reads?x=s3cret",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        AzureQueue.open(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("queue", "table"), [("reads-2026", "reads2026"), ("2026-reads", "mtask2026reads"), ("reads", "reads")]
)
def test_the_table_beside(queue: str, table: str) -> None:
    assert mtask_azure.table_beside(f"azureq://mystorage/{queue}") == f"azuretable://mystorage/{table}"


def test_the_queue_is_like_its_model(azurite: Azurite) -> None:
    class Harness:
        late_settles, tells_expired = True, False

        def __init__(self) -> None:
            self.url = azurite.new()

        def open(self) -> AzureQueue:
            return azurite.open(self.url)

        def advance(self, seconds: float) -> None:
            azurite.advance(seconds)

        def close(self) -> None:
            pass

    with azurite.standing_still():
        QueueMachine.run(Harness, settings(SETTINGS, max_examples=3, stateful_step_count=20))

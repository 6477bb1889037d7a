"""What can go wrong between a queue and Pub/Sub: a proxy before Google's emulator answers as Pub/Sub does, where the emulator can't."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from google.iam.v1 import iam_policy_pb2
from google.iam.v1.policy_pb2 import Binding, Policy
from google.pubsub_v1 import types
from grpc import StatusCode

from mtask.doctor import Finding
from mtask.errors import BackendError, SendError, UnavailableError, UnusableError
from mtask.queue import send_all
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, index_of, messages
from mtask_gcp import PubSubQueue, diagnose, make_queue, open_queue
from mtask_gcp.policies import GRANTS, METHODS
from tests.servers.gcp import Emulator
from tests.servers.grpc_proxy import Proxy, Refusal, grpc_proxy_to

BUSY = Refusal(StatusCode.UNAVAILABLE, "The service was unable to fulfill your request")
DENIED = Refusal(
    StatusCode.PERMISSION_DENIED, "User not authorized to perform this action.", "IAM_PERMISSION_DENIED"
)


@pytest.fixture
def proxy(pubsub: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with grpc_proxy_to(pubsub.place) as proxy:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", proxy.place)
        yield proxy


@pytest.fixture
def url(pubsub: Emulator, proxy: Proxy) -> str:
    url = pubsub.url()
    make_queue(url)
    return url


def refuse(*methods: str, answer: Any = BUSY, times: int = 10**9) -> Any:
    """A rule: the next calls of these methods are answered so."""
    left = [times]

    def rule(method: str, _request: bytes) -> Any:
        if method not in methods or not left[0]:
            return None
        left[0] -= 1
        return answer

    return rule


class TestFaults(QueueSteps):
    patience_s = 15.0

    def test_of_a_send_in_part_the_rest_is_named(self, queue: PubSubQueue, proxy: Proxy) -> None:
        number = iter(range(10))
        with (
            proxy.rule(
                lambda method, _: BUSY if method == "Publisher/Publish" and next(number) == 1 else None
            ),
            pytest.raises(SendError, match="unable to fulfill") as caught,
        ):
            queue.send(messages(2500))
        assert [message.first for message, _ in caught.value.unsent] == list(range(1000, 2000))
        assert {index_of(each) for each in self.take(queue, 1500)} == {*range(1000), *range(2000, 2500)}

    def test_an_answer_with_too_few_ids_is_no_success(self, queue: PubSubQueue, proxy: Proxy) -> None:
        few = types.PublishResponse(message_ids=["1"])
        with (
            proxy.rule(refuse("Publisher/Publish", answer=types.PublishResponse.serialize(few))),
            pytest.raises(SendError) as caught,
        ):
            queue.send(messages(3))
        assert [message.first for message, _ in caught.value.unsent] == [1, 2]

    def test_one_that_could_not_be_sent_at_all_is_tried_again(self, queue: PubSubQueue, proxy: Proxy) -> None:
        with proxy.rule(refuse("Publisher/Publish", times=1)), pytest.raises(UnavailableError):
            queue.send([a_message()])
        number = iter(range(10))
        with proxy.rule(
            lambda method, _: BUSY if method == "Publisher/Publish" and next(number) == 1 else None
        ):
            send_all(queue, messages(1001))
        assert len(self.take(queue, 1001)) == 1001

    def test_a_blip_while_extending_is_no_loss(self, queue: PubSubQueue, proxy: Proxy) -> None:
        queue.send(messages(2))
        held = self.take(queue, 2)
        with proxy.rule(refuse("Subscriber/ModifyAckDeadline")), pytest.raises(UnavailableError):
            queue.extend(held, lease_s=60)
        extended, lost = queue.extend(held, lease_s=60)
        assert (len(extended), lost) == (2, [])

    def test_a_lease_that_can_not_be_set_at_first(self, queue: PubSubQueue, proxy: Proxy) -> None:
        queue.send([a_message()])
        with proxy.rule(refuse("Subscriber/ModifyAckDeadline", times=1)):
            assert len(queue.receive(max_messages=1, lease_s=60, wait_s=5)) == 1

    def test_a_delete_that_failed_can_be_done_again(self, queue: PubSubQueue, proxy: Proxy) -> None:
        queue.send([a_message()])
        held = self.take(queue)
        with proxy.rule(refuse("Subscriber/Acknowledge")), pytest.raises(UnavailableError):
            queue.delete(held)
        before = len(proxy.called)
        queue.delete(held)
        queue.delete(held)
        assert proxy.called[before:] == ["Subscriber/Acknowledge"]

    def test_what_could_not_be_given_back_is_still_held(self, queue: PubSubQueue, proxy: Proxy) -> None:
        queue.send([a_message()])
        held = self.take(queue)
        with proxy.rule(refuse("Publisher/Publish")), pytest.raises(UnavailableError):
            queue.release(held)
        assert queue.extend(held, lease_s=60).lost == []

    def test_a_stale_holder_asks_for_nothing(self, queue: PubSubQueue, proxy: Proxy) -> None:
        old, new = self.stale(queue)
        before = len(proxy.called)
        queue.delete([old])
        queue.release([old])
        assert queue.extend([old], lease_s=60) == ([], [old])
        assert proxy.called[before:] == []
        queue.delete([new])

    def test_who_stood_still_while_asking_believes_no_answer(self, queue: PubSubQueue, proxy: Proxy) -> None:
        """Pub/Sub says yes to whatever comes too late; the process may have stood still before it sent it."""
        ahead_s = 0.0
        queue._clock = lambda: time.monotonic() + ahead_s

        def stand_still(method: str, _: bytes) -> None:
            nonlocal ahead_s
            ahead_s += 15 if method == "Subscriber/ModifyAckDeadline" else 0

        queue.send([a_message(0)])
        with proxy.rule(stand_still):
            assert queue.receive(max_messages=1, lease_s=60, wait_s=1) == []
        queue.send([a_message(1)])
        (held,) = queue.receive(max_messages=1, lease_s=12, wait_s=5)
        with proxy.rule(stand_still):
            assert queue.extend([held], lease_s=60) == ([], [held])

    @pytest.mark.parametrize("delay_s", [0.3, 100])
    def test_who_stood_still_leaves_what_is_delayed_to_others(
        self, queue: PubSubQueue, proxy: Proxy, delay_s: float
    ) -> None:
        """What is due is not published anew, and what is early is not hidden, by one who holds it no more."""
        ahead_s = 0.0
        queue._clock = lambda: time.monotonic() + ahead_s

        def stand_still(method: str, _: bytes) -> None:
            nonlocal ahead_s
            ahead_s += 15 if method == "Subscriber/Pull" else 0

        queue.send([a_message()], delay_s=delay_s)
        time.sleep(0.4)
        before = len(proxy.called)
        with proxy.rule(stand_still):
            assert queue.receive(max_messages=1, lease_s=60, wait_s=1) == []
        assert set(proxy.called[before:]) == {"Subscriber/Pull"}

    def test_what_is_over_when_its_copy_was_published_is_not_ended(
        self, queue: PubSubQueue, proxy: Proxy
    ) -> None:
        """Somebody else may hold it by then."""
        ahead_s = 0.0
        queue._clock = lambda: time.monotonic() + ahead_s

        def slowly(method: str, _: bytes) -> None:
            nonlocal ahead_s
            ahead_s += 61 if method == "Publisher/Publish" else 0

        queue.send([a_message()])
        held = self.take(queue, lease_s=60)
        before = len(proxy.called)
        with proxy.rule(slowly):
            queue.release(held)
        assert proxy.called[before:] == ["Publisher/Publish"]
        queue.send([a_message()], delay_s=0.3)
        time.sleep(0.4)
        before = len(proxy.called)
        with proxy.rule(slowly):
            queue._take(queue._requests.pull(queue.subscription, 10, 3), 60, queue._clock() + 10)
        assert "Publisher/Publish" in proxy.called[before:]
        assert "Subscriber/Acknowledge" not in proxy.called[before:]

    def test_answers_that_come_at_once_with_nothing_are_no_reason_to_spin(
        self, queue: PubSubQueue, proxy: Proxy
    ) -> None:
        with proxy.rule(refuse("Subscriber/Pull", answer=b"")):
            before = len(proxy.called)
            assert queue.receive(max_messages=1, lease_s=5, wait_s=1.5) == []
            assert len(proxy.called) - before < 10
            Timer(0.3, queue.wake).start()
            began_s = time.monotonic()
            assert queue.receive(max_messages=1, lease_s=5, wait_s=10) == []
            assert time.monotonic() - began_s < 5

    def test_who_is_woken_between_two_requests_begins_no_other(
        self, queue: PubSubQueue, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It might take messages for a worker that stops."""
        wait = queue._bell.wait

        def woken(seconds: float, rings: int) -> bool:
            queue.wake()
            return wait(seconds, rings)

        monkeypatch.setattr(queue._bell, "wait", woken)
        with proxy.rule(refuse("Subscriber/Pull", answer=b"")):
            before = len(proxy.called)
            assert queue.receive(max_messages=1, lease_s=5, wait_s=10) == []
        assert proxy.called[before:] == ["Subscriber/Pull"]

    def test_after_the_last_close_there_is_no_new_connection(self, queue: PubSubQueue) -> None:
        lane = queue.lane("b")
        queue.close()
        lane.send([a_message()])
        lane.close()
        with pytest.raises(BackendError, match="closed"):
            queue._requests.pull(queue.subscription, 1, 1)
        assert queue._requests.client._channel is None

    # -- exactly-once delivery ----------------------------------------------------------------------

    def test_ack_ids_that_a_subscription_with_exactly_once_delivery_refuses(
        self, queue: PubSubQueue, proxy: Proxy
    ) -> None:
        queue.send(messages(3))
        gone, again, fine = self.take(queue, 3)
        refused = {
            gone.token.lease.ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID",
            again.token.lease.ack_id: "TRANSIENT_FAILURE_UNORDERED_ACK_ID",
        }
        answer = Refusal(StatusCode.FAILED_PRECONDITION, "Some acknowledgement ids", "X", refused)
        with proxy.rule(refuse("Subscriber/ModifyAckDeadline", answer=answer)):
            extended, lost = queue.extend([gone, again, fine], lease_s=60)
        assert ([old for old, _ in extended], lost) == ([fine], [gone])
        fine = extended[0][1]
        del refused[gone.token.lease.ack_id]
        with (
            proxy.rule(refuse("Subscriber/Acknowledge", answer=answer)),
            pytest.raises(UnavailableError, match="1 messages were not settled"),
        ):
            queue.delete([gone, again, fine])
        assert queue.extend([fine, again], lease_s=60).lost == [fine]


# -- who may do what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("Publisher/Publish", r"pubsub.topics.publish on projects/.*roles/pubsub.publisher"),
        ("Subscriber/Pull", r"pubsub.subscriptions.consume on projects/.*roles/pubsub.subscriber"),
        ("Publisher/CreateTopic", r"pubsub.topics.create on projects/.*roles/pubsub.editor"),
    ],
)
def test_a_permission_that_is_not_given_is_named_with_its_role(
    queue: PubSubQueue, proxy: Proxy, method: str, text: str
) -> None:
    with proxy.rule(refuse(method, answer=DENIED)), pytest.raises(UnusableError, match=text):
        if method == "Publisher/CreateTopic":
            queue.lane("b")
        queue.send([a_message()])
        queue.receive(max_messages=1, lease_s=5, wait_s=0)


def test_who_may_not_look_at_the_subscription_may_work_all_the_same(url: str, proxy: Proxy) -> None:
    with proxy.rule(refuse("Subscriber/GetSubscription", answer=DENIED)), closing(open_queue(url)) as queue:
        queue.send([a_message()])
        assert len(queue.receive(max_messages=1, lease_s=5, wait_s=5)) == 1


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (
            Refusal(StatusCode.PERMISSION_DENIED, "Cloud Pub/Sub API has not been used", "SERVICE_DISABLED"),
            UnusableError,
            "gcloud services enable pubsub.googleapis.com --project test-project",
        ),
        (
            Refusal(StatusCode.UNAUTHENTICATED, "invalid token"),
            UnusableError,
            "doesn't accept these credentials",
        ),
        (Refusal(StatusCode.RESOURCE_EXHAUSTED, "quota"), UnavailableError, "out of reach or busy: quota"),
        (Refusal(StatusCode.INVALID_ARGUMENT, "no"), BackendError, "no"),
    ],
)
def test_errors_say_what_to_do(url: str, proxy: Proxy, refusal: Refusal, kind: type, text: str) -> None:
    with (
        proxy.rule(refuse("Subscriber/GetSubscription", answer=refusal)),
        pytest.raises(kind, match=text),
    ):
        open_queue(url)


def test_without_credentials(pubsub: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UnusableError, match="gcloud auth application-default login"):
        open_queue(pubsub.url())
    (finding,) = diagnose([pubsub.url()], ["worker"])
    assert (finding.what, finding.ok, finding.stops) == ("credentials", False, True)


def test_every_permission_that_is_needed_is_in_the_roles_and_no_other(pubsub: Emulator, proxy: Proxy) -> None:
    url = pubsub.url()
    make_queue(url)
    make_queue(url)
    assert needed(proxy) | {"pubsub.subscriptions.update"} == set(GRANTS["setup"])
    proxy.called.clear()
    with closing(open_queue(url)) as queue, closing(queue.lane("b")) as lane:
        for each in (queue, lane):
            each.send([a_message()])
            taken = each.receive(max_messages=1, lease_s=5, wait_s=5)
            each.delete([new for _, new in each.extend(taken, lease_s=5).extended])
        list(queue.dead())
    mine = {permission for permission in GRANTS["worker"] if permission.startswith("pubsub.")}
    assert needed(proxy) == mine
    assert GRANTS["manager"] == GRANTS["worker"]


@pytest.mark.parametrize("role", ["setup", "worker"])
def test_the_documentation_has_the_same_roles(role: str) -> None:
    text = (Path(__file__).parents[2] / "docs/backends/gcp.md").read_text()
    command = text.partition(f"<!-- role: {role} -->")[2].split("\n\n")[1]
    assert re.findall(r"(?:datastore|pubsub|storage)\.\w+\.\w+", command) == list(GRANTS[role])


def needed(proxy: Proxy) -> set[str]:
    return {permission for method in proxy.called for permission in METHODS[method]}


# -- mtask doctor -----------------------------------------------------------------------------------


def findings(url: str, *roles: str) -> dict[str, Finding]:
    return {each.what: each for each in diagnose([url], roles or ("manager", "worker"))}


def given(*permissions: str, member: str = "") -> Any:
    """A rule: IAM as it would answer who has these permissions."""

    def rule(method: str, request: bytes) -> Any:
        if method == "IAMPolicy/TestIamPermissions":
            asked = iam_policy_pb2.TestIamPermissionsRequest.FromString(request).permissions
            has = [each for each in asked if each in permissions]
            return iam_policy_pb2.TestIamPermissionsResponse(permissions=has).SerializeToString()
        if method == "IAMPolicy/GetIamPolicy":
            binding = Binding(role="roles/pubsub.publisher", members=[member])
            return Policy(bindings=[binding]).SerializeToString()
        return None

    return rule


def test_doctor_tells_which_permissions_are_given(url: str, proxy: Proxy) -> None:
    service = "serviceAccount:service-123@gcp-sa-pubsub.iam.gserviceaccount.com"
    with proxy.rule(given(*GRANTS["worker"], member=service)):
        assert {each.ok for each in findings(url).values()} == {True}
    with proxy.rule(given("pubsub.topics.publish", member="user:me@example.com")):
        found = findings(url, "worker")
    assert found["pubsub.topics.publish"].ok
    refused = found["pubsub.subscriptions.consume"]
    assert refused.ok is False
    assert "workers need it: give them roles/pubsub.subscriber" in refused.todo
    assert found["who moves them"].ok is None
    with proxy.rule(refuse("Publisher/CreateTopic", answer=DENIED)):
        assert findings(url)["pubsub.topics.create"].ok is False


def test_doctor_at_an_emulator_changes_nothing(url: str, proxy: Proxy) -> None:
    found = findings(url)
    assert "which needs none" in found["credentials"].text
    assert found["permissions"].ok is None
    assert found["dead letters"].ok
    assert found["retention"].text == "messages are kept for 7 days"
    assert not [each for each in found.values() if each.ok is False]
    assert findings(url) == found
    assert [how for _, how in make_queue(url)] == ["was there"] * 4


@pytest.mark.parametrize("there", [False, True])
def test_doctor_makes_nothing_where_it_may_not_look(pubsub: Emulator, proxy: Proxy, there: bool) -> None:
    url = pubsub.url()
    if there:
        make_queue(url)
    before = len(proxy.called)
    with proxy.rule(refuse("Subscriber/GetSubscription", answer=DENIED)):
        found = findings(url)
    assert not {"Publisher/CreateTopic", "Subscriber/CreateSubscription"} & set(proxy.called[before:])
    assert found["pubsub.subscriptions.get"].ok is False
    for permission in ("pubsub.topics.create", "pubsub.subscriptions.create"):
        assert found[permission].ok is None
        assert "can't be told" in found[permission].text


def test_doctor_where_nothing_is(pubsub: Emulator, proxy: Proxy) -> None:
    found = findings(pubsub.url())
    assert found["queue"].stops
    assert found["queue"].todo == "`mtask init` makes it"


def test_doctor_finds_settings_that_lose_messages(queue: PubSubQueue, url: str) -> None:
    subscriber, path = queue._requests.client.subscriber, queue.subscription
    change = {"name": path, "message_retention_duration": {"seconds": 3600}}
    paths = ["message_retention_duration", "dead_letter_policy"]
    subscriber.update_subscription(request={"subscription": change, "update_mask": {"paths": paths}})
    found = findings(url)
    assert found["retention"].ok is False
    assert found["dead letters"].ok is False
    make_queue(url)
    subscriber.delete_subscription(subscription=f"{path}-dead")
    assert "they are lost" in findings(url)["dead letters"].text
    queue._requests.client.publisher.delete_topic(topic=queue.topic)
    found = findings(url)
    assert found["subscription"].stops
    assert "its topic was deleted" in found["subscription"].text


# -- the emulator is gone ---------------------------------------------------------------------------


def test_one_that_is_gone_and_comes_back(own_emulator: Emulator) -> None:
    url = own_emulator.url()
    make_queue(url)
    with closing(open_queue(url)) as queue, closing(queue.lane("b")) as lane:
        queue.send(messages(2))
        held = queue.receive(max_messages=1, lease_s=60, wait_s=5)
        own_emulator.kill()
        for act in (
            lambda: queue.send([a_message()]),
            lambda: queue.receive(max_messages=1, lease_s=5, wait_s=0.2),
            lambda: queue.extend(held, lease_s=5),
            lambda: queue.delete(held),
            lambda: open_queue(url),
        ):
            began_s = time.monotonic()
            with pytest.raises(UnavailableError, match="out of reach"):
                act()
            assert time.monotonic() - began_s < 10
        own_emulator.start()
        deadline_s = time.monotonic() + 15
        while True:
            try:
                assert queue.extend(held, lease_s=5).lost == held
                break
            except UnavailableError:
                assert time.monotonic() < deadline_s, "it is not found again"
                time.sleep(0.1)
        with pytest.raises(UnusableError, match="mtask init"):
            queue.receive(max_messages=1, lease_s=5, wait_s=0)
        make_queue(url)
        for each in (queue, lane):
            each.send([a_message(7)])
            (delivery,) = each.receive(max_messages=1, lease_s=5, wait_s=5)
            assert index_of(delivery) == 7

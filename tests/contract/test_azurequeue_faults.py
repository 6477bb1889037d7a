"""What can go wrong with a queue on Azure: what is said, what is tried again, and what is lost (nothing)."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from mtask.errors import BackendError, SendError, UnavailableError, UnusableError, UsageError
from mtask.testing.queue_steps import QueueSteps
from mtask.testing.samples import a_message, index_of, messages
from mtask_azure import client, setup
from mtask_azure.queue import AzureQueue
from mtask_azure.setup import make_queue
from tests.servers.azure import ACCOUNT, CONNECTION, Azurite, point_at, without_credentials
from tests.servers.azureproxy import Answer, Proxy, Request, error, proxy_to

STEPS = QueueSteps()


@pytest.fixture
def proxy(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(client, "PAUSE_S", 0)
    with proxy_to(azurite.url) as proxy:
        point_at(azurite.connection(queue=proxy.url), monkeypatch)
        yield proxy


@pytest.fixture
def queue(proxy: Proxy, azurite: Azurite) -> Iterator[AzureQueue]:
    """Behind the proxy."""
    with closing(azurite.open(azurite.new())) as queue:
        yield queue


def refuse(operation: str, answer: Answer, times: int = 1000) -> tuple[object, list[Request]]:
    """A rule that answers so, so often; and what it has answered."""
    refused: list[Request] = []

    def rule(request: Request) -> Answer | None:
        if request.operation != operation or len(refused) >= times:
            return None
        refused.append(request)
        return answer

    return rule, refused


BUSY = error(503, "ServerBusy", "The server is busy.")
DENIED = error(403, "AuthorizationPermissionMismatch", "This request is not authorized")


# -- who and where ----------------------------------------------------------------------------------


def test_a_queue_that_is_not_there(azurite: Azurite) -> None:
    with pytest.raises(
        UnusableError, match=f"no queue 'nothing' in the storage account '{ACCOUNT}'; make it"
    ):
        AzureQueue.open(f"azureq://{ACCOUNT}/nothing")


def test_the_connection_string_of_another_account(azurite: Azurite) -> None:
    with pytest.raises(UsageError, match=f"is of the storage account '{ACCOUNT}', not of 'otherstorage'"):
        AzureQueue.open("azureq://otherstorage/reads")


def test_an_account_that_the_server_does_not_know(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite.connection(account="otherstorage"), monkeypatch)
    with pytest.raises(UnusableError, match="there is no storage account 'otherstorage'"):
        AzureQueue.open("azureq://otherstorage/reads")


def test_an_account_that_the_dns_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """`.invalid` is a name that never is one (RFC 6761)."""
    try:
        socket.getaddrinfo("nothing.invalid", 443)
    except socket.gaierror as problem:
        if problem.errno == socket.EAI_AGAIN:
            pytest.skip("the DNS can't be asked here")
    text = "AccountName=nosuchstorage;AccountKey=a2V5;EndpointSuffix=invalid;DefaultEndpointsProtocol=https"
    point_at(text, monkeypatch)
    with pytest.raises(
        UnusableError, match=r"no storage account 'nosuchstorage', or its name is spelled otherwise"
    ):
        AzureQueue.open("azureq://nosuchstorage/reads")


def test_a_server_that_is_away(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        point_at(azurite.connection(queue=f"http://127.0.0.1:{taken.getsockname()[1]}"), monkeypatch)
        with pytest.raises(UnavailableError, match="is out of reach"):
            AzureQueue.open(f"azureq://{ACCOUNT}/reads")


def test_a_wrong_key(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite.connection(key="YW5vdGhlciBrZXk="), monkeypatch)
    with pytest.raises(UnusableError, match="Azure doesn't accept these credentials") as caught:
        AzureQueue.open(f"azureq://{ACCOUNT}/reads")
    assert "YW5vdGhlciBrZXk=" not in str(caught.value)


@pytest.mark.parametrize("text", ["nonsense", "AccountKey=abc", ";;"])
def test_a_connection_string_that_makes_no_sense(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(text, monkeypatch)
    with pytest.raises(UsageError, match=f"{CONNECTION} can't be used") as caught:
        AzureQueue.open(f"azureq://{ACCOUNT}/reads")
    assert "abc" not in str(caught.value)


def test_without_any_credentials_one_line_says_so(tmp_path: Path) -> None:
    env = without_credentials() | {"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"}  # asks nobody else
    args = [sys.executable, "-m", "mtask", "init", f"azureq://{ACCOUNT}/reads", "--table", "sqlite:///t.db"]
    done = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search("Azure needs credentials .*run `az login`", line)


# -- signatures and roles ---------------------------------------------------------------------------


def test_a_signature_does(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite.signed(), monkeypatch)
    with closing(azurite.open(azurite.new())) as queue, closing(queue.lane("a")) as lane:
        for each in (queue, lane):
            each.send([a_message()])
            ((_, held),) = each.extend([STEPS.take_one(each)], lease_s=30).extended
            each.delete([held])


def test_an_expired_signature_is_said(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    url = azurite.new()
    point_at(azurite.signed(ends_in=timedelta(days=-400)), monkeypatch)
    with pytest.raises(
        UnusableError, match=r"signature in AZURE_\w+ expired at 20\d\d-\d\d-\d\d \d\d:\d\d UTC"
    ) as caught:
        AzureQueue.open(url)
    assert "sig=" not in str(caught.value)


def test_a_signature_that_is_not_for_all_of_it(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    url = azurite.new()
    point_at(azurite.signed(permission="r"), monkeypatch)
    with (
        closing(azurite.open(url)) as queue,
        pytest.raises(UnusableError, match=r"access denied: send on azureq://.*sp=rwdlacup"),
    ):
        queue.send([a_message()])
    point_at(azurite.signed(types="s"), monkeypatch)
    with pytest.raises(UnusableError, match=r"access denied: .*srt=sco"):
        azurite.open(url)


def test_a_missing_role_is_named(proxy: Proxy, queue: AzureQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Azure refuses who has no role, or one that isn't enough. Azurite knows no roles."""
    queue.send(messages(2))
    rule, _ = refuse("Update Message", DENIED)
    monkeypatch.setattr(queue._queues.account, "connection", None)  # as if by an identity
    with proxy.rule(rule):
        taken = STEPS.take(queue, 2)
        with pytest.raises(
            UnusableError, match=r"update on azureq://.*give this identity the role 'Storage Queue Data Con"
        ):
            queue.extend(taken, lease_s=30)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("KeyBasedAuthenticationNotPermitted", "the account takes no keys: unset AZURE_STORAGE"),
        ("AuthorizationSourceIPMismatch", "not from this address"),
        ("AuthorizationFailure", "firewall"),
        ("AuthenticationFailed", "doesn't accept these credentials"),
    ],
)
def test_what_else_is_refused(proxy: Proxy, queue: AzureQueue, code: str, text: str) -> None:
    rule, _ = refuse("Get Messages", error(403, code))
    with proxy.rule(rule), pytest.raises(UnusableError, match=text):
        queue.receive(max_messages=1, lease_s=30, wait_s=0)


# -- queues that come and go ------------------------------------------------------------------------


def test_init_waits_for_a_queue_that_is_being_deleted(
    proxy: Proxy, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "PAUSE_S", 0.05)
    rule, refused = refuse("Create Queue", error(409, "QueueBeingDeleted"), 3)
    url = f"azureq://{ACCOUNT}/{azurite.name()}"
    with proxy.rule(rule):
        assert [how for _, how in make_queue(url)] == ["made", "made"]
    assert len(refused) == 3
    monkeypatch.setattr(setup, "PATIENCE_S", 0.1)
    rule, _ = refuse("Create Queue", error(409, "QueueBeingDeleted"))
    with proxy.rule(rule), pytest.raises(UnavailableError, match="is being deleted"):
        make_queue(f"azureq://{ACCOUNT}/{azurite.name()}")


def test_a_lane_that_is_being_deleted_is_tried_again(proxy: Proxy, queue: AzureQueue) -> None:
    """By the engine: who sends there is told so, and who receives finds nothing."""
    with closing(queue.lane("c0ffee")) as lane:
        assert lane.remove()
        rule, _ = refuse("Create Queue", error(409, "QueueBeingDeleted"), 2)
        with proxy.rule(rule):
            assert lane.receive(max_messages=1, lease_s=30, wait_s=0) == []
            assert lane.depth() == (0, 0, 0)
            for _ in range(2):
                with pytest.raises(UnavailableError, match="is being deleted"):
                    lane.send([a_message()])
            lane.send([a_message(3)])
        assert index_of(STEPS.take_one(lane)) == 3
        rule, _ = refuse("Get Messages", error(409, "QueueBeingDeleted"), 1)
        with proxy.rule(rule):
            assert lane.receive(max_messages=1, lease_s=30, wait_s=0) == []


def test_a_queue_that_was_deleted_is_said(azurite: Azurite) -> None:
    url = azurite.new()
    with closing(azurite.open(url)) as queue:
        queue.send(messages(2))
        taken = STEPS.take(queue, 2)
        azurite.client(url).delete_queue()
        for action in (
            lambda: queue.send([a_message()]),
            lambda: queue.receive(max_messages=1, lease_s=30, wait_s=0),
            queue.depth,
        ):
            with pytest.raises(UnusableError, match="the queue was deleted; make it again with `mtask init`"):
                action()
        assert queue.extend(taken, lease_s=30) == ([], taken)
        queue.delete(taken[:1])
        queue.release(taken[1:])


def test_a_queue_that_is_being_deleted_is_out_of_reach(proxy: Proxy, queue: AzureQueue) -> None:
    rule, _ = refuse("Get Messages", error(409, "QueueBeingDeleted"))
    with proxy.rule(rule), pytest.raises(UnavailableError, match="is being deleted"):
        queue.receive(max_messages=1, lease_s=30, wait_s=0)


# -- faults that pass -------------------------------------------------------------------------------


def test_throttling_that_ends_soon_is_not_seen(proxy: Proxy, queue: AzureQueue) -> None:
    rule, refused = refuse("Put Message", BUSY, 1)
    with proxy.rule(rule):
        queue.send([a_message()])
    assert len(refused) == 1
    STEPS.take_one(queue)


def test_throttling_that_goes_on_is_a_passing_fault(proxy: Proxy, queue: AzureQueue) -> None:
    queue.send(messages(2))
    taken = STEPS.take(queue, 2)
    for operation, action in {
        "Put Message": lambda: queue.send([a_message(9)]),
        "Get Messages": lambda: queue.receive(max_messages=1, lease_s=30, wait_s=0),
        "Update Message": lambda: queue.extend(taken[:1], lease_s=30),
        "Delete Message": lambda: queue.delete(taken[:1]),
    }.items():
        rule, refused = refuse(operation, BUSY)
        with proxy.rule(rule), pytest.raises(UnavailableError, match="is busy: 503 ServerBusy"):
            action()
        assert len(refused) == 3
    assert queue.meter.used()["azure queue operations"] == len(proxy.requests) - 4  # those of `make_queue`


def test_what_a_fault_leaves_out_is_neither_lost_nor_extended(proxy: Proxy, queue: AzureQueue) -> None:
    queue.send(messages(3))
    one, two, three = STEPS.take(queue, 3)
    queue.delete([three])

    def rule(request: Request) -> Answer | None:
        return BUSY if two.token.message in request.path else None

    with proxy.rule(rule):
        extended, lost = queue.extend([one, two, three], lease_s=30)
    assert ([given for given, _ in extended], lost) == ([one], [three])
    assert [given for given, _ in queue.extend([two], lease_s=30).extended] == [two]


def test_of_a_batch_exactly_those_are_named_that_were_not_sent(proxy: Proxy, queue: AzureQueue) -> None:
    sent = threading.Event()

    def rule(request: Request) -> Answer | None:
        if request.operation != "Put Message":
            return None
        if not sent.is_set():
            sent.set()
            return None
        return error(403, "AuthorizationFailure")

    with proxy.rule(rule), pytest.raises(SendError) as caught:
        queue.send(messages(20))
    there = {index_of(each) for each in STEPS.take(queue, 20 - len(caught.value.unsent))}
    assert there | {message.first for message, _ in caught.value.unsent} == set(range(20))
    assert len(there) == 1
    assert len(proxy.asked("Put Message")) < 20, "the others weren't tried"


def test_an_answer_that_is_lost_makes_no_second_holder(proxy: Proxy, queue: AzureQueue) -> None:
    """Azure has extended the lease, and only it knows the new receipt: nobody holds the message then."""
    queue.send([a_message()])
    held = STEPS.take_one(queue, lease_s=30)
    lost: list[Answer] = []

    def rule(request: Request) -> Answer | None:
        if request.operation != "Update Message" or lost:
            return None
        lost.append(proxy.forward(request))
        return error(500, "OperationTimedOut")

    with proxy.rule(rule):
        assert queue.extend([held], lease_s=30).lost == [held]
    queue.delete([held])
    assert queue.depth() == (0, None, None)


def test_a_message_of_others_settles_as_any_other(azurite: Azurite) -> None:
    url = azurite.new()
    azurite.client(url).send_message("what is this? <🦠>")
    with closing(azurite.open(url)) as queue:
        delivery = STEPS.take_one(queue)
        assert delivery.body == "what is this? <🦠>".encode()
        queue.delete([delivery])
        assert queue.depth() == (0, 0, 0)


def test_an_answer_of_somebody_else_is_no_success(proxy: Proxy, queue: AzureQueue) -> None:
    page = Answer(200, b"<html>welcome to the airport</html>", {"Content-Type": "text/html"})
    with proxy.rule(lambda _: page):
        with pytest.raises(BackendError):
            queue.send([a_message()])
        assert queue.receive(max_messages=1, lease_s=30, wait_s=0) == []

"""What can go wrong between a queue and SQS: a real HTTP server between them answers in SQS's place."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from mtask.errors import BackendError, SendError, UnavailableError, UnusableError, UsageError
from mtask.model import Message
from mtask.testing.samples import a_message, a_message_of_bytes, index_of, messages
from mtask_aws.queue import SqsQueue
from mtask_aws.setup_queue import make_queue
from mtask_sqlite import open_table
from tests.servers.proxy import Answer, Proxy, Request, error, proxy_to
from tests.servers.sqs import REGION, Sqs, sqs, sqs_server

__all__ = ["sqs", "sqs_server"]

ALLOWED = re.compile("[\x09\x0a\x0d\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
GONE = (
    "Value AQEB for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for "
    "visibility timeout change."
)
Fail = Callable[[int], dict[str, Any] | None]


@pytest.fixture
def proxy(sqs: Sqs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy_to(sqs.url) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@pytest.fixture
def url(sqs: Sqs) -> str:
    return sqs.new()


@pytest.fixture
def queue(proxy: Proxy, sqs: Sqs, url: str) -> Iterator[SqsQueue]:
    with closing(sqs.open(url)) as queue:
        proxy.requests.clear()
        yield queue


def take(queue: SqsQueue, count: int = 100, wait_s: float = 0) -> list[int]:
    return sorted(index_of(each) for each in queue.receive(max_messages=count, lease_s=100, wait_s=wait_s))


def failing(operation: str, fail: Fail) -> Callable[[Request], Answer | None]:
    """Of batches, entries for whose id `fail` gives a failure don't reach the server."""

    def rule(request: Request) -> Answer | None:
        if request.operation != operation:
            return None
        whole = request.body
        failed, passing = [], []
        for entry in whole["Entries"]:
            failure = fail(int(entry["Id"]))
            failed.append({"Id": entry["Id"]} | failure) if failure else passing.append(entry)
        answer = Answer(200, {"Successful": []}, {})
        if passing:
            part = copy.copy(request)
            part.body = whole | {"Entries": passing}
            request.body = part.body
            answer = request.forward()
            request.body = whole
        return Answer(200, answer.body | {"Failed": failed}, {})

    return rule


def blip(times: int, *numbers: int) -> Fail:
    """A fault of the server's, of these entries of the first so many batches."""
    left = dict.fromkeys(numbers, times)

    def fail(number: int) -> dict[str, Any] | None:
        if left.get(number, 0) <= 0:
            return None
        left[number] -= 1
        return {"Code": "InternalError", "SenderFault": False, "Message": "try again"}

    return fail


def final(code: str, text: str, *numbers: int) -> Fail:
    return lambda number: {"Code": code, "SenderFault": True, "Message": text} if number in numbers else None


def always(operation: str, answer: Answer) -> Callable[[Request], Answer | None]:
    return lambda request: answer if request.operation == operation else None


# -- batches that fail in part --------------------------------------------------------------------------


def test_entries_that_failed_are_sent_again_and_the_others_are_not(queue: SqsQueue, proxy: Proxy) -> None:
    with proxy.rule(failing("SendMessageBatch", blip(1, 3, 7))):
        queue.send(messages(10))
    assert [len(request.body["Entries"]) for request in proxy.asked("SendMessageBatch")] == [10, 2]
    assert take(queue) == list(range(10))


def test_entries_that_fail_for_good_are_named(queue: SqsQueue, proxy: Proxy) -> None:
    with (
        proxy.rule(failing("SendMessageBatch", final("InvalidMessageContents", "no", 2, 12))),
        pytest.raises(SendError, match="InvalidMessageContents: no") as caught,
    ):
        queue.send(messages(15))
    assert [message.first for message, _ in caught.value.unsent] == [2, 12]
    assert len(proxy.asked("SendMessageBatch")) == 2, "not tried again"
    assert take(queue) == [index for index in range(15) if index not in (2, 12)]


def test_entries_that_fail_each_time_are_named_in_the_end(queue: SqsQueue, proxy: Proxy) -> None:
    with (
        proxy.rule(failing("SendMessageBatch", blip(100, 0))),
        pytest.raises(SendError, match="InternalError") as caught,
    ):
        queue.send(messages(3))
    assert [message.first for message, _ in caught.value.unsent] == [0]
    assert take(queue) == [1, 2]


def test_of_several_batches_those_that_went_are_not_called_unsent(queue: SqsQueue, proxy: Proxy) -> None:
    def rule(request: Request) -> Answer | None:
        second = any('"first":10,' in entry["MessageBody"] for entry in request.body.get("Entries", ()))
        return error("RequestThrottled") if second else None

    with proxy.rule(rule), pytest.raises(SendError, match="RequestThrottled") as caught:
        queue.send(messages(25))
    assert [message.first for message, _ in caught.value.unsent] == list(range(10, 20))
    assert take(queue) == [*range(10), *range(20, 25)]


@pytest.mark.parametrize("operation", ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
def test_what_failed_of_a_settlement_is_tried_again(queue: SqsQueue, proxy: Proxy, operation: str) -> None:
    queue.send(messages(3))
    held = queue.receive(max_messages=10, lease_s=100, wait_s=1)
    settle = queue.delete if operation == "DeleteMessageBatch" else queue.release
    with proxy.rule(failing(operation, blip(1, 1))):
        settle(held)
    assert [len(request.body["Entries"]) for request in proxy.asked(operation)] == [3, 1]
    assert queue.depth() == ((0, 0, 0) if operation == "DeleteMessageBatch" else (3, 0, 0))


def test_what_can_not_be_settled_is_said_and_still_held(queue: SqsQueue, proxy: Proxy) -> None:
    queue.send(messages(2))
    held = queue.receive(max_messages=10, lease_s=100, wait_s=1)
    with (
        proxy.rule(failing("DeleteMessageBatch", blip(100, 1))),
        pytest.raises(UnavailableError, match="1 messages were not settled: InternalError"),
    ):
        queue.delete(held)
    queue.delete(held)
    assert queue.depth() == (0, 0, 0)


# -- leases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ReceiptHandleIsInvalid", "The input receipt handle is invalid."),
        ("AWS.SimpleQueueService.MessageNotInflight", ""),
        ("InvalidParameterValue", GONE),
        (
            "InvalidParameterValue",
            "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
        ),
    ],
)
def test_a_lost_lease_is_told_from_a_fault(queue: SqsQueue, proxy: Proxy, code: str, text: str) -> None:
    queue.send(messages(3))
    held = queue.receive(max_messages=10, lease_s=100, wait_s=1)
    broken = blip(100, 1)
    lost = final(code, text, 0)
    with proxy.rule(failing("ChangeMessageVisibilityBatch", lambda number: lost(number) or broken(number))):
        extension = queue.extend(held, lease_s=200)
    assert ([old for old, _ in extension.extended], extension.lost) == ([held[2]], [held[0]])
    queue.delete([held[0], held[2], extension.extended[0][1], held[1]])
    (request,) = proxy.asked("DeleteMessageBatch")
    sent = {entry["ReceiptHandle"] for entry in request.body["Entries"]}
    assert sent == {held[1].token.lease.handle, held[2].token.lease.handle}, "of a lost one nothing is sent"


def test_a_lease_that_is_over_here_is_never_asked_for(queue: SqsQueue, proxy: Proxy, sqs: Sqs) -> None:
    """SQS would answer an extension with success, and do nothing; and perhaps delete with an old handle."""
    queue.send(messages(1))
    held = queue.receive(max_messages=1, lease_s=30, wait_s=1)
    sqs.advance(30)
    assert queue.extend(held, lease_s=30).lost == held
    queue.delete(held)
    queue.release(held)
    assert not proxy.asked("ChangeMessageVisibilityBatch")
    assert not proxy.asked("DeleteMessageBatch")
    assert take(queue, wait_s=2) == [0]


def test_leases_and_waits_are_whole_seconds_and_never_shorter_than_asked_for(
    queue: SqsQueue, proxy: Proxy
) -> None:
    queue.send(messages(1))
    (held,) = queue.receive(max_messages=1, lease_s=30.2, wait_s=0.3)
    (asked,) = proxy.asked("ReceiveMessage")
    assert (asked.body["VisibilityTimeout"], asked.body["WaitTimeSeconds"]) == (31, 1)
    ((_, held),) = queue.extend([held], lease_s=29.01).extended
    queue.release([held], delay_s=1.5)
    changes = [request.body["Entries"][0] for request in proxy.asked("ChangeMessageVisibilityBatch")]
    assert [change["VisibilityTimeout"] for change in changes] == [30, 2]


# -- what goes over the wire ----------------------------------------------------------------------------


def test_only_characters_that_sqs_takes_are_sent(queue: SqsQueue, proxy: Proxy) -> None:
    odd = [
        a_message(0, value="\ufffe\uffff\x00\x1b"),
        a_message(1, value="grüße"),
        a_message(2, value="\x7f\x85"),
    ]
    queue.send(odd)
    (request,) = proxy.asked("SendMessageBatch")
    bodies = [entry["MessageBody"] for entry in request.body["Entries"]]
    assert all(ALLOWED.fullmatch(body) for body in bodies)
    assert bodies[1] == odd[1].encode().decode(), "the ordinary ones as they are"
    taken = queue.receive(max_messages=10, lease_s=100, wait_s=1)
    assert {each.body for each in taken} == {message.encode() for message in odd}


def test_one_that_is_too_long_only_for_its_characters_goes_without_its_rows(queue: SqsQueue) -> None:
    message = a_message(5, value="\uffff" * 300_000)
    assert len(message.encode()) < queue.limits.message_bytes
    queue.send([message])
    (taken,) = queue.receive(max_messages=1, lease_s=100, wait_s=1)
    assert not Message.decode(taken.body).has_rows
    assert index_of(taken) == 5


def test_no_batch_is_larger_than_sqs_takes(queue: SqsQueue, proxy: Proxy) -> None:
    queue.send([a_message_of_bytes(200_000, index) for index in range(12)])
    sizes = [
        sum(len(entry["MessageBody"].encode()) for entry in request.body["Entries"])
        for request in proxy.asked("SendMessageBatch")
    ]
    assert len(sizes) == 3
    assert max(sizes) <= 1_048_576
    assert take(queue) == list(range(12))


# -- requests that fail as a whole ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["RequestThrottled", "ThrottlingException", "OverLimit", "KMS.ThrottlingException"]
)
def test_too_busy_or_too_many_in_flight_is_for_a_while(queue: SqsQueue, proxy: Proxy, code: str) -> None:
    with (
        proxy.rule(always("ReceiveMessage", error(code))),
        pytest.raises(UnavailableError, match=code.removeprefix("KMS.")),
    ):
        take(queue)
    assert take(queue) == []


def test_what_was_received_before_a_fault_is_not_lost(queue: SqsQueue, proxy: Proxy) -> None:
    queue.send(messages(20))

    def rule(request: Request) -> Answer | None:
        return error("OverLimit") if len(proxy.asked("ReceiveMessage")) > 1 else None

    with proxy.rule(rule):
        assert len(take(queue)) == 10


def test_access_denied_names_the_action_and_the_queue(queue: SqsQueue, proxy: Proxy) -> None:
    denied = error("AccessDenied", "not for you", status=403, kind="AccessDeniedException")
    with (
        proxy.rule(always("SendMessageBatch", denied)),
        pytest.raises(UnusableError, match=rf"access denied: sqs:SendMessage on sqs://.*/{queue.name}"),
    ):
        queue.send(messages(1))
    with (
        proxy.rule(always("CreateQueue", denied)),
        pytest.raises(UnusableError, match=rf"sqs:CreateQueue on sqs://.*/{queue.name}-c0ffee"),
    ):
        queue.lane("c0ffee")


def test_no_such_queue_offers_to_make_it(proxy: Proxy) -> None:
    with pytest.raises(UnusableError, match=r"no queue 'nothing' in us-east-1.*mtask init"):
        SqsQueue.open(f"sqs://{REGION}/nothing")


def test_a_queue_of_another_region_is_not_there(proxy: Proxy, url: str) -> None:
    with pytest.raises(UnusableError, match=r"in eu-west-1.*name another region"):
        SqsQueue.open(url.replace(REGION, "eu-west-1"))


def test_a_region_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(UsageError, match=r"no region 'us-east-11'.*did you mean 'us-east-1'"):
        SqsQueue.open(url.replace(REGION, "us-east-11"))


def test_a_queue_that_is_deleted_under_its_users(queue: SqsQueue, proxy: Proxy) -> None:
    queue.send(messages(1))
    held = queue.receive(max_messages=1, lease_s=100, wait_s=1)
    client = boto3.client("sqs", region_name=REGION)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=queue.name)["QueueUrl"])
    for action in (lambda: take(queue), queue.depth, lambda: queue.send(messages(1))):
        with pytest.raises(UnusableError, match=r"was deleted.*mtask init.*mtask repair"):
            action()
    assert queue.extend(held, lease_s=10).lost == held
    queue.delete(held)


def test_a_name_that_sqs_still_keeps_is_for_a_while(queue: SqsQueue, proxy: Proxy) -> None:
    recent = error(
        "AWS.SimpleQueueService.QueueDeletedRecently", "wait 60 seconds", kind="QueueDeletedRecently"
    )
    with (
        proxy.rule(always("CreateQueue", recent)),
        pytest.raises(UnavailableError, match="keeps its name for 60 seconds"),
    ):
        queue.lane("b")
    queue.lane("b").close()


def test_a_server_that_is_away(queue: SqsQueue, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.send(messages(1))
    with (
        proxy.rule(lambda request: Answer(503, {"message": "down"}, {})),
        pytest.raises(UnavailableError, match="busy"),
    ):
        take(queue)
    queue._requests.client.renew()
    with monkeypatch.context() as context:
        context.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(UnavailableError, match="out of reach"):
            take(queue)
    queue._requests.client.renew()
    assert take(queue) == [0]


def test_a_send_whose_answer_was_lost_is_one_message_of_a_fifo_queue(proxy: Proxy, sqs: Sqs) -> None:
    def rule(request: Request) -> Answer | None:
        if request.operation != "SendMessageBatch" or len(proxy.asked("SendMessageBatch")) > 1:
            return None
        assert request.forward().status == 200
        return Answer(500, {"message": "lost"}, {})

    with (
        closing(sqs.open(sqs.new(fifo=True))) as queue,
        proxy.rule(rule),
    ):
        queue.send(messages(2))
        assert len(proxy.asked("SendMessageBatch")) == 2
        assert queue.depth() == (2, 0, 0)


def test_credentials_that_expire_in_the_middle_are_found_anew(
    proxy: Proxy, url: str, sqs: Sqs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def write(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=x\naws_session_token=y\n")

    valid = ["AKIAOLD"]

    def rule(request: Request) -> Answer | None:
        if valid[0] in request.headers["authorization"]:
            return None
        return error("ExpiredToken", "The security token included in the request is expired", status=403)

    write("AKIAOLD")
    with proxy.rule(rule), closing(sqs.open(url)) as queue:
        queue.send(messages(1))
        valid[0] = "AKIANEW"
        with pytest.raises(
            UnavailableError, match="credentials have expired; work goes on when they are renewed"
        ):
            take(queue)
        write("AKIANEW")
        assert take(queue) == [0]


# -- what others put into the queue ---------------------------------------------------------------------


def test_foreign_messages_come_out_as_they_are(queue: SqsQueue) -> None:
    client = boto3.client("sqs", region_name=REGION)
    url = client.get_queue_url(QueueName=queue.name)["QueueUrl"]
    for text in ("hello", "mtask-escaped:oops", '{"v": 99}'):
        client.send_message(QueueUrl=url, MessageBody=text)
    taken = queue.receive(max_messages=10, lease_s=100, wait_s=1)
    assert {each.body for each in taken} == {b"hello", b"mtask-escaped:oops", b'{"v": 99}'}


def test_a_worker_sets_a_foreign_message_aside(sqs: Sqs, url: str, tmp_path: Path) -> None:
    client = boto3.client("sqs", region_name=REGION)
    client.send_message(
        QueueUrl=client.get_queue_url(QueueName=url.rpartition("/")[2])["QueueUrl"], MessageBody="hello"
    )
    table_url = f"sqlite:///{tmp_path}/tasks.db"
    with closing(open_table(table_url)) as table, closing(sqs.open(url)) as queue:
        arguments = ["worker", "-j", "1", "--queue", url, "--table", table_url]
        worker = subprocess.Popen([sys.executable, "-m", "mtask", *arguments], stderr=subprocess.PIPE)
        try:
            deadline_s = time.monotonic() + 60
            while not list(table.dead()) or queue.depth() != (0, 0, 0):
                assert time.monotonic() < deadline_s
                assert worker.poll() is None
                time.sleep(0.05)
        finally:
            worker.kill()
            worker.communicate()
        assert [each.body for each in table.dead()] == [b"hello"]
        assert queue.depth() == (0, 0, 0)


def test_init_says_what_is_not_allowed(proxy: Proxy) -> None:
    denied = error("AccessDenied", "not for you", status=403, kind="AccessDeniedException")
    with (
        proxy.rule(always("CreateQueue", denied)),
        pytest.raises(UnusableError, match=r"sqs:CreateQueue on sqs://us-east-1/new-dead"),
    ):
        make_queue(f"sqs://{REGION}/new")


def test_a_closed_queue_says_so(queue: SqsQueue) -> None:
    queue.close()
    queue.close()
    with pytest.raises(BackendError, match="closed"):
        take(queue)

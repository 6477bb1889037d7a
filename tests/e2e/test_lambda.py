"""The functions for Lambda, with events as AWS documents them, on a moto server. Lambda itself isn't here."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.bag import BagHandle
from mtask.errors import MtaskError, UsageError
from mtask.manager import Manager, connect
from mtask.model import Message, State
from mtask.registry import make
from mtask.submitting import check_name
from tests.unit.worker_kit import wait_until

pytest.importorskip("boto3")
import mtask_aws
from mtask.serverless import LEAST_S, MARGIN_S, options_within
from mtask_aws import serverless

REGION = "us-west-2"
QUEUE, TABLE = f"sqs://{REGION}/reads", f"dynamodb://{REGION}/reads"
FUNCTIONS = """
import os, time

def double(x: int) -> int:
    return 2 * x

def fail(x: int) -> None:
    raise ValueError(f"not {x}")

def log(x: int, path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{x}\\n")

def wait_for(x: int, path: str) -> int:
    open(f"{path}.{x}", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return x
"""


class Context:
    """What is left of the time, as Lambda tells it."""

    def __init__(self, left_s: float = 60.0) -> None:
        self._end_s = time.monotonic() + left_s

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end_s - time.monotonic()) * 1000)


@pytest.fixture
def aws(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Queue and table, as the function's environment names them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTASK_QUEUE", QUEUE)
    monkeypatch.delenv("MTASK_TABLE", raising=False)
    monkeypatch.setenv("MTASK_SLOTS", "1")
    (tmp_path / "lambda_tasks.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    list(make(QUEUE, TABLE))
    with connect(QUEUE, TABLE) as manager:
        yield manager
    for opened in (serverless._manager(QUEUE, TABLE),) if serverless._manager.cache_info().currsize else ():
        opened.close()
    serverless._manager.cache_clear()
    sys.modules.pop("lambda_tasks", None)


def submit(manager: Manager, function: str, rows: list[dict[str, Any]], **options: Any) -> BagHandle:
    return manager.submit(rows, call=f"lambda_tasks:{function}", bag="bag", **({"retries": 0} | options))


def sqs_event(most: int = 10, queue: str = "reads") -> dict[str, Any]:
    """An event of what is in the queue, received as Lambda's pollers do. The format: AWS Lambda Developer Guide."""
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    messages: list[dict[str, Any]] = []
    while len(messages) < most:
        more = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=min(10, most - len(messages)),
            VisibilityTimeout=300,
            MessageSystemAttributeNames=["All"],
        ).get("Messages", [])
        if not more:
            break
        messages += more
    return {
        "Records": [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {},
                "md5OfBody": message["MD5OfBody"],
                "eventSource": "aws:sqs",
                "eventSourceARN": f"arn:aws:sqs:{REGION}:123456789012:{queue}",
                "awsRegion": REGION,
            }
            for message in messages
        ]
    }


def conclude(event: dict[str, Any], answer: dict[str, Any]) -> set[str]:
    """What Lambda does with the answer: deletes what isn't named in it. Returns the names."""
    failures = {each["itemIdentifier"] for each in answer["batchItemFailures"]}
    sqs = boto3.client("sqs", region_name=REGION)
    for record in event["Records"]:
        if record["messageId"] not in failures:
            name = record["eventSourceARN"].rpartition(":")[2]
            url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
            sqs.delete_message(QueueUrl=url, ReceiptHandle=record["receiptHandle"])
    return failures


def invoke(event: dict[str, Any], left_s: float = 60.0) -> set[str]:
    return conclude(event, mtask_aws.lambda_handler(event, Context(left_s)))


def values(bag: BagHandle) -> list[Any]:
    return [result.value for result in bag.results()]


# -- messages ---------------------------------------------------------------------------------------


def test_the_messages_of_an_event_are_run(aws: Manager) -> None:
    bag = submit(aws, "double", [{"x": x} for x in range(20)], per_message=5)
    event = sqs_event()
    assert len(event["Records"]) == 4
    assert invoke(event) == set()
    assert values(bag) == [2 * x for x in range(20)]
    assert bag.finished()
    assert aws.queue.depth() == (0, 0, 0)
    assert mtask_aws.lambda_handler({"Records": []}, Context()) == {"batchItemFailures": []}


def test_one_environment_is_one_worker(aws: Manager) -> None:
    bag = submit(aws, "double", [{"x": x} for x in range(4)], per_message=1)
    for _ in range(2):
        assert invoke(sqs_event(2)) == set()
    assert bag.finished()
    [worker] = aws.table.workers()
    assert (worker.worker.startswith("lambda-"), worker.state) == (True, "stopped")


def test_in_a_thread_without_shared_memory_of_multiprocessing(
    aws: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no /dev/shm in Lambda, so none of this may be used; and the handler may be called from any thread."""
    import multiprocessing.synchronize

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refused)
    bag = submit(aws, "double", [{"x": 1}])
    answers: list[set[str]] = []
    thread = threading.Thread(target=lambda: answers.append(invoke(sqs_event())))
    thread.start()
    thread.join(60)
    assert (answers, values(bag)) == ([set()], [2])


def test_a_failed_attempt_is_sent_again_with_its_pause(aws: Manager) -> None:
    bag = submit(aws, "fail", [{"x": 3}], retries=1, backoff_s=0.0)
    assert invoke(sqs_event()) == set()
    assert not bag.finished()
    event = sqs_event()
    assert [Message.decode(record["body"].encode()).attempt for record in event["Records"]] == [1]
    assert invoke(event) == set()
    [result] = bag.results()
    assert (result.state, result.attempt) == (State.FAILED, 2)


def test_what_there_is_no_time_for_is_given_to_another_invocation(aws: Manager, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rows = [{"x": x, "path": str(gate)} for x in range(3)]
    bag = submit(aws, "wait_for", rows, per_message=1)
    began_s = time.monotonic()
    failures = invoke(sqs_event(), left_s=12)
    assert time.monotonic() - began_s < 12
    # Copies were sent: what comes again is new to the queue, so that nobody takes it for a killer.
    assert failures == set()
    gate.touch()
    event = sqs_event()
    assert {record["attributes"]["ApproximateReceiveCount"] for record in event["Records"]} == {"1"}
    assert invoke(event) == set()
    # The first one had the whole time of the first function: another would have had no more.
    states = {result.index: result.state for result in bag.results()}
    first = min(int(path.suffix[1:]) for path in tmp_path.glob("gate.*"))
    assert sorted(states) == [0, 1, 2]
    assert [index for index, state in states.items() if state is State.FAILED] in ([], [first])


def test_a_task_that_needs_more_than_the_functions_time_ends(aws: Manager, tmp_path: Path) -> None:
    bag = submit(aws, "wait_for", [{"x": 0, "path": str(tmp_path / "never")}])
    assert invoke(sqs_event(), left_s=14) == set()
    [result] = bag.results()
    assert result.error is not None
    assert (result.state, result.error.reason) == (State.FAILED, "timeout")
    assert aws.queue.depth() == (0, 0, 0)


def test_too_little_time_is_said(aws: Manager) -> None:
    submit(aws, "double", [{"x": 1}])
    with pytest.raises(UsageError, match=r"only \d\.\d s left; set its timeout"):
        mtask_aws.lambda_handler(sqs_event(), Context(3))


def test_a_killed_function_costs_a_delivery(aws: Manager, tmp_path: Path) -> None:
    """Lambda hands it on with a higher count, and what has a row isn't run again."""
    log = tmp_path / "log"
    bag = submit(aws, "log", [{"x": x, "path": str(log)} for x in range(3)], per_message=3)
    event = sqs_event()
    mtask_aws.lambda_handler(event, Context())  # and its answer is lost
    assert bag.finished()
    for record in event["Records"]:
        record["attributes"]["ApproximateReceiveCount"] = "2"
    assert invoke(event) == set()
    assert log.read_text() == "0\n1\n2\n"
    assert aws.queue.depth() == (0, 0, 0)


def test_a_message_of_a_newer_mtask_is_sent_again_as_it_came(
    aws: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that can read it. It isn't named in the answer: SQS would count that as a delivery, and the task end as lost."""
    monkeypatch.setattr("mtask.worker.inspection.NEWER_S", 1.0)
    bag = submit(aws, "double", [{"x": x} for x in range(3)], per_message=1)
    event = sqs_event()
    newer = event["Records"][1]
    index = Message.decode(newer["body"].encode()).first
    newer["body"] = json.dumps(json.loads(newer["body"]) | {"v": 99})
    assert invoke(event) == set()
    assert sorted(values(bag)) == sorted({0, 2, 4} - {2 * index})
    wait_until(lambda: aws.queue.depth().ready == 1, timeout_s=20)
    (copy,) = aws.queue.receive(max_messages=9, lease_s=60, wait_s=5)
    assert (copy.body, copy.deliveries) == (newer["body"].encode(), 1)


def test_a_foreign_message_is_set_aside(aws: Manager) -> None:
    bag = submit(aws, "double", [{"x": 1}])
    sqs = boto3.client("sqs", region_name=REGION)
    sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName="reads")["QueueUrl"], MessageBody='{"order": 7}')
    event = sqs_event()
    assert len(event["Records"]) == 2
    assert invoke(event) == set()
    assert values(bag) == [2]
    assert [dead.body for dead in aws.table.dead()] == [b'{"order": 7}']


def test_a_table_that_is_away_gives_everything_back(aws: Manager) -> None:
    submit(aws, "double", [{"x": 1}])
    boto3.client("dynamodb", region_name=REGION).delete_table(TableName="reads")
    event = sqs_event()
    try:
        answer = mtask_aws.lambda_handler(event, Context(12))
    except MtaskError:
        return  # nothing of it was dealt with: Lambda gives all of it to another
    failures = {each["itemIdentifier"] for each in answer["batchItemFailures"]}
    assert failures == {record["messageId"] for record in event["Records"]}


def test_the_event_of_another_queue_is_refused(aws: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(aws, "double", [{"x": 1}])
    event = sqs_event()
    monkeypatch.setenv("MTASK_QUEUE", f"sqs://{REGION}/others")
    with pytest.raises(UsageError, match="the messages are from sqs://us-west-2/reads"):
        mtask_aws.lambda_handler(event, Context())


def test_without_a_setting_the_queue_is_that_of_the_event(
    aws: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MTASK_QUEUE")
    bag = submit(aws, "double", [{"x": 4}])
    assert invoke(sqs_event()) == set()
    assert values(bag) == [8]


def test_a_fifo_queue(aws: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = f"sqs://{REGION}/ordered?fifo=1"
    list(make(queue, TABLE))
    monkeypatch.setenv("MTASK_QUEUE", queue)
    monkeypatch.setenv("MTASK_TABLE", TABLE)
    with connect(queue, TABLE) as manager:
        bag = submit(manager, "double", [{"x": x} for x in range(6)], per_message=3)
        assert invoke(sqs_event(queue="ordered.fifo")) == set()
        assert values(bag) == [0, 2, 4, 6, 8, 10]
    serverless._manager(queue, TABLE).close()


@pytest.mark.parametrize("slots", ["0", "two", pytest.param("9" * 5000, id="too large")])
def test_wrong_settings_are_said(aws: Manager, monkeypatch: pytest.MonkeyPatch, slots: str) -> None:
    submit(aws, "double", [{"x": 1}])
    monkeypatch.setenv("MTASK_SLOTS", slots)
    with pytest.raises(UsageError, match="MTASK_SLOTS must be a number"):
        mtask_aws.lambda_handler(sqs_event(), Context())


# -- objects ----------------------------------------------------------------------------------------

BUCKET = "inbox-of-tasks"


@pytest.fixture
def put(aws: Manager, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], dict[str, Any]]:
    """Puts an object; returns the event that S3 makes of it. The format: Amazon S3 User Guide."""
    monkeypatch.setenv("MTASK_SUBMIT", json.dumps({"call": "lambda_tasks:double", "retries": 2}))
    s3 = boto3.client("s3", region_name=REGION)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def do(key: str, content: str) -> dict[str, Any]:
        etag = s3.put_object(Bucket=BUCKET, Key=key, Body=content.encode())["ETag"].strip('"')
        record = {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": REGION,
            "eventTime": "2026-01-01T00:00:00.000Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "AWS:AIDAINPONIXQXHT3IKHL2"},
            "requestParameters": {"sourceIPAddress": "205.255.255.255"},
            "responseElements": {"x-amz-request-id": "D82B88E5F771F645", "x-amz-id-2": "vlR7PnpV2Ce81l0P"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "828aa6fc-f7b5-4305-8584-487c791949c1",
                "bucket": {
                    "name": BUCKET,
                    "ownerIdentity": {"principalId": "A3I5XTEXAMAI3E"},
                    "arn": f"arn:aws:s3:::{BUCKET}",
                },
                "object": {
                    "key": quote_plus(key, safe="/"),
                    "size": len(content),
                    "eTag": etag,
                    "sequencer": "0C0F6F405D6ED209E1",
                },
            },
        }
        return {"Records": [record]}

    return do


def names(manager: Manager) -> list[str]:
    return [bag.name for bag in manager.bags()]


def test_an_object_becomes_a_bag(aws: Manager, put: Callable[[str, str], dict[str, Any]]) -> None:
    answer = mtask_aws.submit_handler(put("tasks/june reads+é.csv", "x\n1\n2\n"), Context())
    name = "tasks-june-reads-é"
    assert answer == {
        "submitted": [{"object": f"s3://{BUCKET}/tasks/june reads+é.csv", "bag": name, "tasks": 2}]
    }
    assert aws.bag(name).info.spec.retries == 2
    assert aws.bag(name).info.source.startswith(f"s3://{BUCKET}/tasks/june reads+é.csv")
    assert invoke(sqs_event()) == set()
    assert values(aws.bag(name)) == [2, 4]


def test_the_same_event_twice_makes_one_bag(aws: Manager, put: Callable[[str, str], dict[str, Any]]) -> None:
    event = put("a.jsonl", '{"x": 1}\n{"x": 2}\n')
    first = mtask_aws.submit_handler(event, Context())
    assert mtask_aws.submit_handler(event, Context()) == first
    assert names(aws) == ["a"]
    assert sum(Message.decode(r["body"].encode()).count for r in sqs_event()["Records"]) == 2


def test_another_content_of_the_same_key_is_another_bag(
    aws: Manager, put: Callable[[str, str], dict[str, Any]]
) -> None:
    first = put("a.csv", "x\n1\n")
    mtask_aws.submit_handler(first, Context())
    second = put("a.csv", "x\n5\n6\n")
    for _ in range(2):
        mtask_aws.submit_handler(second, Context())
        # The first one's event, delivered late: that content isn't there any more.
        [late] = mtask_aws.submit_handler(first, Context())["submitted"]
        assert (late["bag"], "replaced" in late["why"]) == (None, True)
    assert names(aws) == ["a", f"a-{second['Records'][0]['s3']['object']['eTag'][:8]}"]


def test_a_cancelled_bag_is_not_submitted_again_by_a_late_event(
    aws: Manager, put: Callable[[str, str], dict[str, Any]]
) -> None:
    event = put("a.csv", "x\n1\n")
    mtask_aws.submit_handler(event, Context())
    aws.bag("a").cancel()
    [answer] = mtask_aws.submit_handler(event, Context())["submitted"]
    assert "was cancelled" in answer["why"]
    assert names(aws) == ["a"]


def test_what_is_gone_or_was_not_created_is_left_out(
    aws: Manager, put: Callable[[str, str], dict[str, Any]]
) -> None:
    event = put("a.csv", "x\n1\n")
    boto3.client("s3", region_name=REGION).delete_object(Bucket=BUCKET, Key="a.csv")
    [answer] = mtask_aws.submit_handler(event, Context())["submitted"]
    assert "gone" in answer["why"]
    event["Records"][0]["eventName"] = "ObjectRemoved:Delete"
    assert mtask_aws.submit_handler(event, Context()) == {"submitted": []}
    test_event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET}
    assert mtask_aws.submit_handler(test_event, Context()) == {"submitted": []}
    assert names(aws) == []


def test_a_wrong_line_is_said_and_the_other_objects_are_submitted(
    aws: Manager, put: Callable[[str, str], dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    both = {"Records": put("bad.csv", "x\n1\ntwo\n")["Records"] + put("good.csv", "x\n1\n")["Records"]}
    with pytest.raises(UsageError, match="line 3, column 'x'"):
        mtask_aws.submit_handler(both, Context())
    assert names(aws) == ["good"]
    assert f"mtask: s3://{BUCKET}/bad.csv: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must say what to run"),
        ("[1]", "must say what to run"),
        ("{}", "needs one of call, run and shell"),
        ('{"call": "a:b", "run": "x"}', "needs one of call, run and shell"),
        ('{"call": "a:b", "bag": "june"}', "leave out 'bag'"),
    ],
)
def test_what_to_run_is_never_said_by_the_object(
    put: Callable[[str, str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setenv("MTASK_SUBMIT", text)
    with pytest.raises(UsageError, match=problem):
        mtask_aws.submit_handler(put("a.csv", "command\nrm -rf /\n"), Context())


@given(st.text(min_size=1, max_size=300), st.text("0123456789abcdef-", min_size=8, max_size=40))
def test_every_key_makes_names_that_bags_can_have(key: str, etag: str) -> None:
    listed = serverless.Listed(region=REGION, bucket=BUCKET, key=key, etag=etag, version="")
    check_name(listed.bag)
    check_name(listed.other_bag)


# -- time -------------------------------------------------------------------------------------------


@given(st.floats(LEAST_S, 900))
def test_the_time_is_shared_out(left_s: float) -> None:
    options = options_within(left_s, "its timeout")
    assert options.max_runtime_s is not None
    assert options.max_runtime_s > left_s / 4
    assert options.max_runtime_s + options.grace_s <= left_s - MARGIN_S[0] + 1e-6
    assert options.timeout_s is not None
    assert 0 < options.timeout_s < options.max_runtime_s + options.grace_s

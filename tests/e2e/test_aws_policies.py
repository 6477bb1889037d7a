"""The smallest policies: every action that mtask calls at AWS is in them, and no other."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3")
import boto3

from mtask.manager import Manager, connect
from mtask.registry import make
from mtask.worker.supervisor import Options, Worker
from mtask_aws import SqsQueue
from mtask_aws.policies import GRANTS, policy, resources

REGION, ACCOUNT = "us-west-2", "123456789012"
QUEUE, TABLE = f"sqs://{REGION}/reads", f"dynamodb://{REGION}/reads"
PLACE = {
    "partition": "aws",
    "region": REGION,
    "account": ACCOUNT,
    "queue": "reads",
    "table": "reads",
    "bucket": f"reads-{ACCOUNT}-{REGION}",
}
PERMISSIONS = {
    "s3:GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "s3:GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "sqs:SendMessageBatch": "sqs:SendMessage",
}
"""Of operations whose permission has another name. Source: AWS Service Authorization Reference."""


class Calls:
    """(permission, ARN) of each request that boto3's clients make."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.made: set[tuple[str, str]] = set()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        true = boto3.session.Session.client

        def client(session: Any, *args: Any, **kwargs: Any) -> Any:
            made = true(session, *args, **kwargs)
            made.meta.events.register("before-parameter-build.*.*", self._saw)
            return made

        patch.setattr(boto3.session.Session, "client", client)

    def _saw(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        service = model.service_model.endpoint_prefix
        operation = f"{'sqs' if service == 'queue' else service}:{model.name}"
        if service == "sts":  # needs no permission
            return
        if service == "s3":
            target = f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")
        elif service == "dynamodb":
            [name] = params.get("RequestItems") or [params["TableName"]]
            target = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"
        else:
            name = params.get("QueueName") or params["QueueUrl"].rpartition("/")[2]
            target = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
        with self._lock:
            self.made.add((PERMISSIONS.get(operation, operation), target))

    def kinds(self, role: str) -> dict[str, set[str]]:
        """The permissions by kind of resource, as in GRANTS; `dead` is one of the queues where the role has it so."""
        found: dict[str, set[str]] = {}
        for permission, target in self.made:
            allowed = [
                kind
                for kind, actions in GRANTS[role].items()
                if permission in actions and within(kind, target)
            ]
            assert allowed, f"{permission} on {target} is not in the policy of a {role}"
            for kind in allowed:
                found.setdefault(kind, set()).add(permission)
        return found


def within(kind: str, target: str) -> bool:
    return any(re.fullmatch(re.escape(arn).replace(r"\*", ".*"), target) for arn in resources(kind, **PLACE))


@pytest.fixture
def calls(moto: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    for name in ("MTASK_QUEUE", "MTASK_TABLE"):
        monkeypatch.delenv(name, raising=False)
    made = Calls()
    made.watch(monkeypatch)
    return made


@pytest.fixture
def place(calls: Calls) -> Iterator[Callable[[], Manager]]:
    """Opens queue and table anew, which were made without being watched."""
    list(make(QUEUE, TABLE))
    sqs().send_message(QueueUrl=sqs().get_queue_url(QueueName="reads-dead")["QueueUrl"], MessageBody="dead")
    calls.made.clear()
    opened: list[Manager] = []

    def do() -> Manager:
        opened.append(connect(QUEUE, TABLE))
        return opened[-1]

    yield do
    for manager in opened:
        manager.close()


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    path = tmp_path / "policy_tasks.py"
    path.write_text(
        "def length(text: str) -> int:\n    return len(text)\n"
        "def double(x: int) -> int:\n    return 2 * x\n"
        "def sleep(x: float) -> None:\n    import time\n    time.sleep(x)\n"
        "def fail(x: int) -> None:\n    raise ValueError(x)\n"
    )
    return str(path)


def sqs() -> Any:
    return boto3.client("sqs", region_name=REGION)


def granted(role: str) -> dict[str, set[str]]:
    return {kind: set(actions) for kind, actions in GRANTS[role].items()}


def test_setup(calls: Calls) -> None:
    list(make(QUEUE, TABLE))
    url = sqs().get_queue_url(QueueName="reads")["QueueUrl"]
    sqs().set_queue_attributes(QueueUrl=url, Attributes={"MessageRetentionPeriod": "3600"})
    list(make(QUEUE, TABLE))
    assert calls.kinds("setup") == granted("setup")


def test_manager(calls: Calls, place: Callable[[], Manager], tasks: str) -> None:
    with place() as manager:
        manager.submit([{"text": random_text(900_000)}], call=f"{tasks}:length", bag="huge")
        rows = [{"x": x} for x in range(12)]
        bag = manager.submit(rows, call=f"{tasks}:fail", bag="small", priority="high", retries=1, backoff_s=0)
        calls_of_worker(calls, manager, lambda: run_all(manager, "huge", "small"))
        list(bag.results()), list(bag.attempts()), list(bag.tasks()), bag.counts(), manager.table.workers()
        assert bag.retry() == 12
        bag.repair()
        list(manager.bag("huge").tasks())
        list(manager.table.dead()), list(manager.queue.main.dead())  # type: ignore[attr-defined]
        bag.cancel()
    assert calls.kinds("manager") == granted("manager")


def test_worker(calls: Calls, place: Callable[[], Manager], tasks: str) -> None:
    with place() as manager:
        manager.submit([{"x": 7}], call=f"{tasks}:fail", bag="fails", retries=1, backoff_s=0)
        # As if a worker had died with it: the next one looks whether it has a row.
        assert manager.queue.receive(max_messages=1, lease_s=0, wait_s=5)
        manager.submit([{"x": x} for x in range(200)], call=f"{tasks}:double", bag="quick", per_message=200)
        manager.submit([{"x": 2.5}], call=f"{tasks}:sleep", bag="slow")
        # Nobody can read it, and it is too big for an item.
        url = sqs().get_queue_url(QueueName="reads")["QueueUrl"]
        sqs().send_message(QueueUrl=url, MessageBody=random_text(800_000))
        rows = [{"text": random_text(1_200_000)}]  # too big for a message
        manager.submit(rows, call=f"{tasks}:length", bag="huge")
        manager.submit([{"x": x} for x in range(20)], run="echo {x}", bag="lane", priority="high")
    calls.made.clear()
    with place() as manager:
        run_all(manager, "fails", "quick", "slow", "huge", "lane")
        # What a worker does once an hour with lanes of last week.
        seconds = iter(range(0, 10**6, 100))
        queue = SqsQueue.open(QUEUE, clock=lambda: float(next(seconds)))
        lane = queue.lane("0123456789abcdef")
        while not lane.remove():  # its clock goes on by itself
            pass
        for each, _ in manager.table.lanes():
            assert manager.table.remove_lane(each.name)
        lane.close()
        queue.close()
    assert calls.kinds("worker") == granted("worker")


def random_text(size: int) -> str:
    """That no compression makes smaller than what fits into an item."""
    import random

    return "".join(
        random.Random(1).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", k=size)
    )


def run_all(manager: Manager, *bags: str) -> None:
    worker = Worker(manager.queue, manager.table, Options(slots=2, lease_s=4.0), say=print)
    worker.run(until=lambda: all(manager.bag(name).finished() for name in bags))


def calls_of_worker(calls: Calls, manager: Manager, run: Callable[[], None]) -> None:
    """What the worker calls isn't the manager's."""
    before = set(calls.made)
    run()
    calls.made = before


@pytest.mark.parametrize("role", GRANTS)
def test_policies_are_sorted_and_short(role: str) -> None:
    import json

    document = policy(role, **PLACE)
    for statement in document["Statement"]:
        assert statement["Action"] == sorted(set(statement["Action"]))
        assert all(arn.startswith("arn:aws:") and "reads" in arn for arn in statement["Resource"])
    # A managed policy has at most 6,144 characters, blanks not counted (IAM User Guide, quotas).
    assert len(re.sub(r"\s", "", json.dumps(document))) < 6144

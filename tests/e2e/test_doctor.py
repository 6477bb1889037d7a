"""`mtask doctor`: what is missing, wrong or not allowed; at AWS against a moto server that enforces policies."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3")
import boto3

import mtask
from mtask.doctor import CLOCK_S, clock_finding, examine
from mtask.heartbeat import WorkerStatus
from mtask.manager import connect
from mtask.model import DeadMessage
from mtask.registry import diagnose, make
from mtask.settings import Urls
from mtask_aws.policies import GRANTS, policy

REGION, ACCOUNT = "us-west-2", "123456789012"
URLS = Urls(f"sqs://{REGION}/reads", f"dynamodb://{REGION}/reads")
PLACE = {
    "partition": "aws",
    "region": REGION,
    "account": ACCOUNT,
    "queue": "reads",
    "table": "reads",
    "bucket": f"reads-{ACCOUNT}-{REGION}",
}
BATCHES = ("SendMessage", "DeleteMessage", "ChangeMessageVisibility")


# -- anywhere ---------------------------------------------------------------------------------------


def test_nothing_was_submitted_here(command):
    code, out, _ = command("doctor")
    assert code == 1
    assert re.search(r"^problem  file: .*/\.mtask/mtask\.db isn't there$", out, re.MULTILINE)
    assert out.endswith("1 problem\n")
    assert not (command.folder / ".mtask").exists()


def test_all_is_well(command):
    command.write("t.csv", "x\n1\n")
    command("submit", "t.csv", "--run", "echo {x}")
    code, out, _ = command("doctor")
    assert (code, out.splitlines()[-1]) == (0, "no problem found")
    assert re.search(r"^ok       queue: .* 1 ready, 0 leased, 0 delayed messages$", out, re.MULTILINE)
    assert re.search(r"^ok       table: .* 1 bags$", out, re.MULTILINE)
    assert re.search(
        r"^\?        workers: 0 alive\n +→ nothing is run until `mtask worker`", out, re.MULTILINE
    )


def test_as_json(command):
    command("init", "sqlite:///t.db")
    code, out, _ = command("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found[1] == {"what": "mtask", "ok": True, "text": mtask.__version__, "todo": "", "stops": False}
    assert {each["what"] for each in found} == {"python", "mtask", "queue", "table", "workers"}


def status(name: str, version: str, **fields: Any) -> WorkerStatus:
    return WorkerStatus(worker=name, host="h", pid=1, slots=1, version=version, **fields)


def test_workers_and_dead_messages(command):
    command("init", "sqlite:///t.db")
    with connect() as manager:
        manager.table.beat(status("a", mtask.__version__))
        manager.table.beat(status("b", "0.0.9"))
        manager.table.beat(status("c", "0.0.8", state="stopped"))
        manager.table.beat(status("d", "0.0.7", interval_s=0.0))
        manager.table.set_aside([DeadMessage(body=b"hello", reason="not a message")])
    code, out, _ = command("doctor")
    assert code == 1
    assert "ok       workers: 2 alive, 1 of the last day fell silent\n" in out
    assert (
        f"problem  versions: this is mtask {mtask.__version__}, workers have 0.0.9, {mtask.__version__}\n"
        in out
    )
    assert "problem  dead messages: 1 that nobody could read" in out
    assert out.endswith("2 problems\n")


def test_a_backend_that_is_not_there(command):
    code, out, _ = command("doctor", "--queue", "redis://host", "--table", "sqlite:///t.db")
    assert code == 1
    assert "problem  place: 'redis://host': unknown scheme 'redis'" in out


def test_wrong_settings_are_an_error_of_usage(command):
    command.write("mtask.toml", 'queu = "sqlite:///t.db"')
    code, _, err = command("doctor")
    assert (code, "did you mean 'queue'?" in err) == (2, True)


def test_a_file_that_is_no_database(command):
    command.write("t.db", "hello " * 1000)
    code, out, _ = command("doctor", "--queue", "sqlite:///t.db")
    assert code == 1
    assert "problem  queue: " in out
    assert "it is not an SQLite database" in out


@pytest.mark.parametrize(
    ("ahead_s", "ok", "text"),
    [(0.4, True, "as AWS"), (-12, True, "12 s behind AWS"), (CLOCK_S + 1, False, "31 s ahead of AWS")],
)
def test_clock(ahead_s, ok, text):
    finding = clock_finding(ahead_s, "AWS")
    assert (finding.ok, finding.text, bool(finding.todo)) == (ok, text, not ok)


# -- at AWS -----------------------------------------------------------------------------------------


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("MTASK_QUEUE", "MTASK_TABLE"):
        monkeypatch.delenv(name, raising=False)
    list(make(*URLS))
    return moto


@pytest.fixture
def allow(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], None]]:
    """From now on, be a user with this policy and no other right."""

    def enforce_after(requests: str) -> None:
        request = urllib.request.Request(
            f"{aws}/moto-api/reset-auth", data=requests.encode(), headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    key: dict[str, Any] = {}
    root = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}

    def do(document: dict[str, Any]) -> None:
        enforce_after("inf")
        for name, value in root.items():
            monkeypatch.setenv(name, value)
        iam = boto3.client("iam", region_name=REGION)
        if not key:
            iam.create_user(UserName="ann")
            key.update(iam.create_access_key(UserName="ann")["AccessKey"])
        iam.put_user_policy(UserName="ann", PolicyName="p", PolicyDocument=json.dumps(for_moto(document)))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        enforce_after("0")

    yield do
    enforce_after("inf")


def for_moto(document: dict[str, Any]) -> dict[str, Any]:
    """The same in moto's terms: it asks for batches by their own names, and knows the resources of SQS alone."""
    statements = []
    for statement in document["Statement"]:
        actions = list(statement["Action"])
        actions += [f"sqs:{name}Batch" for name in BATCHES if f"sqs:{name}" in actions]
        there = statement["Resource"] if actions[0].startswith("sqs:") else "*"
        statements.append(statement | {"Action": actions, "Resource": there})
        named = [action for action in actions if action in ("sqs:CreateQueue", "sqs:GetQueueUrl")]
        if named:  # these are about a name, which it doesn't look at
            statements.append({"Effect": "Allow", "Action": named, "Resource": "*"})
    return document | {"Statement": statements}


def without(role: str, kind: str, action: str) -> dict[str, Any]:
    document = policy(role, **PLACE)
    for statement in document["Statement"]:
        if statement["Sid"] == kind.capitalize():
            statement["Action"] = [each for each in statement["Action"] if each != action]
    document["Statement"] = [each for each in document["Statement"] if each["Action"]]
    return document


def problems(*roles: str) -> dict[str, str]:
    return {finding.what: finding.text for finding in examine(URLS, roles) if finding.ok is False}


def test_before_and_after_init(moto, command):
    queue = URLS.queue
    code, out, _ = command("doctor", "--queue", queue)
    assert code == 1
    assert "problem  queue: there is no queue 'reads' in us-west-2\n         → `mtask init` makes it" in out
    assert "problem  table: there is no table 'reads' in us-west-2" in out
    command("init", queue)
    code, out, _ = command("doctor")
    assert (code, out.splitlines()[-1]) == (0, "no problem found"), out
    assert "ok       credentials: arn:aws:sts::123456789012:user/moto (by env)" in out
    assert "ok       clock: as AWS" in out
    assert "ok       dead-letter queue: reads-dead, after 1000 receipts" in out
    sqs = boto3.client("sqs", region_name=REGION)
    urls = sqs.list_queues()["QueueUrls"]
    assert sorted(url.rpartition("/")[2] for url in urls) == ["reads", "reads-dead"], "it has cleaned up"
    with connect() as manager:
        assert manager.queue.depth() == (0, 0, 0)
        assert manager.bags() == []


def test_a_look_changes_no_message(aws):
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.get_queue_url(QueueName="reads")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    assert problems("manager", "worker") == {}
    [message] = sqs.receive_message(QueueUrl=url, MessageSystemAttributeNames=["All"])["Messages"]
    assert (message["Body"], message["Attributes"]["ApproximateReceiveCount"]) == ("{}", "1")


@pytest.mark.parametrize("roles", [["manager"], ["worker"], ["manager", "worker"]])
def test_a_fifo_queue(aws, roles):
    urls = Urls(f"{URLS.queue}?fifo=1", URLS.table)
    list(make(*urls))
    assert [each for each in examine(urls, roles) if each.ok is False] == []
    with connect(*urls) as manager:
        assert manager.queue.depth() == (0, 0, 0)
    names = [
        url.rpartition("/")[2] for url in boto3.client("sqs", region_name=REGION).list_queues()["QueueUrls"]
    ]
    assert sorted(names) == ["reads", "reads-dead", "reads-dead.fifo", "reads.fifo"]


@pytest.mark.parametrize("role", ["manager", "worker"])
def test_the_smallest_policy_is_enough_for_the_doctor(allow, role):
    allow(policy(role, **PLACE))
    assert problems(role) == {}


@pytest.mark.parametrize(
    ("role", "kind"), [(role, kind) for role in ("manager", "worker") for kind in GRANTS[role]]
)
def test_each_missing_permission_is_named(allow, role, kind):
    for action in GRANTS[role][kind]:
        allow(without(role, kind, action))
        denied = {each.what: each.text for each in diagnose(*URLS, [role]) if each.ok is False}
        assert set(denied) == {action}, denied
        assert denied[action].startswith("denied on reads")


def test_lanes_may_be_forgotten_by_a_policy(allow):
    document = policy("worker", **PLACE)
    for statement in document["Statement"]:
        statement["Resource"] = [each for each in statement["Resource"] if not each.endswith("-*")]
    allow(document)
    found = list(examine(URLS, ["worker"]))
    denied = {each.what: each for each in found if each.ok is False}
    assert "sqs:SendMessage" in denied
    assert denied["sqs:SendMessage"].text.startswith("denied on reads-*, where tasks with priorities")
    assert "remove the queue reads-doctor" in denied["sqs:DeleteQueue"].todo


def test_settings_of_the_queue(aws):
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.get_queue_url(QueueName="reads")["QueueUrl"]
    attributes = {"MessageRetentionPeriod": "86400", "MaximumMessageSize": "65536", "RedrivePolicy": ""}
    sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes)
    found = problems("manager", "worker")
    assert found["retention"] == "messages are lost after 1 days"
    assert found["message size"] == "at most 65,536 bytes"
    assert found["dead-letter queue"] == "none is set"
    list(make(*URLS))
    assert problems("manager", "worker") == {}


def test_a_dead_letter_queue_that_is_gone(aws):
    sqs = boto3.client("sqs", region_name=REGION)
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName="reads-dead")["QueueUrl"])
    assert problems("worker") == {"dead-letter queue": "reads-dead isn't there, though the queue names it"}


def test_a_bucket_that_is_gone(aws):
    s3 = boto3.client("s3", region_name=REGION)
    s3.delete_bucket(Bucket=PLACE["bucket"])
    assert problems("worker") == {
        "bucket": f"there is no bucket {PLACE['bucket']!r}, for what is too big for the table"
    }


def test_somebody_elses_table(aws):
    dynamodb = boto3.client("dynamodb", region_name=REGION)
    dynamodb.delete_table(TableName="reads")
    key = [{"AttributeName": "id", "KeyType": "HASH"}]
    types = [{"AttributeName": "id", "AttributeType": "S"}]
    dynamodb.create_table(
        TableName="reads", KeySchema=key, AttributeDefinitions=types, BillingMode="PAY_PER_REQUEST"
    )
    assert "has other keys than mtask's" in problems("worker")["table"]


def test_no_credentials(aws, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = list(examine(URLS))
    assert [each.what for each in found if not each.ok] == ["credentials"]
    assert "run `aws configure`" in found[-1].text


def test_a_region_that_is_not_there(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    found = list(examine(Urls("sqs://us-wets-2/reads", "dynamodb://us-wets-2/reads")))
    assert [each.what for each in found if not each.ok] == ["region"]
    assert "did you mean 'us-west-2'?" in found[-1].text


def test_a_clock_that_is_wrong(aws, monkeypatch):
    import time

    from mtask_aws import doctor

    class Clock:
        @staticmethod
        def time() -> float:
            return time.time() + 120

    monkeypatch.setattr(doctor, "time", Clock)
    text = problems("worker")["clock"]
    assert re.fullmatch(r"1(19|20) s ahead of AWS", text)


def test_out_of_reach(command, monkeypatch, moto, tmp_path: Path):
    from tests.servers.process import free_port

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    code, out, _ = command("doctor", "--queue", URLS.queue)
    assert code == 1
    assert "problem  credentials: sqs://us-west-2/reads is out of reach" in out

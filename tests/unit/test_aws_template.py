"""The CloudFormation template and the policies of the page about AWS: accepted, and the same as in the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3")
from mtask_aws.bucket import bucket_name
from mtask_aws.policies import GRANTS, policy
from mtask_aws.requests import BATCH_BYTES
from mtask_aws.setup_queue import RECEIPTS, RETENTION_S
from mtask_aws.setup_table import PRIVATE, TTL, lifecycle
from mtask_aws.table import ATTRIBUTES, KEY_SCHEMA

DOCS = Path(__file__).parents[2] / "docs/backends"
TEMPLATE = DOCS / "aws.yaml"
DEFAULTS = {"AWS::Partition": "aws", "AWS::Region": "us-west-2", "AWS::AccountId": "123456789012"}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    decode = pytest.importorskip("cfnlint.decode")
    loaded, problems = decode.decode(str(TEMPLATE))
    assert not problems
    plain: dict[str, Any] = json.loads(json.dumps(loaded))
    return plain


def filled(value: Any, **parameters: str) -> Any:
    """With `Ref` and `Fn::Sub` replaced by values, as far as they are known."""
    known = DEFAULTS | {"Name": "reads", "AWS::URLSuffix": "amazonaws.com"} | parameters
    if isinstance(value, list):
        return [filled(each, **parameters) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([^}]+)\}", lambda found: known[found[1]], value["Fn::Sub"])
    if set(value) == {"Ref"} and value["Ref"] in known:
        return known[value["Ref"]]
    return {key: filled(each, **parameters) for key, each in value.items()}


def properties(template: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = filled(template["Resources"][name]["Properties"])
    return found


def place(**changes: str) -> dict[str, str]:
    made = {
        "partition": "aws",
        "region": "us-west-2",
        "account": "123456789012",
        "queue": "reads",
        "table": "reads",
        "bucket": "reads-123456789012-us-west-2",
    }
    return made | changes


def test_cfn_lint_accepts_it() -> None:
    program = Path(sys.executable).with_name("cfn-lint")
    if not program.exists():
        pytest.skip("cfn-lint is not installed")
    done = subprocess.run([program, TEMPLATE], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_queue_is_as_init_makes_it(template: dict[str, Any]) -> None:
    queue, dead = properties(template, "Queue"), properties(template, "DeadQueue")
    for each in (queue, dead):
        assert (each["MessageRetentionPeriod"], each["MaximumMessageSize"]) == (RETENTION_S, BATCH_BYTES)
    assert (queue["QueueName"], dead["QueueName"]) == ("reads", "reads-dead")
    assert queue["RedrivePolicy"] == {
        "deadLetterTargetArn": {"Fn::GetAtt": ["DeadQueue", "Arn"]},
        "maxReceiveCount": RECEIPTS,
    }


def test_a_message_is_hidden_for_six_times_as_long_as_a_function_may_run(template: dict[str, Any]) -> None:
    longest_s = template["Parameters"]["FunctionSeconds"]["MaxValue"]
    assert properties(template, "Queue")["VisibilityTimeout"] >= 6 * longest_s


def test_the_table_is_as_init_makes_it(template: dict[str, Any]) -> None:
    table = properties(template, "Table")
    assert table["TableName"] == "reads"
    assert table["KeySchema"] == KEY_SCHEMA
    assert table["AttributeDefinitions"] == ATTRIBUTES
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["TimeToLiveSpecification"] == TTL


def test_the_bucket_is_as_init_makes_it(template: dict[str, Any]) -> None:
    bucket = properties(template, "Bucket")
    assert bucket["BucketName"] == bucket_name("reads", "123456789012", "us-west-2")
    assert bucket["PublicAccessBlockConfiguration"] == PRIVATE
    assert bucket["LifecycleConfiguration"]["Rules"] == [
        {
            "Id": rule["ID"],
            "Status": rule["Status"],
            "Prefix": rule["Filter"]["Prefix"],
            "ExpirationInDays": rule["Expiration"]["Days"],
        }
        for rule in lifecycle("reads")
    ]


@pytest.mark.parametrize("name", ["a", "a-b", "m" * 30])
def test_every_allowed_name_makes_the_bucket_that_the_table_looks_for(
    template: dict[str, Any], name: str
) -> None:
    assert re.fullmatch(template["Parameters"]["Name"]["AllowedPattern"], name)
    region = "ap-southeast-1"  # with the longest names that there are
    wanted = filled(
        template["Resources"]["Bucket"]["Properties"]["BucketName"], Name=name, **{"AWS::Region": region}
    )
    assert bucket_name(name, "123456789012", region) == wanted


@pytest.mark.parametrize("name", ["A", "a_b", "-a", "a-", "m" * 31])
def test_other_names_are_refused(template: dict[str, Any], name: str) -> None:
    assert not re.fullmatch(template["Parameters"]["Name"]["AllowedPattern"], name)


@pytest.mark.parametrize(("resource", "role"), [("ManagerPolicy", "manager"), ("WorkerPolicy", "worker")])
def test_policies_of_the_template(template: dict[str, Any], resource: str, role: str) -> None:
    assert properties(template, resource)["PolicyDocument"] == policy(role, **place())


@pytest.mark.parametrize("role", GRANTS)
def test_policies_of_the_page(role: str) -> None:
    text = (DOCS / "aws.md").read_text(encoding="utf-8")
    found = re.search(rf"^<!-- policy: {role} -->\n\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found, f"aws.md has no policy of a {role}"
    shown = json.loads(found[1])
    names = {"region": "REGION", "account": "ACCOUNT", "queue": "NAME", "table": "NAME"}
    assert shown == policy(role, **place(**names, bucket="NAME-ACCOUNT-REGION"))


def test_the_functions_are_those_that_there_are(template: dict[str, Any]) -> None:
    import mtask_aws

    handlers = [
        each["Properties"]["Handler"]
        for each in template["Resources"].values()
        if each["Type"] == "AWS::Lambda::Function"
    ]
    assert sorted(handlers) == ["mtask_aws.lambda_handler", "mtask_aws.submit_handler"]
    assert all(callable(getattr(mtask_aws, each.rpartition(".")[2])) for each in handlers)
    trigger = template["Resources"]["WorkTrigger"]["Properties"]
    assert trigger["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    work, submit = (
        template["Resources"][name]["Properties"]["Environment"]["Variables"]
        for name in ("WorkFunction", "SubmitFunction")
    )
    assert filled(work) == {"MTASK_QUEUE": "sqs://us-west-2/reads"}
    assert filled(submit)["MTASK_QUEUE"] == "sqs://us-west-2/reads"
    assert json.loads(template["Parameters"]["Submit"]["Default"]).keys() == {"call"}

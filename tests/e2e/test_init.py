"""`mtask init`: makes what is missing, leaves what is there, and has the next command find it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from mtask.settings import DEFAULT_URL, find_urls

REGION = "us-west-2"
QUEUE, TABLE = f"sqs://{REGION}/reads", f"dynamodb://{REGION}/reads"
LINES = (
    "dead-letter queue reads-dead in us-west-2",
    "queue reads in us-west-2",
    "DynamoDB table reads",
    "S3 bucket reads-123456789012-us-west-2",
)


def stored(command: Any) -> dict[str, Any]:
    return tomllib.loads(command.read("mtask.toml"))


# -- files ------------------------------------------------------------------------------------------


def test_without_a_url_it_says_what_the_default_is(command):
    code, out, err = command("init")
    assert (code, err) == (0, "")
    assert DEFAULT_URL in out
    assert "mtask init sqs://us-west-2/reads" in out
    assert list(command.folder.iterdir()) == []


def test_a_file_is_made_once_and_used_from_then_on(command):
    code, out, err = command("init", "sqlite:///t.db")
    assert (code, err) == (0, "")
    path = command.folder / "t.db"
    assert out.splitlines() == [
        f"{'made':<10} file {path.name}",
        f"{'made':<10} mtask.toml, which names it for all commands in this folder",
    ]
    assert stored(command) == {"queue": "sqlite:///t.db"}
    assert find_urls().queue == "sqlite:///t.db"
    assert command("init", "sqlite:///t.db").out == f"{'was there':<10} file t.db\n"
    assert command("init").out == f"{'was there':<10} file t.db\n"


def test_queue_and_table_in_two_files(command):
    out = command("init", "sqlite:///q.db", "--table", "sqlite:///t.db").out
    assert [line.split()[0] for line in out.splitlines()] == ["made", "made", "made"]
    assert stored(command) == {"queue": "sqlite:///q.db", "table": "sqlite:///t.db"}
    assert find_urls() == ("sqlite:///q.db", "sqlite:///t.db")


def test_a_url_with_quotes_survives(command):
    command("init", 'sqlite:///a%22b"c.db')
    assert stored(command) == {"queue": 'sqlite:///a%22b"c.db'}
    assert (command.folder / 'a"b"c.db').exists()


def test_settings_that_are_there_are_never_overwritten(command):
    command.write("mtask.toml", 'queue = "sqlite:///mine.db"\n')
    code, out, _ = command("init", "sqlite:///t.db")
    assert code == 0
    assert command.read("mtask.toml") == 'queue = "sqlite:///mine.db"\n'
    assert "not in use yet, because" in out
    assert "mtask.toml names another; change that, or: export MTASK_QUEUE=sqlite:///t.db" in out


def test_the_environment_comes_first(command, monkeypatch):
    monkeypatch.setenv("MTASK_QUEUE", "sqlite:///env.db")
    out = command("init", "sqlite:///t.db").out
    assert "not in use yet, because MTASK_QUEUE is sqlite:///env.db;" in out


def test_no_file(command):
    out = command("init", "sqlite:///t.db", "--no-file").out
    assert not (command.folder / "mtask.toml").exists()
    assert "not in use yet, because there is no mtask.toml" in out


def test_a_folder_that_cannot_be_written(command, monkeypatch):
    (command.folder / "mtask.toml").mkdir()
    code, _, err = command("init", "sqlite:///t.db")
    assert (code, "mtask.toml can't be written" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["tasks.db"], "is not the URL of a queue"),
        (["redis://host"], "unknown scheme 'redis'"),
        (["sqlite:///t.db?lan=x"], "unknown option 'lan'"),
        (["dynamodb://us-west-2/reads"], "is not the URL of a sqs queue"),
    ],
)
def test_wrong_usage_makes_nothing(command, args, problem):
    pytest.importorskip("boto3")
    code, _, err = command("init", *args)
    assert (code, problem in err) == (2, True), err
    assert list(command.folder.iterdir()) == []


# -- AWS --------------------------------------------------------------------------------------------


@pytest.fixture
def aws(moto: str, command: Any) -> str:
    return moto


def test_everything_at_aws_is_made_once(aws, command):
    code, out, err = command("init", QUEUE)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        *(f"{'made':<10} {line}" for line in LINES),
        f"{'made':<10} mtask.toml, which names it for all commands in this folder",
    ]
    assert find_urls() == (QUEUE, TABLE)
    for args in (["init"], ["init", QUEUE]):
        assert command(*args).out.splitlines() == [f"{'was there':<10} {line}" for line in LINES]


def test_what_is_missing_is_made_again(aws, command):
    import boto3

    command("init", QUEUE)
    boto3.client("s3", region_name=REGION).delete_bucket(Bucket="reads-123456789012-us-west-2")
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.get_queue_url(QueueName="reads")["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"MessageRetentionPeriod": "3600"})
    out = command("init").out
    assert [line[:10].strip() for line in out.splitlines()] == ["was there", "changed", "was there", "made"]


def test_from_init_to_results(aws, command):
    command("init", QUEUE)
    command.write("t.csv", "x\n1\n2\n3\n")
    assert command("submit", "t.csv", "--run", "echo {x}").code == 0
    assert command("worker", "-j", "1", "--idle-exit", "1s", "--lease", "4s", "--notices", "off").code == 0
    code, out, _ = command("results", "t")
    assert code == 0
    assert out.count("done") == 3


def test_a_queue_that_is_not_there_says_what_makes_it(aws, command):
    command.write("t.csv", "x\n1\n")
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", "--queue", QUEUE)
    assert (code, "`mtask init`" in err) == (2, True)

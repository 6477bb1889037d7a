from __future__ import annotations

import pytest

from mtask import Result, UsageError
from mtask.model import Failure, Reason
from mtask.where import FIELDS, parse_where

TIMED_OUT = Result.failed(
    "b",
    7,
    Failure(reason=Reason.TIMEOUT, type="timeout", message="ran longer than 5 s"),
    id="s7",
    exit_code=-9,
    attempt=3,
    stdout="nothing",
    stderr="disk_1 is full\nbye",
    host="h",
    worker="w",
    wall_s=5.1,
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('error like "%LONGER%"', True),
        ("error like longer", True),
        ("error not like longer", False),
        ("error like 'longer%'", False),
        ("error like 'timeout: ran ______ than 5 s'", True),
        ("error = 'timeout: ran longer than 5 s'", True),
        ("type = timeout and attempt >= 3", True),
        ("type = timeout and attempt > 3", False),
        ("exit_code != 2", True),
        ("exit_code = -9", True),
        ("exit_code < -9", False),
        ("id=s7 AND index=7", True),
        ("stderr like 'disk.1'", False),
        ("stderr like disk_1%", True),
        ("reason != timeout", False),
        ("type like time___", True),
        ("type like tim_", False),
        ("Type = timeout", True),
        ("index <= 7 and attempt >= 3", True),
        ("index <= 6", False),
        ("attempt < 3", False),
        ("wall_s > 5", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse_where(text)(TIMED_OUT) is holds


def test_every_field_can_be_read() -> None:
    assert {name: field(TIMED_OUT) for name, field in FIELDS.items()} == {
        "attempt": 3,
        "error": "timeout: ran longer than 5 s",
        "exit_code": -9,
        "host": "h",
        "id": "s7",
        "index": 7,
        "message": "ran longer than 5 s",
        "reason": "timeout",
        "state": "failed",
        "stderr": "disk_1 is full\nbye",
        "stdout": "nothing",
        "type": "timeout",
        "wall_s": 5.1,
        "worker": "w",
    }


@pytest.mark.parametrize("text", ["exit_code = ''", "id = ''", "error = ''", "exit_code != 1", "id != x"])
def test_what_a_result_doesnt_have_is_empty(text: str) -> None:
    assert parse_where(text)(Result.done("b", 0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't read the condition ''"),
        ("error", "can't read the condition 'error'"),
        ("error like", "can't read"),
        ("eror = 1", "no field 'eror'; it has attempt, error"),
        ("error = 1 or type = 2", "can't read the condition"),
        ("error = 1 and", "can't read the condition ''"),
    ],
)
def test_what_is_no_condition(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        parse_where(text)


def test_a_number_is_compared_with_a_number() -> None:
    with pytest.raises(UsageError, match="attempt is a number, and 'x' is none"):
        parse_where("attempt = x")(TIMED_OUT)

"""Records that Pegasus can read, whatever is in them."""

from __future__ import annotations

import re

import pytest

from mtask.pipelines.records import Quoted, application_of, date_text, record


def test_fields():
    assert record("cluster-task", name="a", duration=0.13849, status=256, app=Quoted("/bin/x")) == (
        '[cluster-task name=a, duration=0.138, status=256, app="/bin/x"]\n'
    )


def test_nothing_within_ends_a_record_or_a_text():
    said = record("cluster-summary", app=Quoted('a"b]c[d\ne'), failed=0)
    assert said == '[cluster-summary app="a\'b)c(d e", failed=0]\n'


def test_dates_have_milliseconds_and_an_offset():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", date_text(1_700_000_000.0))


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["/bin/x", "-n", "y"], "/bin/x"),
        (["/p/pegasus-kickstart", "-n", "name", "-H", "-Rsite", "/bin/x", "-n"], "/bin/x"),
        (["pegasus-kickstart", "-H"], "pegasus-kickstart"),
    ],
)
def test_the_program_behind_kickstart(argv, program):
    assert application_of(argv) == program

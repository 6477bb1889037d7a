"""Failures grouped, quantiles, and the summary of a run."""

from __future__ import annotations

import pytest

import mtask
from mtask.model import Failure, Reason, Result, State
from mtask.status import group_failures, headline, summarize


def failed(index, message, kind="ValueError", **fields):
    error = Failure(reason=Reason.RAISED, type=kind, message=message)
    return Result.failed("b", index, error, **fields)


class TestGroups:
    def test_errors_that_differ_in_numbers_are_one_group(self):
        results = [failed(3, "line 3 of 10"), failed(5, "line 51 of 10", id="r5"), failed(7, "other")]
        first, second = group_failures(results)
        assert (first.count, first.message, first.index, first.id) == (2, "line 3 of 10", 3, None)
        assert (second.count, second.message) == (1, "other")

    def test_largest_first_then_first_seen(self):
        results = [failed(0, "a"), failed(1, "b"), failed(2, "c"), failed(3, "c")]
        assert [group.message for group in group_failures(results)] == ["c", "a", "b"]

    def test_types_and_states_are_apart(self):
        results = [failed(0, "x"), failed(1, "x", "OSError"), Result.expired("b", 2, "x")]
        assert [(group.state, group.type) for group in group_failures(results)] == [
            (State.FAILED, "ValueError"),
            (State.FAILED, "OSError"),
            (State.EXPIRED, "expired"),
        ]

    def test_only_the_first_are_looked_at(self, monkeypatch):
        monkeypatch.setattr("mtask.status.MOST_FAILURES", 10)
        endless = (failed(n, "x") for n in iter(range(10**9)))
        assert [group.count for group in group_failures(endless)] == [10]


@pytest.mark.parametrize(
    ("kind", "message", "text"),
    [
        ("ValueError", "no 3", "ValueError: no 3"),
        ("KeyError", "", "KeyError"),
        ("exit", "exit status 3", "exit status 3"),
        ("timeout", "", "timeout"),
        ("expired", "too late", "too late"),
    ],
)
def test_headline(kind, message, text):
    assert headline(kind, message) == text


@pytest.fixture
def bag(tmp_path):
    url = f"sqlite:///{tmp_path}/t.db"
    with mtask.connect(url, url) as mt:
        handle = mt.submit([{"x": n} for n in range(100)], run="echo {x}", bag="b")
        mt.table.record([Result.done("b", n, wall_s=n / 10) for n in range(90)])
        mt.table.record([failed(n, "no", wall_s=0.5) for n in range(90, 95)])
        yield handle


def test_summary(bag):
    summary = summarize(bag, wall_s=120.0, ended=60, slots=4)
    assert (summary.total, summary.done, summary.failed, summary.left, summary.ran) == (100, 90, 5, 5, 60)
    assert summary.tasks_per_s == 0.5
    assert summary.p50_s == pytest.approx(4.2, abs=0.1)
    assert summary.p95_s == pytest.approx(8.5, abs=0.1)
    mean_s = (sum(n / 10 for n in range(90)) + 2.5) / 95
    assert summary.efficiency == pytest.approx(mean_s * 60 / (4 * 120), abs=1e-4)
    assert [(group.count, group.message) for group in summary.failures] == [(5, "no")]


def test_summary_of_a_run_in_which_nothing_was_left_to_do(bag):
    summary = summarize(bag, wall_s=0.0, ended=0, slots=4)
    assert (summary.ran, summary.tasks_per_s, summary.efficiency) == (0, 0.0, None)


def test_large_bags_are_sampled(bag, monkeypatch):
    monkeypatch.setattr("mtask.status.SAMPLE", 20)
    summary = summarize(bag, wall_s=1.0, ended=95)
    assert 1 < summary.p50_s < 8
    assert summary.done == 90

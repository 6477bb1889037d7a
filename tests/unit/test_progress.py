"""Durations for people, and the line that says how a bag goes."""

from __future__ import annotations

import pytest

from mtask.errors import UnavailableError
from mtask.manager import connect
from mtask.model import Counts, Failure, Reason, Result
from mtask.progress import Progress, Ticker, duration, eta


class FakeBag:
    name = "b"

    def __init__(self, *counts):
        self._counts = list(counts)

    def counts(self):
        return self._counts[-1]

    def counts_of_late(self):
        counts = self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]
        if isinstance(counts, Exception):
            raise counts
        return counts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.000012, "12 µs"),
        (0.0012, "1.2 ms"),
        (0.05, "50 ms"),
        (0.123, "0.12 s"),
        (2, "2 s"),
        (9.994, "9.99 s"),
        (9.999, "10 s"),
        (45.4, "45 s"),
        (59.7, "1 min 0 s"),
        (723, "12 min 3 s"),
        (3599.6, "1 h 0 min"),
        (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (6.76, "7 s"), (723.4, "12 min 3 s")])
def test_eta_has_no_digits_that_nobody_can_know(seconds, text):
    assert eta(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mtask.progress.time.monotonic", lambda: now[0])
    return now


def test_lines_now_and_then(capsys, clock):
    bag = FakeBag(Counts(total=2000), Counts(total=2000, done=800), Counts(total=2000, done=900, failed=100))
    with Progress(bag, busy=lambda: (2, 4)) as progress:
        progress.update()
        clock[0] += 8
        progress.update()
        assert capsys.readouterr().err == ""
        clock[0] += 2
        progress.update()
    line = "b: 900 done · 100 failed · 1,000 left · 100/s · ETA 10 s · 2/4 slots busy\n"
    assert capsys.readouterr().err == line


def test_the_pace_is_that_of_late(capsys, clock):
    bag = FakeBag(
        Counts(total=90), Counts(total=90, done=60), Counts(total=90, done=60), Counts(total=90, done=63)
    )
    with Progress(bag) as progress:
        for pause_s in (0, 5, 20, 10):
            clock[0] += pause_s
            progress.update()
    assert capsys.readouterr().err.splitlines()[-1] == "b: 63 done · 27 left · 0.3/s · ETA 1 min 30 s"


def test_hidden_progress_counts_only(capsys):
    with Progress(FakeBag(Counts(total=3)), shown=False) as progress:
        assert progress.update() == Counts(total=3)
    assert capsys.readouterr() == ("", "")


def test_say_prints_whole_lines(capsys):
    with Progress(FakeBag(Counts())) as progress:
        progress.say("[red]not markup")
    assert capsys.readouterr().err == "[red]not markup\n"


def test_a_ticker_survives_a_table_that_is_out_of_reach():
    with Progress(FakeBag(UnavailableError("away"), Counts(total=1)), shown=False) as progress:
        ticker = Ticker(progress, every_s=0.001)
        ticker.start()
        ticker.join(0.02)
        assert ticker.is_alive()
        ticker.stop()
        assert not ticker.is_alive()


def test_a_table_that_bills_is_asked_no_more_often_than_it_says(tmp_path, monkeypatch):
    now = [1000.0]
    with connect(f"sqlite:///{tmp_path}/t.db") as mt:
        name = mt.submit([{"x": 1}], run="true {x}").name
        monkeypatch.setattr(mt.table, "poll_s", 2.0, raising=False)
        monkeypatch.setattr("mtask.bag.time.monotonic", lambda: now[0])
        bag = mt.bag(name)
        assert not bag.finished()
        assert bag.counts_of_late().done == 0
        mt.table.record([Result.done(name, 0)])
        now[0] += 1.9
        assert not bag.finished()
        assert bag.counts_of_late().done == 0
        assert bag.counts().done == 1
        now[0] += 0.2
        assert bag.finished()
        assert bag.counts_of_late().done == 1


def test_a_bag_that_is_tried_again_is_not_finished_however_short_ago_it_was(tmp_path, monkeypatch):
    with connect(f"sqlite:///{tmp_path}/t.db") as mt:
        bag = mt.submit([{"x": 1}], run="false {x}")
        monkeypatch.setattr(mt.table, "poll_s", 60.0, raising=False)
        failure = Failure(reason=Reason.EXIT, type="exit", message="1")
        mt.table.record([Result.failed(bag.name, 0, failure)])
        bag = mt.bag(bag.name)
        assert bag.finished()
        assert bag.counts_of_late().failed == 1
        bag.retry()
        assert not bag.finished()


def test_the_bar_ends_with_the_counts_of_the_end(monkeypatch):
    """Where a table is not asked often, those of late still say that something is left."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    shown = []
    bag = FakeBag(Counts(total=2, done=1), Counts(total=2, done=1), Counts(total=2, done=2))
    with Progress(bag) as progress:
        monkeypatch.setattr(progress._bar, "update", lambda *_, **fields: shown.append(fields["completed"]))
        progress.update()
        bag._counts.insert(0, Counts(total=2, done=1))
    assert shown == [1, 2]

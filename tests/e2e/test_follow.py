"""`mtask results -f` and `bag.follow()`."""

from __future__ import annotations

import csv
import json
import random
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import mtask
from mtask import follow
from mtask.testing.samples import a_done, a_failed
from mtask.worker.supervisor import Options, Worker

FUNCTIONS = """
import os
def same(x: int):
    if x == 3 and not os.path.exists("mended"):
        raise ValueError("sick")
    return {"twice": 2 * x}
"""


@pytest.fixture
def mt(command) -> Iterator[mtask.Manager]:
    command.write("m.py", FUNCTIONS)
    sys.path.insert(0, str(command.folder))
    with mtask.connect() as opened:
        yield opened


def submit(mt: mtask.Manager, *numbers: int) -> mtask.BagHandle:
    return mt.submit([{"x": n} for n in numbers], call="m:same", bag="b", open=True, retries=0)


def work(mt: mtask.Manager, bag: mtask.BagHandle) -> None:
    options = Options(max_runtime_s=60)
    Worker(mt.queue, mt.table, options, say=print).run(until=lambda: bag.counts().left == 0)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_are_printed_as_they_come_until_it_is_sealed(command, mt, form: str) -> None:
    bag = submit(mt, 1, 2)
    process = command.start("results", "-f", "b", "--format", form)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    rows: Iterator[dict[str, Any]] = csv.DictReader(lines) if form == "csv" else map(json.loads, lines)
    for numbers in ((1, 2), (3,), (4, 5)):
        submit(mt, *numbers)
        work(mt, bag)
        for number in numbers:  # each is there before the next ones are submitted
            row = next(rows)
            assert (int(row["x"]), row["state"]) == (number, "failed" if number == 3 else "done")
            value = row["value"] if form == "jsonl" else row["value"] and json.loads(row["value"])
            assert (value or None) == (None if number == 3 else {"twice": 2 * number})
    bag.seal()
    assert list(rows) == []
    assert process.wait(30) == 0


def test_ctrl_c_ends_it(command, mt) -> None:
    submit(mt, 1)
    process = command.start("results", "-f", "b")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("index,x,state,value")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_task_that_is_tried_again_comes_again(mt) -> None:
    bag = submit(mt, 2, 3)
    work(mt, bag)
    rows = bag.follow()
    assert [row.state for row in islice(rows, 2)] == ["done", "failed"]
    Path("mended").touch()
    taken, came = threading.Event(), []
    counts = bag.counts

    def told() -> mtask.Counts:
        """So that it looks while the row is out."""
        found = counts()
        if found.failed == 0:
            taken.set()
        return found

    bag.counts = told  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: came.extend(rows))
    thread.start()
    bag.retry()
    assert taken.wait(30)
    bag.seal()
    work(mt, mt.bag("b"))
    thread.join(30)
    assert [(row.index, row.state) for row in came] == [(1, "done")]


@pytest.mark.parametrize("again", ["after", "at once", "failed"])
def test_a_task_that_is_tried_again_comes_again_though_as_many_others_end(
    mt, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = mt.submit([{"x": n} for n in range(4)], call="m:same", bag="b")
    mt.table.record([a_failed(0, bag="b", finished_at=1.0), a_done(1, bag="b")])
    last = [a_done(3, bag="b")]

    def retry() -> None:
        bag.retry()
        mt.table.record([a_done(2, bag="b")])
        if again == "at once":
            mt.table.record([a_done(0, bag="b", finished_at=2.0)])
        elif again == "failed":
            mt.table.record([a_failed(0, bag="b", finished_at=2.0)])
        else:
            last.append(a_done(0, bag="b", finished_at=2.0))

    steps = [retry, lambda: mt.table.record(last)]
    monkeypatch.setattr(follow.time, "sleep", lambda _s: steps and steps.pop(0)())
    ended = [(row.index, row.finished_at) for row in bag.follow() if row.index == 0]
    assert ended == [(0, 1.0), (0, 2.0)]


@pytest.mark.parametrize("few", [5, 1000])
def test_each_comes_once_in_whatever_order_they_end(mt, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "FEW", few)
    monkeypatch.setattr(follow, "PAUSE_S", (0.0, 0.0))
    bag = mt.submit([{"x": n} for n in range(200)], call="m:same", bag="b")
    indexes = list(range(200))
    random.Random(few).shuffle(indexes)
    rows, came = bag.follow(), []
    while indexes:
        some = [indexes.pop() for _ in range(min(len(indexes), 7))]
        mt.table.record([(a_failed(n, bag="b") if n % 3 == 0 else a_done(n, n, bag="b")) for n in some])
        came += [row.index for row in islice(rows, len(some))]
        assert set(came[-len(some) :]) == set(some)
    assert list(rows) == []
    assert [row.index for row in bag.follow(states={mtask.State.FAILED})] == list(range(0, 200, 3))


def test_what_is_refused(command, mt) -> None:
    submit(mt, 1)
    assert "without -o" in command("results", "b", "-f", "-o", "x.csv").err
    assert "--format is for --follow" in command("results", "b", "--format", "csv").err

"""`--then`: one task over all results, when all tasks of a bag are done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtask
from mtask.worker.supervisor import Options, Worker

FUNCTIONS = """
import os

def same(x: int):
    if x == 2 and os.path.exists("sick"):
        raise ValueError("sick")
    return x

def big(x: int):
    return str(x) * 200_000

def total(results):
    return sum(result.value for result in results)

def lengths(results):
    return [(result.index, len(result.value)) for result in results]

def lengths_of_output(results):
    return [len(result.stdout) for result in results]

def bad(results):
    if os.path.exists("sick"):
        raise ValueError("no")
    return "mended"
"""
ROWS = [{"x": x} for x in range(1, 4)]


@pytest.fixture
def mt(command) -> Iterator[mtask.Manager]:
    command.write("m.py", FUNCTIONS)
    command.write("t.csv", "x\n1\n2\n3\n")
    sys.path.insert(0, str(command.folder))
    with mtask.connect() as opened:
        yield opened


def work(mt: mtask.Manager, bag: mtask.BagHandle) -> None:
    Worker(mt.queue, mt.table, Options(max_runtime_s=60), say=print).run(until=bag.finished_all)


def test_run_waits_for_it(command, mt) -> None:
    done = command("run", "t.csv", "--call", "m:same", "--bag", "b", "--then", "m:total", "-j1")
    assert (done.code, "m:total was called: `mtask results b.then`" in done.err) == (0, True), done.err
    assert [result.value for result in mt.bag("b.then").results()] == [6]
    again = command("run", "t.csv", "--call", "m:same", "--bag", "b", "--then", "m:total", "-j1")
    assert again.code == 0
    assert mt.bag("b.then").counts().total == 1


def test_it_fails_as_any_task_and_is_tried_again(command, mt) -> None:
    Path("sick").touch()
    options = ("--run", "echo {x}", "--bag", "b", "--then", "m:bad", "-j1", "--retries", "1")
    failed = command("run", "t.csv", *options)
    assert (failed.code, "m:bad failed: ValueError: no (`mtask retry b.then`" in failed.err) == (1, True)
    assert len(list(mt.bag("b.then").attempts())) == 1
    Path("sick").unlink()
    assert command("retry", "b.then").code == 0
    work(mt, mt.bag("b"))
    assert command("wait", "b").code == 0
    assert [result.value for result in mt.bag("b.then").results()] == ["mended"]


def test_it_takes_no_part_in_the_staging_of_the_tasks(command, mt) -> None:
    command.write("2.txt", "two")
    command.write("one.csv", "x\n2\n")
    staged = ("--in", "text={x}.txt", "--out", "copy=out/{x}.txt")
    options = ("--shell", 'cp "$text" "$copy"', "--bag", "b", "--then", "m:lengths_of_output", "-j1")
    done = command("run", "one.csv", *options, *staged)
    assert done.code == 0, done.err
    assert [result.value for result in mt.bag("b.then").results()] == [[0]]
    assert Path("out/2.txt").read_text() == "two"


def test_it_comes_only_when_all_are_done(command, mt) -> None:
    Path("sick").touch()
    options = ("--call", "m:same", "--bag", "b", "--then", "m:total", "-j1", "--retries", "0")
    failed = command("run", "t.csv", *options)
    assert (failed.code, "was not called: not all tasks are done" in failed.err) == (1, True), failed.err
    with pytest.raises(mtask.BagNotFoundError):
        mt.bag("b.then")
    Path("sick").unlink()
    assert command("run", "t.csv", *options, "--retry-failed").code == 0
    assert [result.value for result in mt.bag("b.then").results()] == [6]


def test_the_results_are_read_in_pages(mt) -> None:
    bag = mt.submit([{"x": x} for x in range(10)], call="m:big", bag="b", then="m:lengths")
    work(mt, bag)
    assert [result.value for result in mt.bag("b.then").results()] == [[[n, 200_000] for n in range(10)]]


def test_a_worker_sends_it_though_nobody_waits(mt) -> None:
    for bag in ("whole", "open"):
        handle = mt.submit(ROWS, call="m:same", bag=bag, then="m:total", open=bag == "open")
        worker = Worker(
            mt.queue, mt.table, Options(max_tasks=3 + (bag == "whole"), max_runtime_s=60), say=print
        )
        worker.run()
        if bag == "open":  # it may have more yet
            with pytest.raises(mtask.BagNotFoundError):
                mt.bag("open.then")
            handle.seal()
            work(mt, handle)
        assert [result.value for result in mt.bag(f"{bag}.then").results()] == [6]


def test_a_function_that_is_not_there_is_refused(command, mt) -> None:
    refused = command("submit", "t.csv", "--call", "m:same", "--then", "m:nothing")
    assert (refused.code, "no function 'nothing'" in refused.err) == (2, True)
    assert command.sent_nothing()

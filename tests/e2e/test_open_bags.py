"""Open bags as people use them: `mtask submit --open`, `mtask seal`, and `mtask.submit` inside a task."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtask
from mtask.model import BagState
from mtask.oneshot import OneShotQueue
from mtask.testing.faults import Faults, FaultyQueue, Rates
from mtask.worker.supervisor import Options, Worker

FUNCTIONS = """
import os, sys, threading, time
import mtask

def same(x):
    return x

def sick(x):
    if not os.path.exists("mended"):
        raise ValueError("sick")
    return x

def parent(x: int):
    mtask.submit([{"x": f"{x}-{n}"} for n in range(3)], call=same, bag="children", retries=2)
    mtask.submit([{"x": f"{x}-other"}], call=same, bag="others")
    if not os.path.exists(f"was-{x}"):
        open(f"was-{x}", "w").close()
        raise ValueError("once more, after it has submitted")
    return [name for name in sys.modules if name.startswith("mtask_")]

def slowly(x: int):
    time.sleep(0.3)
    mtask.submit([{"x": f"{x}-{n}-{time.time()}"} for n in range(3)], call=same, bag="children")

def elsewhere(where: str):
    said = []
    def submit():
        try:
            mtask.submit([{"x": 1}], call=same, bag="children")
        except mtask.UsageError as error:
            said.append(str(error))
    if where == "thread":
        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()
    elif where == "process":
        out, into = os.pipe()
        if not os.fork():
            submit()
            os.write(into, said[0].encode())
            os._exit(0)
        said.append(os.read(out, 1000).decode())
    else:
        mtask.submit([{"x": 2}], call=same, bag="children")
    return said
"""


@pytest.fixture
def mt(command) -> Iterator[mtask.Manager]:
    command.write("m.py", FUNCTIONS)
    sys.path.insert(0, str(command.folder))
    with mtask.connect() as opened:
        yield opened


def work(mt: mtask.Manager, bag: mtask.BagHandle, slots: int = 1) -> None:
    """Until this bag is finished, or all that an open one holds has ended."""
    options = Options(slots=slots, max_runtime_s=60)
    Worker(mt.queue, mt.table, options, say=print).run(until=lambda: bag.counts().left == 0)


def values(bag: mtask.BagHandle) -> Counter[object]:
    return Counter(result.value for result in bag.results())


class TestCommand:
    def test_a_feed(self, command, mt) -> None:
        command.write("1.csv", "id,x\na,1\nb,2\n")
        command.write("2.csv", "id,x\nb,2\nc,3\n")
        options = ("--call", "m:same", "--bag", "feed", "--open", "--key", "id")
        assert "2 tasks added, 2 in all" in command("submit", "1.csv", *options).err
        assert "1 task added, 3 in all" in command("submit", "2.csv", *options).err
        assert "nothing new added, 3 in all; `mtask seal feed`" in command("submit", "1.csv", *options).err
        work(mt, mt.bag("feed"))
        assert not mt.bag("feed").finished()
        assert json.loads(command("status", "feed", "--json").out)["open"] is True
        assert "open" in command("status", "feed").out
        assert command("wait", "feed", "--timeout", "0.1").code == 4
        assert "3 tasks, 0 left" in command("seal", "feed").err
        assert command("wait", "feed").code == 0
        assert values(mt.bag("feed")) == {"1": 1, "2": 1, "3": 1}
        command.write("3.csv", "id,x\nd,4\n")
        late = command("submit", "3.csv", *options)
        assert (late.code, "is sealed" in late.err) == (2, True)

    def test_what_is_refused(self, command, mt) -> None:
        command.write("t.csv", "x\n1\n")
        for options, text in [
            (("--open",), "needs a name"),
            (("--open", "--bag", "b", "--serial", "x"), "can't have --serial"),
            (("--open", "--bag", "b", "--not-before", "2h"), "can't have --not-before"),
        ]:
            refused = command("submit", "t.csv", "--call", "m:same", *options)
            assert (refused.code, text in refused.err) == (2, True), refused.err
        assert command("submit", "t.csv", "--call", "m:same", "--bag", "whole").code == 0
        for refused in (
            command("seal", "whole"),
            command("submit", "t.csv", "--call", "m:same", "--bag", "whole", "--open"),
        ):
            assert (refused.code, "as a whole" in refused.err) == (2, True)
        command("submit", "t.csv", "--call", "m:same", "--bag", "open", "--seal")
        for options, text in [
            (("--call", "m:sick", "--open"), "runs something else"),
            (("--call", "m:same"), "--open"),
        ]:
            refused = command("submit", "t.csv", "--bag", "open", *options)
            assert (refused.code, text in refused.err) == (2, True), refused.err

    def test_several_at_once_one_of_them_killed(self, command, mt) -> None:
        """Each task is there once in the end, at an index of its own."""
        for number in range(4):
            rows = "".join(f"{number}-{n}\n" for n in range(3000))
            command.write(f"{number}.csv", f"x\n{rows}")
        arguments = ("--call", "m:same", "--bag", "b", "--open", "--per-message", "500")
        started = [command.start("submit", f"{number}.csv", *arguments) for number in range(4)]
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            try:
                if mt.bag("b").counts().total > 0:
                    break
            except mtask.BagNotFoundError:
                pass
        started[0].send_signal(signal.SIGKILL)
        for process in started:
            process.wait(60)
        again = command.process("submit", "0.csv", *arguments, "--seal")
        assert again.code == 0, again.err
        tasks = list(mt.bag("b").tasks())
        assert [task.index for task in tasks] == list(range(12_000))
        assert {task.params["x"] for task in tasks} == {f"{a}-{n}" for a in range(4) for n in range(3000)}
        work(mt, mt.bag("b"))
        assert values(mt.bag("b")) == Counter(task.params["x"] for task in tasks)
        assert mt.bag("b").finished()


class TestBag:
    def test_nothing_new_is_nothing(self, mt) -> None:
        with pytest.raises(mtask.UsageError, match="can't begin without a row"):
            mt.submit([], call="m:same", bag="b", open=True)
        mt.submit([{"x": 1}], call="m:same", bag="b", open=True, key="x")
        assert mt.submit([], call="m:same", bag="b", open=True, key="x").counts().total == 1

    def test_retry_and_repair_leave_it_open(self, mt) -> None:
        bag = mt.submit([{"x": 1}, {"x": 2}], call="m:sick", bag="b", open=True, retries=0)
        work(mt, bag)
        assert bag.counts().failed == 2
        Path("mended").touch()
        assert bag.retry() == 2
        work(mt, bag)
        mt.submit([{"x": 3}], call="m:sick", bag="b", open=True, retries=0)
        for delivery in mt.queue.receive(max_messages=9, lease_s=60, wait_s=0):
            mt.queue.delete([delivery])
        assert bag.repair() == 1
        assert bag.info.state is BagState.OPEN
        work(mt, bag)
        assert bag.counts().done == 3
        bag.seal()
        assert bag.finished()

    def test_a_cancelled_one_takes_nothing_until_it_is_taken_up(self, mt) -> None:
        bag = mt.submit([{"x": 1}], call="m:same", bag="b", open=True)
        bag.cancel()
        with pytest.raises(mtask.BagExistsError, match="was cancelled"):
            mt.submit([{"x": 2}], call="m:same", bag="b", open=True)
        bag.retry()
        assert bag.info.state is BagState.OPEN
        mt.submit([{"x": 2}], call="m:same", bag="b", open=True, seal=True)
        work(mt, bag)
        assert values(bag) == {1: 1, 2: 1}

    def test_needs_that_no_first_row_had(self, mt) -> None:
        mt.submit([{"x": 1, "cpus": 1}], call="m:same", bag="b", open=True)
        with pytest.raises(mtask.UsageError, match="submit them to another bag"):
            mt.submit([{"x": 2, "cpus": 2}], call="m:same", bag="b", open=True)


class TestInsideATask:
    def test_children_exist_once_though_each_parent_runs_twice(self, mt) -> None:
        bag = mt.submit([{"x": x} for x in range(4)], call="m:parent", backoff_s=0.0)
        work(mt, bag, slots=2)
        assert [result.attempt for result in bag.results()] == [2] * 4
        assert [result.value for result in bag.results()] == [[]] * 4  # no vendor's library in the child
        for name, expected in [
            ("children", {f"{x}-{n}" for x in range(4) for n in range(3)}),
            ("others", {f"{x}-other" for x in range(4)}),
        ]:
            children = mt.bag(name)
            children.seal()
            work(mt, children)
            assert values(children) == Counter(expected)
            assert children.finished()

    def test_two_workers_run_the_parent_at_once(self, mt) -> None:
        """Their rows differ, too: those of the first one stay."""
        doubled = mtask.Manager(FaultyQueue(mt.queue, Faults(rates=Rates(duplicate=1.0))), mt.table)
        bag = doubled.submit([{"x": x} for x in range(3)], call="m:slowly")
        work(mt, bag, slots=6)
        children = mt.bag("children")
        assert Counter(str(task.params["x"]).split("-")[0] for task in children.tasks()) == {
            str(x): 3 for x in range(3)
        }

    def test_only_the_task_itself_may(self, mt) -> None:
        bag = mt.submit([{"where": where} for where in ("thread", "process", "task")], call="m:elsewhere")
        work(mt, bag)
        said = [result.value for result in bag.results()]
        assert all("the task's own process and thread" in text for text in (said[0][0], said[1][0]))
        assert said[2] == []
        assert [task.params["x"] for task in mt.bag("children").tasks()] == [2]

    def test_not_outside_of_tasks_nor_in_map(self, mt) -> None:
        with pytest.raises(mtask.UsageError, match=r"mtask\.submit is for tasks"):
            mtask.submit([{"x": 1}], call="m:same", bag="b")
        import m

        with pytest.raises(mtask.TaskFailedError, match="their queue ends with them"):
            mtask.map(m.slowly, [1], retries=0)

    def test_in_a_delivery_that_was_handed_over(self, mt) -> None:
        for workers_send in (False, True):  # the last one leaves children in the queue
            bag = mt.submit([{"x": 1}], call="m:slowly", bag=f"b-{workers_send}")
            given = mt.queue.receive(max_messages=1, lease_s=60, wait_s=1)
            queue = OneShotQueue(given, mt.queue.main if workers_send else None)
            Worker(queue, mt.table, Options(lanes=False), say=print).run(until=queue.settled)
            (result,) = bag.results()
            if workers_send:
                mt.queue.delete(given)
                assert mt.bag("children").counts().total == 3
            else:
                assert "workers can't send to this queue" in result.error.message

    def test_a_worker_leaves_when_told_while_a_task_submits(self, command, mt) -> None:
        """The bag is held by a dead submit just then: the task waits, and is given back."""
        mt.submit([{"x": "0"}], call="m:same", bag="children", open=True)
        info = mt.bag("children").info
        raw, version = mt.table.shared(f"open/{info.uid}")
        log = json.loads(raw)
        log["claims"] = [["dead", "d", 1, True, "none"]]
        assert mt.table.swap(f"open/{info.uid}", json.dumps(log).encode(), version)
        bag = mt.submit([{"x": 1}], call="m:slowly")
        process = command.start("worker", "-j1", "--grace", "0s")
        deadline_s = time.monotonic() + 30
        while not any(w.running for w in mt.table.workers()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 0
        work(mt, bag)
        assert mt.bag("children").counts().total == 4


def test_the_child_has_no_connection(command, mt) -> None:
    """What a function's process has open doesn't grow by submitting."""
    command.write(
        "fds.py",
        "import os, mtask\n"
        "def count(x: int):\n"
        "    mtask.submit([{'x': x}], call='m:same', bag='c')\n"
        "    return len(os.listdir('/proc/self/fd'))\n",
    )
    bag = mt.submit([{"x": x} for x in range(20)], call="fds:count")
    work(mt, bag)
    assert len({result.value for result in bag.results()}) == 1


def test_help_names_them(command) -> None:
    assert (
        "seal"
        in subprocess.run(
            [sys.executable, "-m", "mtask", "--help"], capture_output=True, text=True, check=True
        ).stdout
    )

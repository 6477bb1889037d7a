"""`import mtask`: connect, submit, Bag, map and Executor."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

import mtask
import mtask.executor

FUNCTIONS = """
import os, time

def half(x: int):
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x // 2

def power(base: int, exponent: int = 2) -> int:
    return base ** exponent

def pause(x: int):
    time.sleep(0.05)
    return x

def until(file: str):
    while not os.path.exists(file):
        time.sleep(0.01)
    return file

def big(x: int, text: str):
    return len(text)

def end():
    os._exit(7)
"""


@pytest.fixture
def m(command):
    """The module with the functions, importable here and by workers."""
    command.write("m.py", FUNCTIONS)
    sys.path.insert(0, str(command.folder))
    import m

    return m


@pytest.fixture
def mt(command, m) -> Iterator[mtask.Manager]:
    with mtask.connect() as opened:
        yield opened


@dataclasses.dataclass
class Row:
    id: str
    x: int


class TestSubmit:
    @pytest.mark.parametrize(
        "rows",
        [
            [{"id": "a", "x": 2}, {"id": "b", "x": 4}],
            [Row("a", 2), Row("b", 4)],
            ({"id": name, "x": x} for name, x in [("a", 2), ("b", 4)]),
        ],
        ids=["mappings", "dataclasses", "generator"],
    )
    def test_rows(self, command, mt, m, rows):
        bag = mt.submit(rows, call=m.half)
        assert (bag.name, bag.counts().left) == ("tasks", 2)
        command("worker", "--idle-exit", "0.2")
        assert [(r.id, r.value) for r in bag.results()] == [("a", 1), ("b", 2)]

    def test_tuples_and_a_file(self, mt, command):
        bag = mt.submit([(3,), (4,)], call="m:half", columns=["x"], bag="b")
        assert [task.params for task in bag.tasks()] == [{"x": 3}, {"x": 4}]
        path = command.write("t.csv", "x\n5\n")
        assert [task.params for task in mt.submit(path, call="m:half").tasks()] == [{"x": 5}]

    def test_data_frame(self, mt):
        pandas = pytest.importorskip("pandas")
        bag = mt.submit(pandas.DataFrame({"x": [2, 4]}), call="m:half")
        assert [task.params for task in bag.tasks()] == [{"x": 2}, {"x": 4}]

    def test_options(self, mt):
        spec = mt.submit([{"x": 1}], call="m:half", retries=7, timeout_s=2.5, lease_s=9).info.spec
        assert (spec.retries, spec.timeout_s, spec.lease_s, spec.target) == (7, 2.5, 9, ("m:half",))

    def test_no_rows_are_a_finished_bag(self, mt):
        bag = mt.submit([], call="m:half")
        assert bag.finished()
        assert bag.wait(timeout_s=0) == mtask.Counts()

    @pytest.mark.parametrize(
        ("arguments", "fragment"),
        [
            ({"call": "m:half", "run": "echo"}, "not --call and --run"),
            ({"call": "m:half", "retry": 3}, "'retry'"),
            ({"call": "m:half", "retries": -1}, "retries must be 0 or more"),
            ({"call": lambda x: x}, "mtask.map takes those"),
            ({"call": "m:half", "bag": "a b"}, "can't be the name"),
            ({"call": "m:nothing"}, "no function 'nothing'"),
            ({}, "no column 'command'"),
        ],
    )
    def test_refused(self, mt, command, arguments, fragment):
        with pytest.raises(mtask.UsageError, match=fragment):
            mt.submit([{"x": 1}], **arguments)
        assert command.sent_nothing()

    @pytest.mark.parametrize(
        "rows", [[{"x": 1}, {"x": "no"}], [{"x": 1}, {"y": 1}], [{"x": 1}, {"x": object()}], 3]
    )
    def test_wrong_rows_are_refused(self, mt, command, rows):
        with pytest.raises(mtask.UsageError):
            mt.submit(rows, call="m:half")
        assert command.sent_nothing()


class TestBag:
    def test_wait_counts_results_retry(self, command, mt, m):
        bag = mt.submit([{"x": n} for n in range(6)], call=m.half, retries=0, bag="b")
        worker = command.start("worker", "--idle-exit", "30")
        assert bag.wait(timeout_s=30) == mtask.Counts(total=6, done=3, failed=3)
        worker.terminate()
        assert bag.finished()
        assert [r.index for r in bag.results(states=[mtask.State.FAILED])] == [1, 3, 5]
        assert [r.index for r in bag.results(indexes=[4, 1])] == [1, 4]
        assert bag.retry(indexes=[3]) == 1
        assert bag.counts().left == 1
        assert [r.index for r in bag.attempts()] == [3]
        with pytest.raises(mtask.UsageError, match="done are not run again"):
            bag.retry(states=[mtask.State.DONE])

    def test_wait_can_time_out(self, mt, m):
        bag = mt.submit([{"x": 2}], call=m.half, bag="b")
        with pytest.raises(TimeoutError, match=r"bag 'b' is not finished after 0.01 s"):
            bag.wait(timeout_s=0.01)

    def test_wait_shows_progress_in_lines(self, mt, m, capsys, monkeypatch):
        monkeypatch.setattr("mtask.progress.LINE_EVERY_S", 0.0)
        bag = mt.submit([{"x": 2}], call=m.half, bag="b")
        with pytest.raises(TimeoutError):
            bag.wait(progress=True, timeout_s=0.05)
        assert capsys.readouterr().err.startswith("b: 0 done · 1 left\n")

    def test_bags(self, mt, m):
        names = [mt.submit([{"x": n}], call=m.half).name for n in range(3)]
        assert [bag.name for bag in mt.bags()] == names == ["tasks", "tasks-2", "tasks-3"]
        assert repr(mt.bag("tasks")) == "<mtask bag 'tasks'>"

    def test_unknown(self, mt):
        with pytest.raises(
            mtask.BagNotFoundError, match=r"no bag 'b' in .mtask/mtask.db; there is none at all"
        ):
            mt.bag("b")

    def test_cancel(self, mt, m):
        bag = mt.submit([{"x": 2}], call=m.half)
        bag.cancel()
        assert bag.finished()
        with pytest.raises(mtask.UsageError, match="cancelled"):
            bag.repair()
        assert bag.retry() == 1
        assert not bag.finished()


class TestMap:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([{"base": 2}, {"base": 3}], [4, 9]),
            ([(2, 3), (3, 3)], [8, 27]),
            (range(2, 4), [4, 9]),
            (iter([5]), [25]),
            ([], []),
        ],
    )
    def test_rows(self, m, rows, expected):
        assert mtask.map(m.power, rows, slots=1) == expected

    def test_from_a_thread_as_in_a_notebook(self, m):
        values = []
        thread = threading.Thread(target=lambda: values.extend(mtask.map(m.power, [3], slots=1)))
        thread.start()
        thread.join()
        assert values == [9]

    def test_a_failure_is_raised_with_its_row(self, m):
        with pytest.raises(mtask.TaskFailedError, match="task 1 failed: ValueError: 1 is odd") as caught:
            mtask.map(m.half, [2, 1, 4], slots=1)
        assert caught.value.result.index == 1
        assert "m.py" in str(caught.value)

    def test_a_lambda_needs_cloudpickle(self, m, monkeypatch):
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(mtask.UsageError, match=r"pip install 'mtask\[notebook\]'"):
            mtask.map(lambda x: x, [1])

    def test_a_lambda(self, m):
        pytest.importorskip("cloudpickle")
        offset = 10
        assert mtask.map(lambda x: x + offset, [1, 2], slots=1) == [11, 12]

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"rows": [1], "slots": 0}, mtask.UsageError),
            ({"rows": [1], "nonsense": 1}, mtask.UsageError),
            ({"rows": 3}, TypeError),
            ({"rows": [{"z": 1}]}, mtask.UsageError),
        ],
    )
    def test_refused(self, m, arguments, error):
        with pytest.raises(error):
            mtask.map(m.power, **arguments)

    def test_nothing_is_left_behind(self, m, monkeypatch, tmp_path):
        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(place))
        mtask.map(m.power, [1], slots=1)
        with mtask.Executor(1) as executor:
            executor.submit(m.power, 1)
        assert list(place.iterdir()) == []


class TestExecutor:
    def test_results_in_order_and_kinds_of_arguments(self, m):
        with mtask.Executor(2) as executor:
            several = [
                executor.submit(m.power, 3),
                executor.submit(m.power, 2, exponent=5),
                executor.submit(abs, -2),
            ]
            assert [future.result(30) for future in several] == [9, 32, 2]
            assert list(executor.map(m.power, range(20))) == [n * n for n in range(20)]
            assert executor.submit(functools.partial(m.power, exponent=3), 2).exception(30) is None

    def test_many_futures(self, m):
        with mtask.Executor(2) as executor:
            many = [executor.submit(m.power, n) for n in range(2000)]
            assert sum(future.result() for future in futures.as_completed(many, 60)) == sum(
                n * n for n in range(2000)
            )

    @pytest.mark.parametrize("handed", [False, True])
    def test_ctrl_c_while_a_call_is_sent(self, m, monkeypatch, handed):
        with mtask.Executor(1) as executor:
            hand = executor._worker.hand

            def interrupted(*args, **kwargs):
                if handed:
                    hand(*args, **kwargs)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(executor._worker, "hand", interrupted)
                executor.submit(m.power, 3)
            for future in list(executor._sent.values()):
                assert future.result(30) == 9
            assert executor.submit(m.power, 4).result(30) == 16

    def test_a_value_is_there_before_its_row(self, m):
        with mtask.Executor(1) as executor:
            executor.submit(m.power, 3).result(30)
            with executor._workshop.manager.table.database.write():  # so that nobody else can
                assert [executor.submit(m.power, n).result(30) for n in range(3)] == [0, 1, 4]

    def test_all_are_recorded_nevertheless(self, m):
        with mtask.Executor(2) as executor:
            list(executor.map(m.power, range(100)))
            executor.submit(m.power, 100).result(30)
            table = executor._workshop.manager.table
            (bag,) = table.bags()
            deadline = time.monotonic() + 30
            while table.counts(bag.name).done < 101 or executor._worker.bags_in_use():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert executor._memory.depth() == (0, 0, 0)

    def test_a_callback_that_takes_long_keeps_no_other_future_waiting(self, m, tmp_path):
        over = threading.Event()
        with mtask.Executor(1) as executor:
            first = executor.submit(m.until, str(tmp_path / "go"))
            first.add_done_callback(lambda _: over.wait(60))
            second = executor.submit(m.power, 2)
            (tmp_path / "go").touch()
            assert second.result(30) == 4
            assert executor.submit(m.power, 3).result(30) == 9
            assert not over.is_set()
            over.set()

    def test_a_callback_may_shut_it_down_when_the_worker_has_stopped(self, m):
        executor, over = mtask.Executor(1), threading.Event()
        future = executor.submit(m.until, "never")
        future.add_done_callback(lambda _: (executor.shutdown(), over.set()))
        executor._worker.drain("as the test wants it", grace_s=0)
        assert over.wait(30)
        executor.shutdown()
        assert isinstance(future.exception(), mtask.BackendError)

    def test_a_callback_that_exits_leaves_no_future_waiting(self, m):
        executor = mtask.Executor(1)
        first = executor.submit(m.pause, 1)
        first.add_done_callback(lambda _: sys.exit(1))
        others = [executor.submit(m.pause, 2) for _ in range(2)]
        with pytest.raises(futures.BrokenExecutor, match="SystemExit"):
            others[-1].result(30)
        executor.shutdown()

    def test_a_copy_of_the_program_shuts_nothing_down(self, m, monkeypatch):
        with mtask.Executor(1) as executor:
            with monkeypatch.context() as patch:
                patch.setattr(executor, "_pid", -1)  # as after a fork
                executor.shutdown()
            assert executor.submit(m.power, 4).result(30) == 16

    def test_exceptions(self, m):
        with mtask.Executor(1) as executor:
            error = executor.submit(m.half, 3).exception(30)
            death = executor.submit(m.end).exception(30)
            assert executor.submit(m.half, 4).result(30) == 2
        assert isinstance(error, mtask.TaskFailedError)
        assert error.result.error.type == "ValueError"
        assert isinstance(death, mtask.TaskFailedError)
        assert death.result.exit_code == 7

    def test_retries(self, m, tmp_path):
        with mtask.Executor(1, retries=1, backoff_s=0.01) as executor:
            error = executor.submit(m.half, 3).exception(30)
        assert error.result.attempt == 2

    def test_cancel(self, m, tmp_path):
        with mtask.Executor(1) as executor:
            first = executor.submit(m.until, str(tmp_path / "go"))
            waiting = [executor.submit(m.until, str(tmp_path / "never")) for _ in range(5)]
            deadline = time.monotonic() + 30
            while not first.running():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert not first.cancel()
            assert waiting[-1].cancel()
            assert waiting[-1].cancelled()
            for future in waiting:
                future.cancel()
            (tmp_path / "go").touch()
            (tmp_path / "never").touch()
            assert first.result(30) == str(tmp_path / "go")
        with pytest.raises(futures.CancelledError):
            waiting[-1].result()

    def test_shutdown_that_cancels(self, m, tmp_path):
        executor = mtask.Executor(1)
        started = executor.submit(m.until, str(tmp_path / "go"))
        waiting = [executor.submit(m.pause, n) for n in range(50)]
        while not started.running():
            time.sleep(0.001)
        executor.shutdown(wait=False, cancel_futures=True)
        (tmp_path / "go").touch()
        _, left = futures.wait([started, *waiting], timeout=30)
        assert not left
        assert not started.cancelled()
        assert sum(future.cancelled() for future in waiting) >= 48
        executor.shutdown()

    def test_shutdown_without_waiting_loses_nothing(self, m):
        executor = mtask.Executor(2)
        several = [executor.submit(m.pause, n) for n in range(6)]
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(m.pause, 1)
        assert [future.result(30) for future in several] == list(range(6))
        executor.shutdown()
        executor.shutdown()

    def test_a_program_that_forgets_to_shut_down_ends_when_all_is_done(self, m, command):
        program = """
            import m, mtask

            if __name__ == "__main__":
                executor = mtask.Executor(1)
                for n in range(3):
                    executor.submit(m.pause, n).add_done_callback(lambda future: print(future.result(), flush=True))
        """
        command.write("p.py", textwrap.dedent(program))
        done = subprocess.run([sys.executable, "p.py"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n2\n", "")

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            (["x"], mtask.InputError, "power: argument 'base': expected an integer, got 'x'"),
            ([object()], mtask.InputError, "power: argument 'base'"),
            ([], TypeError, "missing a required argument: 'base'"),
            ([1, 2, 3], TypeError, "too many positional arguments"),
        ],
    )
    def test_arguments_are_checked_at_once(self, m, arguments, error, text):
        with mtask.Executor(1) as executor, pytest.raises(error, match=text):
            executor.submit(m.power, *arguments)

    def test_options_are_checked_at_once(self, m):
        with pytest.raises(mtask.UsageError):
            mtask.Executor(nonsense=1)
        with pytest.raises(mtask.UsageError):
            mtask.Executor(0)

    def test_large_arguments(self, m):
        with mtask.Executor(1) as executor:
            assert executor.submit(m.big, 1, "x" * (1 << 20)).result(30) == 1 << 20

    def test_a_worker_that_breaks_fails_the_futures(self, m, tmp_path, monkeypatch):
        executor = mtask.Executor(1)
        future = executor.submit(m.until, str(tmp_path / "never"))
        monkeypatch.setattr(executor, "_collect", lambda: 1 / 0)
        assert isinstance(future.exception(30), ZeroDivisionError)
        with pytest.raises(futures.BrokenExecutor):
            executor.submit(m.power, 1)
        executor.shutdown()


def test_connect_by_url_and_by_environment(command, monkeypatch):
    url = f"sqlite:///{command.folder}/q.db"
    with mtask.connect(url) as mt:
        mt.submit([{"x": 1}], run="echo {x}", bag="b")
    monkeypatch.setenv("MTASK_QUEUE", url)
    with mtask.connect() as mt:
        assert [bag.name for bag in mt.bags()] == ["b"]
    assert not Path(".mtask").exists()


def test_the_queue_that_cannot_be_opened_closes_the_table(command):
    with pytest.raises(mtask.UsageError, match="unknown scheme"):
        mtask.connect("nowhere://x", f"sqlite:///{command.folder}/t.db")
    assert not [path for path in _open_files() if path.startswith(f"{command.folder}/")]


def _open_files() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            yield os.readlink(f"/proc/self/fd/{fd}")

"""Functions in their children: what comes back of what they do, however they end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtask
from mtask.errors import BackendError
from mtask.manager import connect
from mtask.model import Reason, Result, State
from mtask.requirements import Requirements
from mtask.worker import runner, starting
from mtask.worker.supervisor import Worker
from tests.unit.worker_kit import Place, exists, wait_until, watchdog


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    url = f"sqlite:///{tmp_path}/m.db"
    with connect(url, url) as manager:
        yield Place(manager)


def the_only(results: list[Result]) -> Result:
    (result,) = results
    return result


# -- values and errors ------------------------------------------------------------------------------


def test_values_come_back_each_to_its_task(place: Place) -> None:
    bag = place.submit("double", [{"x": x} for x in range(2500)])
    results = place.work(bag, slots=2)
    assert [result.value for result in results] == [2 * x for x in range(2500)]
    assert {result.attempt for result in results} == {1}
    assert all(result.wall_s < 1 and result.peak_bytes > 1e6 for result in results)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("value", "ValueError", "no such thing"),
        ("exit", "SystemExit", "bye"),
        ("interrupt", "KeyboardInterrupt", ""),
        ("str", "worker_tasks.BadStrError", "<its __str__ raised ZeroDivisionError>"),
        ("exiting str", "worker_tasks.ExitingStrError", "<its __str__ raised SystemExit>"),
        ("any attribute", "worker_tasks.AnyAttributeError", "no"),
        ("no attribute", "worker_tasks.NoAttributeError", "no"),
        ("surrogate", "FileNotFoundError", "[Errno 2] no file: 'caf\\udce9.txt'"),
        ("group", "ExceptionGroup", "several (2 sub-exceptions)"),
        ("deep", "RecursionError", "maximum recursion depth exceeded"),
    ],
)
def test_what_a_function_raises_is_its_error(place: Place, kind: str, name: str, message: str) -> None:
    bag = place.submit("raise_it", [{"x": kind}])
    result = the_only(place.work(bag))
    assert result.state is State.FAILED
    assert result.error is not None
    assert (result.error.reason, result.error.type) == (Reason.RAISED, name)
    assert result.error.message.startswith(message)
    assert "worker_tasks.py" in result.error.traceback
    assert os.path.dirname(mtask.__file__) not in result.error.traceback, (
        "frames of mtask are of no use to anybody"
    )
    assert "importlib" not in result.error.traceback


def test_a_traceback_tells_causes_and_contexts(place: Place) -> None:
    bag = place.submit("raise_it", [{"x": "cause"}, {"x": "context"}])
    cause, context = (result.error for result in place.work(bag))
    assert cause is not None
    assert context is not None
    assert "KeyError: 'key'\n\nThe above exception was the direct cause" in cause.traceback
    assert "During handling of the above exception" in context.traceback
    for error in (cause, context):
        assert error.traceback.endswith("RuntimeError: outer\n")
        assert "in _raise_it" in error.traceback


def test_a_huge_error_is_cut(place: Place) -> None:
    bag = place.submit("raise_it", [{"x": "long"}])
    error = the_only(place.work(bag)).error
    assert error is not None
    assert len(error.message) == 4096
    assert len(error.traceback) <= 16384


@pytest.mark.parametrize("kind", ["object", "lock"])
def test_what_has_no_json_form_is_a_failure_that_says_what_came_back(place: Place, kind: str) -> None:
    error = the_only(place.work(place.submit("give", [{"x": kind}]))).error
    assert error is not None
    assert error.reason is Reason.VALUE
    assert kind in error.message


def test_values_that_are_nested_too_deep_fail_and_harm_nobody(place: Place) -> None:
    depths = [0, 1, 100, 200, 201, 500, *range(940, 1010, 3), 100_000, 3]
    results = place.work(place.submit("nest", [{"x": x} for x in depths], per_message=50))
    for depth, result in zip(depths, results, strict=True):
        assert (result.state is State.DONE) == (depth <= 200), depth
        assert result.error is None or "nested" in result.error.message


def test_a_function_that_is_gone_fails_to_start_and_says_why(place: Place, tmp_path: Path) -> None:
    module = tmp_path / "vanishing.py"
    module.write_text("def f(x): return x\n")
    bag = place.manager.submit([{"x": 1}], call=f"{module}:f", bag="bag", retries=0)
    module.unlink()
    error = the_only(place.work(bag)).error
    assert error is not None
    assert error.reason is Reason.START
    assert "vanishing.py" in error.message


# -- what a task prints -----------------------------------------------------------------------------


def test_all_that_a_task_prints_goes_to_its_record_in_order(place: Place) -> None:
    results = place.work(place.submit("prints", [{"x": 1}, {"x": 2}], per_message=2))
    for x, result in enumerate(results, 1):
        assert result.stdout == f"print {x}\nwrite\nsubprocess\nend\n"
        assert result.stderr == "to stderr\nno newline"


def test_a_task_that_prints_much_keeps_the_end(place: Place) -> None:
    big, after = place.work(place.submit("prints_bytes", [{"x": 200_000_000}, {"x": 0}], per_message=2))
    assert len(big.stdout) == 16 * 1024
    assert big.stdout.endswith("-\nend")
    assert after.stdout == "end"


def test_what_was_printed_before_a_crash_is_kept(place: Place) -> None:
    result = the_only(place.work(place.submit("prints_and_dies", [{"x": 1}])))
    assert result.stdout == "last words\n"


@pytest.mark.parametrize("what", ["fd", "fd, file", "stream", "none", "printed, fd"])
def test_a_task_that_closes_its_output_spoils_nothing_for_the_next(place: Place, what: str) -> None:
    rows = [{"x": what}, {"x": "one"}, {"x": "two"}]
    results = place.work(place.submit("closes", rows, per_message=1))
    assert [result.state for result in results] == [State.DONE] * 3
    if what != "fd, file":  # then the descriptor 1 is that file's
        assert [sorted(r.stdout.split()) for r in results[1:]] == [["one", "one"], ["two", "two"]]


# -- what a task does to its process ----------------------------------------------------------------


def test_a_task_that_changes_its_process_changes_no_directory_for_the_next(place: Place) -> None:
    results = place.work(place.submit("changes", [{"x": x} for x in range(5)], per_message=5))
    assert [result.value for result in results] == [os.getcwd()] * 5


@pytest.mark.parametrize("x", [10, 11])
def test_a_copy_of_the_process_that_returns_is_ended(place: Place, tmp_path: Path, x: int) -> None:
    rows = [{"x": x, "path": str(tmp_path / "log")}, {"x": 20, "path": str(tmp_path / "log")}]
    results = place.work(place.submit("forks", rows, per_message=2))
    assert [result.value for result in results] == [x, 20]
    assert (tmp_path / "log").read_text().split() == [str(x), "20"]


def test_a_task_may_use_multiprocessing(place: Place) -> None:
    assert the_only(place.work(place.submit("pools", [{"x": 10}]))).value == 90


def test_a_module_of_the_users_doesnt_hide_one_of_pythons_from_the_child(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("signal", "resource", "socket", "struct", "typing"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "mine.py").write_text("def f(x): return x\n")
    bag = place.manager.submit([{"x": 1}], call=f"{tmp_path}/mine.py:f", bag="bag", retries=0)
    assert the_only(place.work(bag)).state is State.DONE


def test_a_child_that_is_renewed_while_the_next_messages_are_written_to_it(place: Place) -> None:
    """These are larger than the pipe: the write goes on in the moment in which the pipe is closed."""
    rows = [{"text": "a" * 22_000} for _ in range(300)]
    results = place.work(place.submit("length", rows, per_message=1), slots=3, max_tasks_per_child=7)
    assert len(results) == 300
    assert {result.state for result in results} == {State.DONE}


# -- children that die ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason", "name", "code"),
    [
        ("segfault", Reason.SIGNAL, "SIGSEGV", -signal.SIGSEGV),
        ("abort", Reason.SIGNAL, "SIGABRT", -signal.SIGABRT),
        ("kill", Reason.SIGNAL, "SIGKILL", -signal.SIGKILL),
        ("exit 0", Reason.EXIT, "exit", 0),
        ("exit 7", Reason.EXIT, "exit", 7),
        ("thread", Reason.EXIT, "exit", 9),
    ],
)
def test_a_child_that_dies_fails_the_one_attempt(
    place: Place, how: str, reason: Reason, name: str, code: int
) -> None:
    bag = place.submit("dies", [{"x": "not"}, {"x": how}, {"x": "not"}], per_message=3)
    before, result, after = place.work(bag)
    assert (before.state, after.state) == (State.DONE, State.DONE)
    assert result.error is not None
    assert (result.error.reason, result.error.type, result.exit_code) == (reason, name, code)
    if how == "segfault":
        assert "Fatal Python error: Segmentation fault" in result.stderr
        assert "worker_tasks.py" in result.stderr


def test_a_crash_is_tried_again_like_any_failure(place: Place) -> None:
    bag = place.submit("dies", [{"x": "exit 7"}], retries=2, backoff_s=0.0)
    result = the_only(place.work(bag))
    assert result.attempt == 3
    assert [attempt.attempt for attempt in bag.attempts()] == [1, 2]


@pytest.mark.parametrize("crash_at", [0, 1, 57, 298, 299])
def test_quick_tasks_before_a_crash_are_neither_lost_nor_run_twice(
    place: Place, tmp_path: Path, crash_at: int
) -> None:
    path = str(tmp_path / "log")
    rows = [{"x": x, "path": path, "crash_at": crash_at} for x in range(300)]
    results = place.work(place.submit("log", rows, per_message=100), slots=2)
    assert [result.index for result in results if result.state is not State.DONE] == [crash_at]
    assert Counter(Path(path).read_text().split()) == {str(x): 1 for x in range(300)}


def pids(worker: Worker) -> list[int]:
    """Of the children that are there."""
    return [runner.pid for slot in worker.slots for runner in slot._runners.values() if runner.pid]


@pytest.mark.parametrize(("tasks", "started"), [(2, 2), (7, 3)])
def test_processes_can_be_there_before_the_tasks(place: Place, tasks: int, started: int) -> None:
    worker = place.worker(slots=3)
    worker.warm(Requirements(), tasks, functions=True)
    before = pids(worker)
    assert len(set(before)) == started
    bag = place.submit("whoami", [{"x": x} for x in range(tasks)])
    with watchdog():
        worker.run(bag.finished)
    assert {result.value for result in bag.results()} <= set(before)


def test_processes_that_are_not_needed_end(place: Place) -> None:
    worker = place.worker(slots=2)
    worker.warm(Requirements(), 2, functions=True)
    before = pids(worker)
    worker.discard()
    assert before
    assert not any(map(exists, before))


def test_what_needs_processes_of_its_own_has_none_before(place: Place) -> None:
    worker = place.worker(slots=2, gpus=("0", "1"))
    worker.warm(Requirements(gpus=1), 2, functions=True)
    assert not pids(worker)
    worker.discard()


def test_children_that_never_come_up_stop_the_worker_with_what_they_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_START", "import sys; sys.exit('no licence')")
    place.submit("double", [{"x": 1}])
    with watchdog(), pytest.raises(BackendError, match=r"die at once.*exit status 1.*no licence"):
        place.worker().run()
    assert place.queue.depth().ready == 1, "the message is given back"


def test_a_child_that_cant_be_started_stops_the_worker(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting.sys, "executable", "/no/such/python")
    place.submit("double", [{"x": 1}])
    with watchdog(), pytest.raises(BackendError, match="can't start a child process"):
        place.worker().run()
    assert place.queue.depth().ready == 1


@pytest.mark.parametrize("status", [0, 5])
def test_what_a_child_started_ends_with_it(place: Place, tmp_path: Path, status: int) -> None:
    path = tmp_path / "pid"
    place.work(place.submit("leaves_a_process", [{"x": status, "path": str(path)}]))
    wait_until(lambda: not exists(int(path.read_text())))


# -- children that don't end ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sleep", "holds the lock", "stopped", "raises", "with a process"])
def test_a_task_over_its_time_is_ended_and_its_neighbours_are_not(place: Place, how: str) -> None:
    began_s = time.monotonic()
    bag = place.submit("stops", [{"x": "not"}, {"x": how}, {"x": "not"}], per_message=3, timeout_s=0.4)
    before, result, after = place.work(bag)
    assert (before.state, after.state) == (State.DONE, State.DONE)
    assert result.error is not None
    assert (result.error.reason, result.error.message) == (Reason.TIMEOUT, "ran longer than 0.4 s")
    assert 0.4 <= result.wall_s < 2
    assert time.monotonic() - began_s < 5


def test_a_task_that_doesnt_hear_sigterm_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.Runner.stop_task, "__kwdefaults__", {"grace_s": 0.3})
    bag = place.submit("stops", [{"x": "deaf"}, {"x": "not"}], per_message=2, timeout_s=0.3)
    deaf, after = place.work(bag)
    assert deaf.error is not None
    assert deaf.error.reason is Reason.TIMEOUT
    assert 0.6 <= deaf.wall_s < 3
    assert after.state is State.DONE


def test_a_task_that_returns_after_all_is_done(place: Place) -> None:
    result = the_only(place.work(place.submit("stops", [{"x": "returns"}], timeout_s=0.3)))
    assert (result.state, result.value) == (State.DONE, "returns")


def test_quick_tasks_are_recorded_while_a_slow_one_behind_them_runs(place: Place, tmp_path: Path) -> None:
    rows = [{"x": 0.0}, {"x": 0.0}, {"x": 3.0}]
    bag = place.submit("sleep", rows, per_message=3)
    with place.working(split_after_s=60):
        wait_until(lambda: bag.counts().done == 2, timeout_s=2.5)


# -- renewing children ------------------------------------------------------------------------------


def test_a_child_runs_so_many_tasks_and_no_more(place: Place) -> None:
    bag = place.submit("whoami", [{"x": x} for x in range(21)], per_message=7)
    results = place.work(bag, max_tasks_per_child=3)
    pids = [result.value for result in results]
    assert max(Counter(pids).values()) == 3
    assert len(set(pids)) == 7


def test_without_a_limit_a_child_stays(place: Place) -> None:
    results = place.work(place.submit("whoami", [{"x": x} for x in range(50)]))
    assert len({result.value for result in results}) == 1


def test_a_task_that_closes_the_childs_pipes_fails_and_nobody_spins_meanwhile(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    rows = [{"x": x, "path": str(path)} for x in range(2)]
    bag = place.submit("loses_descriptors", rows, per_message=2)
    with place.working():
        wait_until(lambda: place.table.workers() and place.table.workers()[0].running)
        used_s = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - used_s < 0.3, "it spins"
        path.touch()
        wait_until(lambda: bag.counts().failed == 2)
    assert all("Bad file descriptor" in result.stderr for result in bag.results())

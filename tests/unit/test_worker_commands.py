"""Commands: how they are started, what is recorded of them, and how they end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.manager import connect
from mtask.model import Failure, Reason, Result, State
from mtask.requirements import Capabilities
from mtask.template import Template
from mtask.worker import runner
from mtask.worker.commands import CommandRunner
from mtask.worker.held import Held, Job
from mtask.worker.room import Share
from mtask.worker.wire import Cell
from tests.unit.worker_kit import FakeHost, Place, exists, held_of, wait_until


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    url = f"sqlite:///{tmp_path}/m.db"
    with connect(url, url) as manager:
        yield Place(manager)


def run(
    place: Place, command: str, *rows: dict[str, object], shell: bool = False, **options: object
) -> list[Result]:
    what = {"shell" if shell else "run": command}
    worker_options = {key: options.pop(key) for key in ["slots", "split_after_s"] if key in options}
    return place.work(place.submit_command(rows or [{"x": 1}], **what, **options), **worker_options)


def failure(result: Result) -> Failure:
    assert result.error is not None, result
    return result.error


# -- arguments --------------------------------------------------------------------------------------

AWKWARD = [
    "two words",
    "",
    "$HOME `id` $(id)",
    "a'b\"c\\d",
    "--flag",
    "*",
    "{x}",
    "line\nbreak\ttab",
    "; rm -rf /",
    "& | > <",
    "ü€𝄞",
    "%s %d",
    "~",
    "!",
    "\x01\x7f",
]


def test_awkward_arguments_arrive_as_they_are(place: Place) -> None:
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    rows = [{"x": x, "code": code} for x in AWKWARD]
    results = run(place, f"{sys.executable} -c {{code}} {{x}} 'pre {{x}} post' {{{{x}}}}", *rows)
    for x, result in zip(AWKWARD, results, strict=True):
        assert json.loads(result.stdout) == [x, f"pre {x} post", "{x}"], result


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_one_argument(text: str) -> None:
    target = Template.parse("printf '%s|' {x} 'a {x}'", ("x",)).words
    host = FakeHost()
    made = CommandRunner(host)
    made.start(Job(_held([[text]], kind="run", target=target), 0, 1))
    host.run_until(lambda: host.over)
    made.close()
    assert host.results[0].stdout == f"{text}|a {text}|"


def _held(rows: list[list[object]], **spec: object) -> Held:
    held = held_of(len(rows), **spec)
    message = msgspec.structs.replace(held.message, rows=msgspec.Raw(msgspec.json.encode(rows)))
    return Held(held.delivery, message, held.bag, body=message.encode(), lease_s=60, asked_s=time.monotonic())


def test_a_script_gets_its_parameters_as_variables(place: Place) -> None:
    results = run(place, 'printf "%s|" "$x" $MTASK_INDEX', *[{"x": x} for x in AWKWARD], shell=True)
    assert [result.stdout for result in results] == [f"{x}|{index}|" for index, x in enumerate(AWKWARD)]


def test_a_column_may_hold_the_command(place: Place) -> None:
    rows = [{"command": "echo 'a  b'"}, {"command": "echo c | d"}, {"command": "sh -c 'exit 3'"}]
    results = place.work(place.submit_command(rows))
    assert [result.stdout for result in results] == ["a  b\n", "c | d\n", ""]
    assert [result.exit_code for result in results] == [0, 0, 3]


# -- what is recorded -------------------------------------------------------------------------------


def test_what_is_recorded_of_a_command(place: Place) -> None:
    script = "echo out; echo err >&2; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    (result,) = run(place, script, {"x": 1, "id": "one"}, shell=True)
    assert (result.state, result.exit_code, result.value) == (State.DONE, 0, None)
    assert (result.stdout, result.stderr, result.id) == ("out\n", "err\n", "one")
    assert 0.01 < result.cpu_s <= result.wall_s + 0.05
    assert result.peak_bytes > 500_000
    assert result.started_at is not None
    assert abs(result.started_at - time.time()) < 60
    assert result.worker


def test_an_exit_status_is_a_failure_with_the_last_line_of_stderr(place: Place) -> None:
    (result,) = run(place, "echo first >&2; echo 'no such genome' >&2; exit 42", shell=True)
    assert (result.state, result.exit_code) == (State.FAILED, 42)
    assert (failure(result).reason, failure(result).message) == (
        Reason.EXIT,
        "exit status 42: no such genome",
    )


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_named(place: Place, name: str) -> None:
    (result,) = run(place, f"kill -{name[3:]} $$", shell=True)
    assert result.exit_code == -getattr(signal, name)
    assert (failure(result).reason, failure(result).type) == (Reason.SIGNAL, name)


def test_a_program_that_isnt_there_fails_to_start(place: Place, tmp_path: Path) -> None:
    (tmp_path / "not executable").write_text("#!/bin/sh\n")
    results = run(
        place, "{x}", {"x": "/no/such/program"}, {"x": str(tmp_path / "not executable")}, {"x": "true"}
    )
    assert [result.state for result in results] == [State.FAILED, State.FAILED, State.DONE]
    assert failure(results[0]).reason is Reason.START
    assert failure(results[0]).message == "can't start '/no/such/program': No such file or directory"
    assert "Permission denied" in failure(results[1]).message


def test_only_tails_of_much_output_are_kept(place: Place) -> None:
    script = "yes | head -c 50000000; echo end; yes no | head -c 50000000 >&2; echo end >&2"
    (result,) = run(place, script, shell=True)
    assert result.stderr.endswith("no\nnoend\n")
    assert len(result.stdout) == 16 * 1024
    assert result.stdout.endswith("y\nend\n")


def test_output_that_is_no_text(place: Place) -> None:
    (result,) = run(place, r"printf '\377\376ok'", shell=True)
    assert result.stdout == "\ufffd\ufffdok"


def test_signals_are_as_a_program_expects_them(place: Place) -> None:
    """Python ignores SIGPIPE, which would be inherited."""
    (result,) = run(place, "yes | head -1; cat /proc/self/status | grep SigIgn", shell=True)
    assert int(result.stdout.split()[-1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_standard_input_is_empty(place: Place) -> None:
    (result,) = run(place, "cat", timeout_s=5)
    assert result.state is State.DONE


def test_what_each_command_prints_and_leaves_is_kept_apart() -> None:
    host = FakeHost()
    made = CommandRunner(host)
    script = 'ls -A "$TMPDIR"; touch "$TMPDIR/{x}"; echo {x}; echo {x}{x} >&2'
    made.start(Job(_held([[x] for x in range(5)], kind="run", target=("sh", "-c", script)), 0, 5))
    host.run_until(lambda: host.over)
    made.close()
    assert [result.stdout for result in host.results] == [f"{x}\n" for x in range(5)]
    assert [result.stderr for result in host.results] == [f"{x}{x}\n" for x in range(5)]


# -- the scratch directory --------------------------------------------------------------------------


def test_each_command_finds_an_empty_scratch_directory(place: Place) -> None:
    script = """
        ls -A "$TMPDIR"; [ "$TMPDIR" = "$MTASK_SCRATCH" ] || exit 1
        touch "$TMPDIR/file" "$TMPDIR/.hidden"; mkdir -p "$TMPDIR/deep/er"; ln -s / "$TMPDIR/link"
        echo "$TMPDIR" >&2
    """
    results = run(place, script, *[{"x": x} for x in range(4)], shell=True)
    assert [(result.state, result.stdout) for result in results] == [(State.DONE, "")] * 4
    scratches = {result.stderr.strip() for result in results}
    assert all(not os.path.exists(scratch) for scratch in scratches), "and nothing of it is left"


@pytest.mark.parametrize(
    "deed",
    [
        'rm -rf "$TMPDIR"',
        'rm -rf "$TMPDIR"; ln -s "$precious" "$TMPDIR"',
        'rm -rf "$TMPDIR"; ln -s "$precious/empty" "$TMPDIR"',
        'rm -rf "$TMPDIR"; touch "$TMPDIR"',
        'mkdir "$TMPDIR/a"; touch "$TMPDIR/a/b"; chmod 500 "$TMPDIR/a"',
        'chmod 0 "$TMPDIR"',
    ],
)
def test_a_command_may_do_anything_to_its_scratch_directory(place: Place, tmp_path: Path, deed: str) -> None:
    precious = tmp_path / "precious"
    (precious / "empty").mkdir(parents=True)
    (precious / "file").touch()
    script = f'[ -z "$(ls -A "$TMPDIR")" ] || exit 1; touch "$TMPDIR/x" || exit 2; {deed}; exit 0'
    results = run(
        place, script, *[{"x": x, "precious": str(precious)} for x in range(3)], shell=True, per_message=3
    )
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert (precious / "file").exists()
    assert list((precious / "empty").iterdir()) == []


def test_what_a_command_knows_of_itself(place: Place) -> None:
    rows = [{"id": "a"}, {"id": "b"}]
    results = run(place, "echo $MTASK_BAG $MTASK_INDEX $MTASK_ID $MTASK_ATTEMPT", *rows, shell=True)
    assert [result.stdout for result in results] == ["bag 0 a 1\n", "bag 1 b 1\n"]


# -- the share of the worker ------------------------------------------------------------------------


def run_with(share: Share, script: str, *, machine: Capabilities | None = None) -> list[str]:
    """The lines that it prints."""
    host = FakeHost()
    made = CommandRunner(host, machine=machine or Capabilities(cpus=2, gpus=("0", "1")))
    job = Job(_held([[1]], kind="run", target=("sh", "-c", script)), 0, 1)
    job.share = share
    assert made.suits(share)
    made.start(job)
    host.run_until(lambda: host.over)
    made.close()
    return host.results[0].stdout.splitlines()


def test_a_command_finds_its_share_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("MTASK_MEMORY", "of a worker around this one")
    script = 'echo $MTASK_CPUS $MTASK_GPUS $MTASK_MEMORY; echo "<$CUDA_VISIBLE_DEVICES>"'
    assert run_with(Share(2.0, 500, ("1",)), script) == ["2 1 500", "<1>"]
    assert run_with(Share(0.5), script) == ["0.5", "<>"]
    assert run_with(Share(1.0), script, machine=Capabilities()) == ["1", "<0,1>"]


def test_what_follows_in_a_slot_finds_its_own_share() -> None:
    host = FakeHost()
    made = CommandRunner(host, machine=Capabilities(cpus=2, gpus=("0", "1")))
    for gpu in ("0", "1", "0"):
        job = Job(_held([[1], [2]], kind="run", target=("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")), 0, 2)
        job.share = Share(1.0, gpus=(gpu,))
        made.start(job)
        host.run_until(lambda: not made.jobs)
    made.close()
    assert [int(result.stdout) for result in host.results] == [0, 0, 1, 1, 0, 0]


def test_all_processes_of_a_command_have_its_share_and_run_on_its_cores() -> None:
    """As those that mpirun starts: one command in one slot, with more CPUs than one."""
    mine = os.sched_getaffinity(0)
    core = max(mine)
    script = """
        for rank in 1 2 3 4; do
            (echo $(grep Cpus_allowed_list /proc/self/status | cut -f2) $MTASK_CPUS $OMP_NUM_THREADS) &
        done; wait"""
    lines = run_with(Share(4.0, cores=(core,)), script, machine=Capabilities(cpus=4))
    assert lines == [f"{core} 4 1"] * 4
    assert os.sched_getaffinity(0) == mine


def test_a_command_is_on_its_cores_from_its_first_instruction_on() -> None:
    core = max(os.sched_getaffinity(0))
    host = FakeHost()
    made = CommandRunner(host)
    job = Job(_held([[x] for x in range(50)], kind="run", target=("cat", "/proc/self/status")), 0, 50)
    job.share = Share(1.0, cores=(core,))
    made.start(job)
    host.run_until(lambda: host.over)
    made.close()
    assert all(f"Cpus_allowed_list:\t{core}\n" in result.stdout for result in host.results)


def test_a_row_s_own_need_of_memory_is_its_limit() -> None:
    """And not that of its bag."""
    host = FakeHost()
    made = CommandRunner(host)
    code = "x = bytearray(60_000_000); import time; time.sleep(30)"
    held = _held([[1]], kind="run", target=(sys.executable, "-c", code), memory_bytes=500_000_000)
    requires = msgspec.structs.replace(held.lane.requires, memory_bytes=30_000_000)
    held.lane = msgspec.structs.replace(held.lane, requires=requires)
    made.start(Job(held, 0, 1))

    def checked() -> int:
        made.check()
        return len(host.results)

    host.run_until(checked)
    made.close()
    error = failure(host.results[0])
    assert error.reason is Reason.MEMORY
    assert error.message.endswith("it may take 30 MB")


# -- the process group ------------------------------------------------------------------------------


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.Runner.stop_task, "__kwdefaults__", {"grace_s": 0.3})


def test_a_command_over_its_time_gets_sigterm_first(place: Place) -> None:
    (result,) = run(place, "trap 'echo saved; exit 0' TERM; sleep 600 & wait", shell=True, timeout_s=0.3)
    assert (failure(result).reason, result.stdout) == (Reason.TIMEOUT, "saved\n")
    assert failure(result).message == "ran longer than 0.3 s"
    assert 0.3 <= result.wall_s < 2


def test_after_a_command_that_ran_out_of_time_its_slot_takes_the_next(place: Place) -> None:
    results = run(place, "sleep {x}", {"x": 600}, {"x": 0}, timeout_s=0.3, per_message=1)
    assert [result.state for result in results] == [State.FAILED, State.DONE]


@pytest.mark.usefixtures("short_grace")
def test_who_doesnt_hear_sigterm_is_killed_with_children_and_grandchildren(
    place: Place, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    script = f"""
        trap '' TERM
        sh -c "trap '' TERM; echo \\$\\$ >> {pids}; sleep 600 & echo \\$! >> {pids}; wait; sleep 600" &
        echo $$ >> {pids}
        while true; do sleep 1; done
    """
    (result,) = run(place, script, shell=True, timeout_s=0.3)
    assert failure(result).reason is Reason.TIMEOUT
    assert 0.6 <= result.wall_s < 3
    assert len(pids.read_text().split()) == 3
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not exists(pid), what=f"process {pid} ends")


@pytest.mark.parametrize("status", [0, 1])
def test_what_a_command_leaves_running_ends_with_it(place: Place, tmp_path: Path, status: int) -> None:
    pids = tmp_path / "pids"
    run(place, f"sleep 600 & echo $! > {pids}; exit {status}", shell=True)
    wait_until(lambda: not exists(int(pids.read_text())))


def test_a_stopped_command_ends_at_its_time(place: Place) -> None:
    (result,) = run(place, "kill -STOP $$", shell=True, timeout_s=0.3)
    assert failure(result).reason is Reason.TIMEOUT
    assert result.wall_s < 2


def test_a_failing_command_is_tried_again(place: Place, tmp_path: Path) -> None:
    script = f'echo x >> {tmp_path}/tries; [ "$MTASK_ATTEMPT" = 3 ]'
    (result,) = run(place, script, shell=True, retries=5, backoff_s=0.0)
    assert (result.state, result.attempt) == (State.DONE, 3)
    assert len((tmp_path / "tries").read_text().split()) == 3


# -- rows that can't be read ------------------------------------------------------------------------


def test_rows_that_dont_fit_the_columns_are_found_before_anything_runs(tmp_path: Path) -> None:
    host = FakeHost()
    made = CommandRunner(host)
    target = ("touch", f"{tmp_path}/{{x}}")
    job = Job(_held([["a"], ["b", "too many"], ["c"]], kind="run", target=target), 0, 3)
    made.start(job)
    host.run_until(lambda: host.bad)
    assert [(bad, "columns" in why) for bad, why in host.bad] == [(job, True)]
    assert not made.jobs
    assert list(tmp_path.iterdir()) == []
    made.close()


def test_a_runner_that_is_closed_kills_what_it_runs() -> None:
    host = FakeHost()
    made = CommandRunner(host)
    made.start(Job(_held([[1]], kind="run", target=("sleep", "600")), 0, 1))
    host.run_until(lambda: made._cell.words[Cell.COMMAND] > 0)  # less: it is being started
    pids = made.pid, made._cell.words[Cell.COMMAND]
    assert all(map(exists, pids))
    made.close()
    assert not any(map(exists, pids))


def test_many_commands_leave_no_descriptor_open(place: Place) -> None:
    before = len(os.listdir("/proc/self/fd"))
    results = run(place, "true {x}", *[{"x": x} for x in range(300)], slots=2)
    assert all(result.state is State.DONE for result in results)
    assert len(os.listdir("/proc/self/fd")) <= before + 3

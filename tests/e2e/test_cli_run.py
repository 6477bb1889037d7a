"""`mtask run`, `submit` and `worker`: tasks of every kind, done to the end, as a user sees it."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import select
import subprocess
import sys

import pytest

FUNCTIONS = """
import os, pathlib, sys, time

def add(x: int, y: float = 1.0):
    return x + y

def odd(x: int):
    print("looking at", x)
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return {"half": x // 2}

def third_time(x: int):
    with open(f"tries-{x}", "a") as file:
        file.write("|")
    if os.path.getsize(f"tries-{x}") < 3:
        raise OSError("not yet")
    return os.path.getsize(f"tries-{x}")

def until(x: int, file: str = "go"):
    pathlib.Path(f"started-{x}").touch()
    while not os.path.exists(file):
        time.sleep(0.01)
    return x

def note(x: int):
    fd = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % x)
    os.close(fd)
"""


@pytest.fixture
def command(command):
    command.write("m.py", FUNCTIONS)
    command.write("tasks.csv", "x\n1\n3\n5\n")
    return command


class TestKinds:
    def test_call(self, command):
        code, out, err = command("run", "tasks.csv", "--call", "m:add", "-j", "2")
        assert (code, err) == (0, "bag 'tasks': 3 tasks\n")
        assert re.match(r"3 done in .+ · .+ tasks/s · a task p50 .+, p95 .+ · slots busy \d+%\n", out)
        assert "`mtask results tasks` shows the results" in out
        assert [result.value for result in command.results("tasks")] == [2.0, 4.0, 6.0]

    def test_call_of_a_file(self, command):
        command.write("lib/tools.py", "def twice(x: int): return 2 * x\n")
        assert command("run", "tasks.csv", "--call", "lib/tools.py:twice").code == 0
        assert [result.value for result in command.results("tasks")] == [2, 6, 10]

    def test_run_quotes_by_construction(self, command):
        command.write("t.csv", "text\na b\n$(echo no)\n'\n*\n")
        assert command("run", "t.csv", "--run", "printf '<%s>{{}}' {text} x{text}").code == 0
        assert [result.stdout for result in command.results("t")] == [
            f"<{text}>{{}}<x{text}>{{}}" for text in ("a b", "$(echo no)", "'", "*")
        ]

    def test_shell(self, command):
        command.write("t.csv", "n,text\n2,a; echo b\n")
        assert command("run", "t.csv", "--shell", 'echo "$text" | wc -w; exit 0').code == 0
        (result,) = command.results("t")
        assert (result.stdout.strip(), result.exit_code) == ("3", 0)

    def test_command_column(self, command):
        command.write("t.csv", "id,command\nok,echo 'a  b'\nbad,sh -c 'echo why >&2; exit 3'\n")
        code, out, _ = command("run", "t.csv", "--retries", "0")
        assert code == 1
        assert "1 × exit status 3: why   e.g. task 1 (id bad)" in out
        ok, bad = command.results("t")
        assert (ok.id, ok.stdout, ok.exit_code) == ("ok", "a  b\n", 0)
        assert (bad.id, bad.stderr, bad.exit_code, bad.error.reason) == ("bad", "why\n", 3, "exit")


class TestFailures:
    def test_some_failed(self, command):
        command.write("t.csv", "id,x\na,1\nb,2\nc,4\n")
        code, out, _ = command("run", "t.csv", "--call", "m:odd", "--retries", "0")
        assert code == 1
        assert "1 done, 2 failed" in out
        assert "2 × ValueError: 2 is even   e.g. task 1 (id b)" in out
        assert "`mtask results t --failed` shows them, `mtask retry t` sends them again" in out
        done, failed, _ = command.results("t")
        assert (done.value, done.stdout, done.id) == ({"half": 0}, "looking at 1\n", "a")
        assert (failed.error.type, failed.error.message, failed.id) == ("ValueError", "2 is even", "b")
        assert "m.py" in failed.error.traceback
        assert "mtask/worker" not in failed.error.traceback

    def test_retries(self, command):
        assert command("run", "tasks.csv", "--call", "m:third_time", "--retries", "2").code == 0
        assert [(result.value, result.attempt) for result in command.results("tasks")] == [(3, 3)] * 3
        out = command("results", "tasks", "--attempts").out
        assert out.count("OSError") == 6

    def test_no_retry_left(self, command):
        command.write("one.csv", "x\n1\n")
        assert command("run", "one.csv", "--call", "m:third_time", "--retries", "1").code == 1
        (result,) = command.results("one")
        assert (result.attempt, result.error.message) == (2, "not yet")

    @pytest.mark.parametrize("target", [("--call", "m:until"), ("--run", "sleep 60")])
    def test_timeout(self, command, target):
        command.write("one.csv", "x\n1\n")
        args = ("run", "one.csv", *target, "--timeout", "0.3s", "--retries", "0", "--grace", "0")
        assert command(*args).code == 1
        (result,) = command.results("one")
        assert result.error.reason == "timeout"
        assert result.wall_s < 30

    def test_retry_sends_failed_tasks_again(self, command):
        command.write("t.csv", "id,x\na,1\nb,2\nc,4\n")
        command("run", "t.csv", "--call", "m:odd", "--retries", "0")
        code, _, err = command("retry", "t", "--ids", "c")
        assert (code, err) == (0, "1 task sent again; `mtask worker` runs them\n")
        assert command("worker", "--idle-exit", "0.2").code == 0
        assert command("retry", "t", "--failed").err.startswith("2 tasks sent again")
        command.write("m.py", FUNCTIONS.replace("x % 2 == 0", "x == 4"))
        code, out, err = command("run", "t.csv", "--call", "m:odd", "--retries", "0")
        assert code == 1
        assert "going on, 2 of 3 tasks are left" in err
        assert "2 done, 1 failed (2 in this run)" in out
        assert command("results", "t", "--attempts").out.count("is even") == 3
        assert command("retry", "t", "--ids", "nobody").code == 2

    def test_nothing_to_retry(self, command):
        command("run", "tasks.csv", "--call", "m:add")
        assert command("retry", "tasks").err == "no task failed; nothing to do\n"

    def test_cancel(self, command):
        command("submit", "tasks.csv", "--call", "m:add")
        code, _, err = command("cancel", "tasks")
        assert (code, "0 tasks had ended, 3 will not run" in err) == (0, True)
        command("worker", "--idle-exit", "0.2")
        assert command.results("tasks") == []
        assert "cancelled" in command("status", "tasks").out
        assert "3 tasks sent again" in command("retry", "tasks").err
        command("worker", "--idle-exit", "0.2")
        assert len(command.results("tasks")) == 3


class TestSubmitAndWork:
    def test_submit_worker_status_results(self, command):
        code, out, err = command("submit", "tasks.csv", "--call", "m:add", "--bag", "b")
        assert (code, out) == (0, "")
        assert err == "bag 'b': 3 tasks; `mtask worker` runs them, `mtask status b` shows how it goes\n"
        before = json.loads(command("status", "b", "--json").out)
        assert (before["state"], before["total"], before["left"]) == ("sealed", 3, 3)
        assert "no worker is running" in command("status", "b").out
        code, out, err = command("worker", "-j", "2", "--idle-exit", "0.2")
        assert (code, out) == (0, "")
        assert re.match(r"worker \S+: 2 slots, takes tasks from .mtask/mtask.db\n", err)
        assert "3 done, 0 failed attempts" in err
        after = json.loads(command("status", "b", "--json").out)
        assert (after["done"], after["left"], after["failures"]) == (3, 0, [])
        assert command("results", "b", "-o", "out.csv").err == "out.csv: 3 rows\n"
        assert command.read("out.csv").splitlines()[1].startswith("0,1,done,2.0,")

    def test_a_worker_elsewhere_helps_a_queue_that_settings_name(self, command):
        command.write("mtask.toml", 'queue = "sqlite:///q/q.db"\n')
        command.write("deep/tasks.csv", "x\n1\n")
        command.write("deep/m.py", FUNCTIONS)
        os.chdir("deep")
        assert command("submit", "tasks.csv", "--call", "m:add").code == 0
        assert sorted(path.name for path in (command.folder / "deep").glob("*q*")) == []
        os.chdir(command.folder)
        code, _, err = command("worker", "--idle-exit", "0.2")
        assert (code, "takes tasks from q/q.db" in err) == (0, True)
        assert [result.value for result in command.results("tasks")] == [2.0]

    def test_queue_and_table_apart(self, command):
        places = ("--queue", "sqlite:///q.db", "--table", "sqlite:///t.db")
        assert command("run", "tasks.csv", "--call", "m:add", *places).code == 0
        assert '"done":3' in command("status", "tasks", "--json", *places).out
        assert '"done":3' in command("status", "tasks", "--json", "--table", "sqlite:///t.db").out
        assert not (command.folder / ".mtask" / "mtask.db").exists() or command.sent_nothing()

    def test_max_runtime_drains(self, command):
        command("submit", "tasks.csv", "--call", "m:until")
        assert command("worker", "--max-runtime", "0.3s", "--grace", "0").code == 0
        assert '"left":3' in command("status", "tasks", "--json").out

    def test_what_else_is_in_the_queue_is_said(self, command):
        command.write("other.csv", "x\n7\n")
        command("submit", "other.csv", "--call", "m:add")
        err = command("run", "tasks.csv", "--call", "m:add").err
        assert "in the queue are also other (1 left), and may come first" in err


class TestInput:
    CSV = "x,y\n1,2.5\n2,3.5\n"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
            ("t.tsv", CSV.replace(",", "\t").encode()),
            ("t.jsonl", b'{"x": 1, "y": 2.5}\n{"x": 2, "y": 3.5}\n'),
            ("t.jsonl.gz", gzip.compress(b'{"x": 1, "y": 2.5}\n{"x": 2, "y": 3.5}\n', mtime=0)),
        ],
    )
    def test_format(self, command, name, content):
        command.write(name, content)
        assert command("run", name, "--call", "m:add").code == 0
        assert [result.value for result in command.results("t")] == [3.5, 5.5]

    def test_zst(self, command):
        zstandard = pytest.importorskip("zstandard")
        command.write("t.csv.zst", zstandard.compress(self.CSV.encode()))
        assert command("run", "t.csv.zst", "--call", "m:add").code == 0
        assert [result.value for result in command.results("t")] == [3.5, 5.5]

    def test_parquet(self, command):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"x": [1, 2], "y": [2.5, 3.5]}), "t.parquet")
        assert command("run", "t.parquet", "--call", "m:add").code == 0
        assert [result.value for result in command.results("t")] == [3.5, 5.5]

    def test_standard_input(self, command):
        code, _, err = command("run", "-", "--call", "m:add", stdin=self.CSV.encode())
        assert (code, err) == (0, "bag 'stdin': 2 tasks\n")
        assert [result.value for result in command.results("stdin")] == [3.5, 5.5]

    def test_a_file_that_can_be_read_only_once(self, command):
        os.mkfifo("pipe")
        process = command.start("run", "pipe", "--run", "echo {x}", "--bag", "b")
        command.write("pipe", self.CSV)
        assert process.communicate(timeout=60)[0].startswith("2 done")

    def test_names(self, command):
        command.write("dir/my reads (1).v2.csv", "x\n1\n")
        for expected in ("my-reads-1", "my-reads-1-2"):
            assert f"bag '{expected}'" in command("run", "dir/my reads (1).v2.csv", "--call", "m:add").err


class TestAgain:
    def test_by_default_another_bag(self, command):
        for name in ("tasks", "tasks-2", "tasks-3"):
            assert f"bag '{name}': 3 tasks" in command("run", "tasks.csv", "--call", "m:add").err

    def test_of_an_unfinished_bag_the_same(self, command):
        command("submit", "tasks.csv", "--call", "m:add")
        code, _, err = command("run", "tasks.csv", "--call", "m:add")
        assert (code, err) == (0, "bag 'tasks': going on, 3 of 3 tasks are left\n")
        assert len(command.results("tasks")) == 3

    def test_of_a_finished_bag_with_its_name_nothing_runs(self, command):
        args = ("run", "tasks.csv", "--call", "m:note", "--bag", "b")
        assert command(*args).code == 0
        code, out, err = command(*args)
        assert code == 0
        assert "all 3 tasks have ended already; for another run choose another --bag" in err
        assert out.startswith("3 done\n")
        assert sorted(command.read("notes").split()) == ["1", "3", "5"]

    def test_of_a_bag_with_failures_says_so(self, command):
        command.write("t.csv", "x\n2\n")
        args = ("run", "t.csv", "--call", "m:odd", "--bag", "b", "--retries", "0")
        assert [command(*args).code, command(*args).code] == [1, 1]
        assert "or --retry-failed for the tasks that failed" in command(*args).err
        err = command("submit", *args[1:]).err
        assert "choose another --bag, or `mtask retry b` for the tasks that failed\n" in err

    def test_failed_tasks_are_tried_again_where_that_is_said(self, command):
        run = ("run", "tasks.csv", "--shell", "echo $x >> ran; test $x != 3 -o -e mended", "--bag", "b")
        args = (*run, "--retries", "0", "--retry-failed")
        assert command(*args).code == 1
        command.write("mended", "")
        code, out, err = command(*args)
        assert (code, "bag 'b': 1 task tried again\n" in err) == (0, True)
        assert out.startswith("3 done (1 in this run)")
        assert sorted(command.read("ran").split()) == ["1", "3", "3", "5"]
        assert command(*args).code == 0
        code, _, err = command(*args[:3], "true", "--retry-failed")
        assert (code, "--retry-failed needs --bag" in err) == (2, True)


class TestOutput:
    def test_quiet(self, command):
        assert command("run", "tasks.csv", "--call", "m:add", "-q") == (0, "", "")
        assert command("submit", "tasks.csv", "--call", "m:odd", "--quiet") == (0, "", "")
        assert command("worker", "--idle-exit", "0.2", "-q") == (0, "", "")
        assert command("run", "tasks.csv", "--call", "m:nothing", "-q").err != ""

    def test_json(self, command):
        command.write("t.csv", "id,x\na,1\nb,2\n")
        code, out, err = command("run", "t.csv", "--call", "m:odd", "--retries", "0", "--json")
        assert (code, err, out.count("\n")) == (1, "", 1)
        summary = json.loads(out)
        assert {key: summary[key] for key in ("bag", "total", "done", "failed", "expired", "left", "ran")} == {
            "bag": "t", "total": 2, "done": 1, "failed": 1, "expired": 0, "left": 0, "ran": 2,
        }  # fmt: skip
        assert summary["failures"] == [
            {
                "count": 1,
                "state": "failed",
                "type": "ValueError",
                "message": "2 is even",
                "index": 1,
                "id": "b",
            }
        ]
        out = command("submit", "tasks.csv", "--call", "m:odd", "--json").out
        assert json.loads(out) == {"bag": "tasks", "total": 3, "sent": 3}

    def test_a_pipe_gets_no_colours_and_no_bar(self, command):
        code, out, err = command.process("run", "tasks.csv", "--call", "m:add")
        assert code == 0
        assert "\x1b" not in out + err
        assert "━" not in err

    @pytest.mark.parametrize("columns", [40, 120])
    @pytest.mark.parametrize("colour", [True, False])
    def test_a_terminal_gets_a_bar(self, command, columns, colour):
        code, screen = in_terminal(
            command,
            "run",
            "tasks.csv",
            "--call",
            "m:add",
            columns=columns,
            **({} if colour else {"NO_COLOR": "1"}),
        )
        assert code == 0
        assert "3 done" in screen
        assert ("━" in screen) == (columns > 80)
        assert "slots busy" in screen or columns == 40
        assert bool(re.search(r"\x1b\[(\d+;)*3\dm", screen)) is colour

    def test_a_reader_that_goes_away(self, command):
        command.write("many.csv", "x\n" + "".join(f"{n}\n" for n in range(3000)))
        command("run", "many.csv", "--call", "m:add")
        process = command.start("results", "many", "--limit", "3000")
        assert process.stdout.readline().startswith("index")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def in_terminal(command, *args, columns, **env):
    """Exit status and all that was written to a terminal of so many columns."""
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24", **env}
    process = subprocess.Popen(
        [sys.executable, "-m", "mtask", *args],
        cwd=command.folder,
        env=env,
        stdin=side,
        stdout=side,
        stderr=side,
    )
    command.started.append(process)
    os.close(side)
    screen = b""
    while select.select([main], [], [], 60)[0]:
        try:
            part = os.read(main, 65536)
        except OSError:  # all who wrote have gone
            break
        if not part:
            break
        screen += part
    os.close(main)
    return process.wait(60), screen.decode()

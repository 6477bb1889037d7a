"""`mtask seqexec`: lists of real commands."""

from __future__ import annotations

import re
import signal
import time

import pytest


def records(out: str, kind: str = "cluster-task") -> list[dict[str, str]]:
    found = re.findall(rf"^\[{kind} (.*)\]$", out, re.MULTILINE)
    return [dict(re.findall(r'(\w+)=("[^"]*"|[^",]+)', each)) for each in found]


def summary(out: str) -> dict[str, str]:
    (found,) = records(out, "cluster-summary")
    assert out.splitlines()[-1].startswith("[cluster-summary ")
    return found


def test_commands_of_a_file(command):
    command.write("list", "# two\n/bin/echo 'one  word' \"\" x\n\n/bin/sh -c 'printf end; exit 0'\n")
    code, out, err = command.process("seqexec", "list")
    assert (code, err) == (0, "")
    assert out.startswith("one  word  x\n[cluster-task id=1, start=")
    assert "end\n[cluster-task id=2, start=" in out
    assert [(each["id"], each["line"], each["status"], each["app"]) for each in records(out)] == [
        ("1", "2", "0", '"/bin/echo"'),
        ("2", "4", "0", '"/bin/sh"'),
    ]
    said = summary(out)
    assert [said[key] for key in ("stat", "lines", "tasks", "succeeded", "failed", "extra")] == [
        '"ok"', "4", "2", "2", "0", "0",
    ]  # fmt: skip


def test_commands_of_standard_input_without_a_last_line_end(command):
    code, out, _ = command.process("seqexec", stdin="/bin/echo a\n/bin/echo b")
    assert (code, [each["line"] for each in records(out)], summary(out)["lines"]) == (0, ["1", "2"], "2")
    assert command.process("seqexec", stdin="").code == 0


@pytest.mark.parametrize(
    ("args", "code", "stat", "tasks", "failed"),
    [
        ([], 5, '"fail"', "4", "2"),
        (["-e"], 0, '"ok"', "4", "2"),
        (["-f"], 5, '"fail"', "2", "1"),
        (["-S", "3"], 5, '"fail"', "4", "1"),
        (["-S", "3", "-S", "4"], 0, '"ok"', "4", "0"),
        (["-f", "-S", "3", "-n", "1"], 5, '"fail"', "4", "1"),
    ],
)
def test_failures(command, args, code, stat, tasks, failed):
    command.write("list", "/bin/true\n/bin/sh -c 'exit 3'\n/bin/true\n/bin/sh -c 'exit 4'\n")
    outcome = command.process("seqexec", *args, "list")
    said = summary(outcome.out)
    assert (outcome.code, said["stat"], said["tasks"], said["failed"]) == (code, stat, tasks, failed)


def test_in_order_and_several_at_a_time(command):
    wait = "/bin/sh -c 'echo > {}; while ! test -e {}; do sleep 0.01; done; echo {}'\n"
    command.write("list", wait.format("a", "b", "first") + wait.format("b", "a", "second"))
    code, out, _ = command.process("seqexec", "-n", "2", "list")
    assert code == 0
    assert len(re.findall(r"^(first|second)\n\[cluster-task", out, re.MULTILINE)) == 2
    command.write("list", "".join(f"/bin/sh -c 'echo {at} >> order'\n" for at in range(30)))
    assert command.process("seqexec", "list", SEQEXEC_CPUS="").code == 1
    assert command.process("seqexec", "list").code == 0
    assert command.read("order").split() == [str(at) for at in range(30)]
    assert command.process("seqexec", "list", SEQEXEC_CPUS="auto").code == 0


def test_the_status_file_has_all_of_standard_output(command):
    code, out, _ = command.process("seqexec", "-s", "status", stdin="/bin/echo a\n")
    assert (code, out) == (0, "")
    text = command.read("status")
    assert (text[:2], len(records(text)), summary(text)["tasks"]) == ("a\n", 1, "1")


def test_progress(command):
    kick = command.write(
        "my-kickstart", '#!/bin/sh\nwhile test "${1#-}" != "$1"; do shift 2; done\nexec "$@"\n'
    )
    kick.chmod(0o755)
    command.write("list", "./my-kickstart -n name -R site /bin/echo hi\n/bin/sh -c 'exit 2'\n")
    code, out, _ = command.process("seqexec", "list", SEQEXEC_PROGRESS_REPORT="progress")
    assert (code, records(out)[0]["app"]) == (5, '"/bin/echo"')
    start, first, second = command.read("progress").splitlines()
    assert re.fullmatch(r"\S+ \S+:\d+ 0 0/0 START .* ### sysname=Linux machine=\S+ release=\S+", start)
    assert re.fullmatch(r"\S+ \S+:\d+ 1 0/0 \d+\.\d{3} /bin/echo hi ### utime=.*", first)
    assert re.fullmatch(r"\S+ \S+:\d+ 2 2/0 \d+\.\d{3} /bin/sh -c exit 2 ### utime=.*", second)


def test_setup_and_cleanup(command):
    env = {"SEQEXEC_SETUP": "/bin/sh -c 'echo setup; exit 1'", "SEQEXEC_CLEANUP": "/bin/echo cleanup"}
    code, out, err = command.process("seqexec", stdin="/bin/echo main\n", **env)
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith("[")] == ["setup", "main", "cleanup"]
    assert (summary(out)["extra"], len(records(out))) == ("2", 1)
    assert "SEQEXEC_SETUP failed: exit status 1" in err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--no-such"], 1, "No such option"),
        (["-n", "9" * 5000], 1, "-n must be a number of at most 9 digits, or auto, not '9999"),
        (["-n", "many"], 1, "-n must be a number of at most 9 digits, or auto, not 'many'"),
        (["-S", "0"], 1, "the least is 1"),
        (["-e", "-f"], 1, "-e and -f exclude each other"),
        (["a", "b"], 1, "unexpected extra argument"),
        (["-R", "no/progress"], 1, "can't open the progress file no/progress"),
        (["-s", "no/status"], 2, "can't open no/status: No such file or directory"),
        (["no-list"], 3, "no-list: can't read it: No such file or directory"),
    ],
)
def test_wrong_usage(command, args, code, said):
    outcome = command.process("seqexec", *args, stdin="/bin/touch ran\n")
    assert (outcome.code, outcome.out, said in outcome.err) == (code, "", True)
    assert not (command.folder / "ran").exists()


def test_malformed_lines_are_named_and_nothing_starts(command):
    command.write("list", "/bin/touch ran\n/bin/echo 'a\n# b'\n'' x\n")
    code, out, err = command.process("seqexec", "list")
    assert (code, out) == (3, "")
    assert re.findall(r"list, line (\d)", err) == ["2", "4"]
    assert not (command.folder / "ran").exists()


def test_a_signal_ends_what_runs_and_starts_nothing_more(command):
    command.write("list", "/bin/sh -c 'echo > running; exec sleep 1000'\n/bin/touch ran\n")
    process = command.start("seqexec", "list")
    end_s = time.monotonic() + 60
    while not (command.folder / "running").exists():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, summary(out)["stat"], summary(out)["failed"]) == (130, '"fail"', "1")
    assert "stopped by SIGTERM" in err
    assert not (command.folder / "ran").exists()

"""`mtask pmc`: real DAGs of real commands, ended in every way that they can end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DIAMOND = """
TASK A /bin/echo "I am A"
TASK B /bin/echo "I am B"
TASK C /bin/echo "I am C"
TASK D /bin/echo "I am D"
EDGE A B
EDGE A C
EDGE B D
EDGE C D
"""
LIMIT_S = 60


def records(out: str, kind: str = "cluster-task") -> list[dict[str, str]]:
    found = re.findall(rf"^\[{kind} (.*)\]$", out, re.MULTILINE)
    return [dict(re.findall(r'(\w+)=("[^"]*"|[^",]+)', each)) for each in found]


def summary(out: str) -> dict[str, str]:
    """Which must come last of all."""
    assert out.endswith("]\n")
    (found,) = records(out, "cluster-summary")
    assert out.splitlines()[-1].startswith("[cluster-summary ")
    return found


def pegasus_is_content(out: str) -> bool:
    """The rules of pegasus-exitcode."""
    if not out or ("[cluster-task" in out and "[cluster-summary" not in out):
        return False
    begin = out.index("[cluster-summary")
    said = records(out[begin : out.index("]", begin) + 1] + "\n", "cluster-summary")[0]
    if said["stat"] != '"ok"' or int(said["failed"]) > 0:
        return False
    return 0 in (int(said["submitted"]), int(said["tasks"])) or int(said["succeeded"]) > 0


def wait_for(what, *, limit_s: float = LIMIT_S) -> None:
    """A state of another process's doing, which can only be looked for."""
    end_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.01)


def done_in(path: Path) -> list[str]:
    return re.findall(r"^DONE (\w+)$", path.read_text(), re.MULTILINE) if path.exists() else []


def test_a_diamond(command):
    command.write("d.dag", "#@ 7 echo ID7\n" + DIAMOND)
    code, out, err = command.process("pmc", "d.dag", "-j", "2")
    assert code == 0
    tasks = records(out)
    names = [task["name"] for task in tasks]
    assert (names[0], names[3], sorted(names)) == ("A", "D", ["A", "B", "C", "D"])
    for name, task in zip(names, tasks, strict=True):
        # What a task has printed stands before its record.
        assert f"I am {name}\n[cluster-task {'id=7, ' if name == 'A' else ''}name={name}, start=" in out
        assert (task["status"], task["app"], task["cpus"], task["memory"]) == ("0", '"/bin/echo"', "1", "0")
        assert re.fullmatch(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"', task["start"])
        assert re.fullmatch(r"\d+\.\d{3}", task["duration"])
        assert task["slot"] in "12"
    said = summary(out)
    assert [said[key] for key in ("stat", "tasks", "submitted", "succeeded", "failed", "extra", "slots")] == [
        '"ok"', "4", "4", "4", "0", "0", "2",
    ]  # fmt: skip
    assert pegasus_is_content(out)
    assert sorted(done_in(command.folder / "d.dag.rescue")) == ["A", "B", "C", "D"]
    assert len(command.read("d.dag.resource").splitlines()) == 9
    assert "4 of 4 tasks are done" in err

    again = command.process("pmc", "d.dag")
    assert (again.code, records(again.out), summary(again.out)["submitted"]) == (0, [], "0")
    assert pegasus_is_content(again.out)
    anew = command.process("pmc", "d.dag", "--skip-rescue", "-q", "--no-resource-log")
    assert (anew.code, len(records(anew.out)), anew.err) == (0, 4, "")


def test_an_empty_dag_is_done(command):
    command.write("d.dag", "# nothing\n")
    code, out, _ = command.process("pmc", "d.dag")
    assert (code, summary(out)["tasks"], pegasus_is_content(out)) == (0, "0", True)


def test_a_failed_task_leaves_its_children_and_no_others(command):
    command.write(
        "d.dag", DIAMOND.replace('TASK B /bin/echo "I am B"', "TASK B /bin/sh -c 'echo half; exit 3'")
    )
    code, out, err = command.process("pmc", "d.dag")
    assert code == 1
    assert {task["name"]: task["status"] for task in records(out)} == {"A": "0", "B": str(3 << 8), "C": "0"}
    said = summary(out)
    assert [said[key] for key in ("stat", "submitted", "succeeded", "failed")] == ['"failed"', "3", "2", "1"]
    assert not pegasus_is_content(out)
    assert "task B failed: exit status 3" in err
    assert "3 of 4" not in err
    assert "2 of 4 tasks are done, 1 failed, 1 were not started; the same command goes on" in err
    command.write("d.dag", DIAMOND)
    mended = command.process("pmc", "d.dag")
    assert (mended.code, [task["name"] for task in records(mended.out)]) == (0, ["B", "D"])


def test_a_program_that_is_not_there_and_one_that_is_killed(command):
    command.write("d.dag", "TASK a /no/such/program\nTASK b /bin/sh -c 'kill -9 $$'\n")
    code, out, err = command.process("pmc", "d.dag")
    assert code == 1
    assert {task["name"]: task["status"] for task in records(out)} == {"a": str(127 << 8), "b": "9"}
    assert "mtask: can't start '/no/such/program': No such file or directory\n" in err
    assert "task b failed: killed by SIGKILL" in err


def test_tries(command):
    flaky = "/bin/sh -c 'echo x >> $PMC_TASK; test $(wc -l < $PMC_TASK) -ge 3'"
    command.write("d.dag", f"TASK a {flaky}\nTASK b -t 2 {flaky}\nTASK c -t 4 {flaky}\n")
    code, out, err = command.process("pmc", "d.dag", "--tries", "3")
    assert code == 1
    assert [len(command.read(name).splitlines()) for name in "abc"] == [3, 2, 3]
    assert (summary(out)["submitted"], summary(out)["failed"]) == ("8", "1")
    assert err.count("it is tried again") == 5
    # What has succeeded in the end is no failure for Pegasus.
    again = command.process("pmc", "d.dag")
    assert (again.code, pegasus_is_content(again.out)) == (0, True)


def test_max_failures(command):
    command.write("d.dag", "".join(f"TASK t{at} /bin/false\n" for at in range(9)))
    code, out, _ = command.process("pmc", "d.dag", "-m", "2", "-j", "1")
    assert (code, summary(out)["submitted"], summary(out)["failed"]) == (1, "2", "2")


def test_outputs_are_never_mixed(command):
    """Each task prints in many small pieces, and leaves a process behind that would print still more."""
    script = (
        "for i in $(seq 200); do echo $PMC_TASK-$i; echo $PMC_TASK-$i >&2; done; "
        "setsid sh -c 'sleep 0.3; echo stray; echo stray >&2' & printf $PMC_TASK-end"
    )
    command.write(
        "d.dag", "".join(f"TASK t{at} /bin/sh -c '{script.replace(chr(39), chr(34))}'\n" for at in range(12))
    )
    code, out, err = command.process("pmc", "d.dag", "-j", "6", "--host-cpus", "6")
    assert code == 0
    for at in range(12):
        whole = "".join(f"t{at}-{i}\n" for i in range(1, 201))
        assert f"{whole}t{at}-end\n[cluster-task name=t{at}," in out
        assert whole in err
    assert "stray" not in out + err


@pytest.mark.parametrize(
    "leave",
    [
        "sleep 100 & echo $! > pid",
        "setsid sh -c 'echo $$ > pid; exec sleep 100' &",
        "(setsid setsid sh -c 'echo $$ > pid; exec sleep 100' &) &",
    ],
)
def test_what_a_task_leaves_running_is_ended_with_it(command, leave):
    """Also in a session of its own: the next task finds nothing of it."""
    command.write("leave", f"{leave}\nwhile ! test -s pid; do sleep 0.01; done\n")
    look = "for i in $(seq 500); do kill -0 $(cat pid) || exit 0; sleep 0.01; done; exit 1"
    dag = f"TASK a /bin/sh leave\nTASK b /bin/true\nTASK c /bin/sh -c '{look}'\nEDGE a b\nEDGE b c\n"
    command.write("d.dag", dag)
    done = command.process("pmc", "d.dag")
    assert done.code == 0, done


def test_too_few_open_files_are_named_before_anything_runs(command):
    command.write("d.dag", "TASK a /bin/touch ran\n")
    limited = f'ulimit -n 120; exec "{sys.executable}" -m mtask pmc d.dag -j 60 --host-cpus 60'
    done = subprocess.run(
        ["sh", "-c", limited], cwd=command.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "60 tasks at a time need up to 220 open files, and `ulimit -n` is 120" in done.stderr
    assert not (command.folder / "ran").exists()


def test_a_large_output_comes_out_whole(command):
    command.write("d.dag", "TASK a /bin/sh -c 'seq 700000'\nTASK b /bin/echo b\n")
    code, out, _ = command.process("pmc", "d.dag", "-j", "1")
    assert code == 0
    assert out.startswith("".join(f"{n}\n" for n in range(1, 700_001)) + "[cluster-task name=a,")


def test_outputs_to_files(command):
    command.write("d.dag", DIAMOND + "TASK E /bin/sh -c 'echo oh >&2'\n")
    command.write("out", "of before\n")
    code, out, err = command.process("pmc", "d.dag", "-o", "out", "-e", "err", "-q")
    assert (code, records(out), err) == (0, [], "")
    assert summary(out)["succeeded"] == "5"
    assert (len(records(command.read("out"))), "of before" in command.read("out")) == (5, False)
    assert command.read("err") == "oh\n"


def test_a_run_that_goes_on_keeps_what_is_in_its_files(command):
    command.write("d.dag", "TASK a /bin/echo a\nTASK b /bin/cat there\nEDGE a b\n")
    assert command.process("pmc", "d.dag", "-o", "out").code == 1
    command.write("there", "b\n")
    assert command.process("pmc", "d.dag", "-o", "out").code == 0
    assert [(task["name"], task["status"]) for task in records(command.read("out"))] == [
        ("a", "0"),
        ("b", "256"),
        ("b", "0"),
    ]


def test_an_output_that_was_cut_short_spoils_none_behind_it(command):
    """As a kill -9 leaves it, while a task's output is written."""
    command.write("d.dag", "TASK a /bin/echo a\nTASK b /bin/echo b\n")
    command.write("d.dag.rescue", "\nDONE a")
    command.write("out", "a\n[cluster-task name=a]\nhalf of b")
    assert command.process("pmc", "d.dag", "-o", "out").code == 0
    assert command.read("out").startswith("a\n[cluster-task name=a]\nhalf of b\nb\n[cluster-task name=b,")


def test_outputs_of_each_attempt(command):
    command.write("w/d.dag", "TASK a -t 2 /bin/sh -c 'echo out; echo err >&2; exit 1'\n")
    code, out, err = command.process("pmc", "w/d.dag", "--per-task-stdio", "-qq")
    assert (code, records(out), err) == (1, [], "")
    for attempt in ("000", "001"):
        assert command.read(f"w/a.out.{attempt}").startswith("out\n[cluster-task name=a, ")
        assert command.read(f"w/a.err.{attempt}") == "err\n"


def test_logs_for_the_monitor(command):
    command.write("w/d.dag", "TASK a /bin/true\nTASK b /bin/false\n")
    assert command.process("pmc", "w/d.dag", "--jobstate-log", "--monitord-hack", "-j", "1").code == 1
    states = [line.split(" ", 1)[1] for line in command.read("w/jobstate.log").splitlines()]
    assert states == [
        "INTERNAL *** PMC_STARTED ***",
        "a SUBMIT 1.0 - - 1",
        "a EXECUTE 1.0 - - 1",
        "b SUBMIT 2.0 - - 2",
        "b EXECUTE 2.0 - - 2",
        "a JOB_TERMINATED 1.0 - - 1",
        "a JOB_SUCCESS 0 - - 1",
        "b JOB_TERMINATED 2.0 - - 2",
        "b JOB_FAILURE 256 - - 2",
        "INTERNAL *** PMC_FINISHED 1 ***",
    ]
    dagman = command.read("w/d.dag.dagman.out")
    assert "Node a job proc (1.0) completed successfully." in dagman
    assert "Node b job proc (2.0) failed with status 256." in dagman
    assert dagman.rstrip().endswith("EXITING WITH STATUS 1")


# -- the host ---------------------------------------------------------------------------------------


def most_at_a_time(out: str, what: str) -> float:
    """Of cpus, memory or tasks, by the times in the records."""
    from datetime import datetime

    moments: list[tuple[float, int]] = []
    for task in records(out):
        start = datetime.fromisoformat(task["start"].strip('"')).timestamp()
        amount = int(task[what]) if what in task else 1
        # The record's times are rounded to milliseconds.
        moments += [(start + 0.001, amount), (start + max(0.001, float(task["duration"]) - 0.001), -amount)]
    most = now = 0
    for _, amount in sorted(moments):
        now += amount
        most = max(most, now)
    return most


def test_the_host_is_never_overcommitted(command):
    lines = [
        f"TASK t{at} -c {cpus} -m {memory} /bin/sleep 0.05"
        for at, (cpus, memory) in enumerate([(1, 60), (2, 10), (3, 0), (1, 40), (2, 90), (1, 100)] * 3)
    ]
    command.write("d.dag", "\n".join(lines))
    env = {"PMC_HOST_CPUS": "3", "PMC_HOST_MEMORY": "100"}
    code, out, _ = command.process("pmc", "d.dag", "-j", "8", **env)
    assert code == 0
    assert 1 < most_at_a_time(out, "cpus") <= 3
    assert most_at_a_time(out, "memory") <= 100
    assert summary(out)["cpus"] == "3"
    free = [line.split(",") for line in command.read("d.dag.resource").splitlines()]
    assert min(int(cpus) for _, _, cpus, _, _ in free) == 0
    assert min(int(memory) for _, _, _, memory, _ in free) >= 0


def test_a_task_that_no_host_could_run_is_named_before_any_starts(command):
    command.write("d.dag", "TASK a /bin/echo a\nTASK b -c 3 x\nTASK c -m 101 x\n")
    code, out, err = command.process("pmc", "d.dag", "--host-cpus", "2", "--host-memory", "100")
    assert (code, out) == (2, "")
    assert "d.dag, line 2: task 'b' needs 3 CPUs and 0 MB, the host has 2 CPUs and 100 MB" in err
    assert "d.dag, line 3: task 'c' needs 1 CPUs and 101 MB" in err


def test_the_slot_of_an_htcondor_job_is_all_of_the_host_that_there_is(command):
    command.write("machine.ad", 'Name = "slot1_1@vm"\nCpus = 1\nMemory = 128\nTotalCpus = 64\n')
    command.write("d.dag", "TASK a -m 129 /bin/true\n")
    ad = {"_CONDOR_MACHINE_AD": str(command.folder / "machine.ad")}
    code, _, err = command.process("pmc", "d.dag", **ad)
    assert (code, "the host has 1 CPUs and 128 MB" in err) == (2, True)
    assert command.process("pmc", "d.dag", "--host-memory", "200", **ad).code == 0


def test_strict_limits(command):
    take = "python3 -c 'x = bytearray(400 << 20)'"
    command.write("d.dag", f"TASK a -m 300 {take}\nTASK b -m 300 /bin/echo 'a  b' \\$HOME\nTASK c {take}\n")
    code, out, err = command.process("pmc", "d.dag", "--strict-limits", "--host-memory", "1000")
    assert code == 1
    assert {task["name"]: (task["status"], task["app"]) for task in records(out)} == {
        "a": ("256", '"python3"'),
        "b": ("0", '"/bin/echo"'),
        "c": ("0", '"python3"'),
    }
    assert "MemoryError" in err
    assert "a  b $HOME\n" in out
    assert command.process("pmc", "d.dag", "--host-memory", "1000").code == 0


def test_what_a_task_sees(command):
    command.write("d.dag", "TASK a -c 2 -m 50 /bin/sh -c 'env; cat; nproc'\n")
    _, out, _ = command.process("pmc", "d.dag", "--host-cpus", "2", MINE="x", OMP_NUM_THREADS="")
    assert {"PMC_TASK=a", "PMC_MEMORY=50", "PMC_CPUS=2", "PMC_RANK=1", "PMC_HOST_RANK=0", "MINE=x"} <= set(
        out.splitlines()
    )
    assert "PMC_AFFINITY" not in out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has a single CPU")
def test_affinity(command):
    command.write(
        "d.dag", "TASK a -c 2 /bin/sh -c 'echo on $PMC_AFFINITY; nproc'\nTASK b /bin/sh -c 'nproc'\n"
    )
    code, out, _ = command.process("pmc", "d.dag", "--set-affinity")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    assert (code, f"on {cores}\n2\n" in out) == (0, True)
    code, _, err = command.process("pmc", "d.dag", "--set-affinity", "--host-cpus", "2")
    assert (code, "leave out --host-cpus" in err) == (2, True)


def test_host_script(command):
    script = command.write(
        "prepare", "#!/bin/sh\necho prepared\necho here > place\nsleep 1000 & echo $! > pid\n"
    )
    script.chmod(0o755)
    command.write("d.dag", "TASK a /bin/cat place\n")
    code, out, err = command.process("pmc", "d.dag", "--host-script", "./prepare")
    assert (code, out.startswith("here\n"), "prepared\n" in err) == (0, True, True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(command.read("pid")), 0)
    command.write("prepare", "#!/bin/sh\nexit 4\n")
    code, out, err = command.process("pmc", "d.dag", "-s", PMC_HOST_SCRIPT="./prepare")
    assert (code, out) == (1, "")
    assert "the host script ./prepare failed: exit status 4; no task was started" in err


# -- forwarding -------------------------------------------------------------------------------------


def test_pipes_are_forwarded(command):
    """What is too much for a pipe, from several tasks at a time, into one file: none is mixed with another."""
    script = "for i in $(seq 3000); do echo $PMC_TASK-$i-$(printf %050d 0); done >&$OUT; echo log >&$LOG"
    lines = [f"TASK t{at} -f OUT=new/folder/out -f LOG=log /bin/sh -c '{script}'" for at in range(4)]
    command.write(
        "d.dag", "\n".join([*lines, "TASK bad -f OUT=new/folder/out /bin/sh -c 'echo bad >&$OUT; exit 1'"])
    )
    code, out, _ = command.process("pmc", "d.dag", "-j", "4", "--host-cpus", "4")
    assert (code, summary(out)["failed"]) == (1, "1")
    text = command.read("new/folder/out")
    assert len(text.splitlines()) == 12_000
    for at in range(4):
        assert "".join(f"t{at}-{i}-{0:050}\n" for i in range(1, 3001)) in text
    assert command.read("log") == "log\n" * 4


def test_files_are_forwarded(command):
    command.write("all", "before\n")
    command.write(
        "d.dag",
        "TASK a -F a.tmp=all -F none.tmp=none /bin/sh -c 'echo a > a.tmp'\n"
        "TASK b -F b.tmp=all /bin/sh -c 'echo b > b.tmp; exit 1'\n"
        "TASK c -F c.tmp=all /bin/mkdir c.tmp\n",
    )
    code, out, err = command.process("pmc", "d.dag", "-j", "1")
    assert code == 1
    assert {task["name"]: task["status"] for task in records(out)} == {"a": "0", "b": "256", "c": "256"}
    assert command.read("all") == "before\na\n"
    assert "task c: can't forward c.tmp: it is not a file" in err
    assert not (command.folder / "a.tmp").exists()
    assert not (command.folder / "b.tmp").exists()
    assert not (command.folder / "none").exists()


def test_what_can_not_be_forwarded_is_not_done(command):
    command.write("file", "")
    command.write("d.dag", "TASK a -f OUT=file/x /bin/sh -c 'echo x >&$OUT'\nTASK b /bin/true\nEDGE a b\n")
    code, out, err = command.process("pmc", "d.dag")
    assert (code, [(task["name"], task["status"]) for task in records(out)]) == (1, [("a", "256")])
    assert "task a: can't forward" in err
    assert done_in(command.folder / "d.dag.rescue") == []


# -- ends -------------------------------------------------------------------------------------------


def test_after_a_kill_the_rest_is_done_and_nothing_of_before_lives(command):
    lines = [f"TASK t{at} /bin/sh -c 'echo $PMC_TASK >> ran'" for at in range(20)]
    lines.insert(10, "TASK slow /bin/sh -c 'echo $$ > pid; test -e go || exec sleep 1000'")
    command.write("d.dag", "\n".join([*lines, *(f"EDGE slow t{at}" for at in range(10, 20))]))
    process = command.start("pmc", "d.dag", "-j", "2", "--host-cpus", "2")
    rescue = command.folder / "d.dag.rescue"
    wait_for(lambda: len(done_in(rescue)) == 10 and (command.folder / "pid").exists())
    process.kill()
    process.communicate(timeout=LIMIT_S)
    pid = int(command.read("pid"))
    wait_for(lambda: not Path(f"/proc/{pid}").exists())

    command.write("go", "")
    code, out, err = command.process("pmc", "d.dag")
    assert (code, sorted(command.read("ran").split())) == (0, sorted(f"t{at}" for at in range(20)))
    assert {task["name"] for task in records(out)} == {"slow", *(f"t{at}" for at in range(10, 20))}
    assert "21 tasks, 10 of them done before" in err
    assert pegasus_is_content(out)


def test_killed_again_and_again_it_leaves_nothing_out_and_does_little_twice(command):
    count, kills, slots = 240, 5, 2
    lines = [f"TASK t{at} /bin/sh -c 'echo t{at} >> ran'" for at in range(count)]
    edges = [(at, at + 3) for at in range(count - 3)]
    command.write("d.dag", "\n".join([*lines, *(f"EDGE t{a} t{b}" for a, b in edges)]))
    rescue = command.folder / "d.dag.rescue"
    printed = ""
    for kill in range(1, kills + 1):
        process = command.start("pmc", "d.dag", "-j", str(slots), "--host-cpus", str(slots))
        wait_for(lambda kill=kill: len(done_in(rescue)) >= kill * 30)
        process.kill()
        printed += process.communicate(timeout=LIMIT_S)[0]
    code, out, _ = command.process("pmc", "d.dag")
    assert (code, sorted(set(done_in(rescue)))) == (0, sorted(f"t{at}" for at in range(count)))
    ran = command.read("ran").split()
    assert set(ran) == {f"t{at}" for at in range(count)}
    # Those that ran, and those whose end was just being written down.
    assert len(ran) <= count + kills * 2 * slots
    first = {name: at for at, name in reversed(list(enumerate(ran)))}
    assert all(first[f"t{a}"] < first[f"t{b}"] for a, b in edges)
    # Each task's record came out, of some run.
    assert {task["name"] for task in records(printed + out)} == set(ran)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_a_signal_ends_what_runs_and_says_so(command, number, code):
    command.write(
        "d.dag",
        "TASK a /bin/echo a\nTASK b /bin/sh -c 'echo half; echo > running; sleep 1000'\nTASK c /bin/true\n"
        "EDGE a b\nEDGE b c\n",
    )
    process = command.start("pmc", "d.dag")
    wait_for((command.folder / "running").exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert [(task["name"], task["status"]) for task in records(out)] == [("a", "0"), ("b", "15")]
    assert "half\n[cluster-task name=b" in out
    assert (summary(out)["stat"], pegasus_is_content(out)) == ('"failed"', False)
    assert f"stopped by {signal.Signals(number).name}; what runs (1) is ended" in err


def test_the_wall_time(command):
    command.write(
        "d.dag",
        "TASK a /bin/sh -c 'echo out; trap \"\" TERM; sleep 1000 & wait; sleep 1000'\nTASK b -p 1 /bin/true\n",
    )
    began_s = time.monotonic()
    code, out, err = command.process("pmc", "d.dag", PMC_MAX_WALL_TIME="0.02")
    assert (code, summary(out)["stat"]) == (1, '"failed"')
    assert [(task["name"], task["status"]) for task in records(out)] == [("b", "0"), ("a", "9")]
    assert "stopped: the wall time of 0.02 min is over" in err
    assert time.monotonic() - began_s < 50
    assert done_in(command.folder / "d.dag.rescue") == ["b"]


def test_what_was_not_printed_is_not_done(command):
    """The reader of standard output leaves."""
    command.write("d.dag", "".join(f"TASK t{at} /bin/echo t{at}\n" for at in range(2000)))
    process = command.start("pmc", "d.dag", "-j", "1")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 1
    assert first == "t0\n"
    done = done_in(command.folder / "d.dag.rescue")
    assert "t0" in done
    assert len(done) < 2000
    assert "can't write the outputs of tasks: Broken pipe" in process.stderr.read()
    code, out, _ = command.process("pmc", "d.dag")
    assert (code, len(records(out))) == (0, 2000 - len(done))


def test_one_run_of_a_dag_at_a_time(command):
    command.write("d.dag", "TASK a /bin/sh -c 'echo > running; exec sleep 1000'\n")
    command.start("pmc", "d.dag")
    wait_for((command.folder / "running").exists)
    code, out, err = command.process("pmc", "d.dag")
    assert (code, out) == (2, "")
    assert "d.dag: another process runs this DAG just now" in err


def test_five_thousand_tasks_and_25_thousand_edges(command):
    """In layers: each task waits for five of the layer before."""
    width = 250
    lines = [f"TASK t{at} /bin/true" for at in range(5_000)]
    edges = [
        (at - width - at % width + (at * 7 + step * 11) % width, at)
        for at in range(width, 5_000 + width)
        for step in range(5)
        if at < 5_000
    ]
    edges += [(at, 4_999) for at in range(4_750, 4_999)]
    edges += [(at, at + 4_750) for at in range(249)] + [(at, at + 2_500) for at in range(752)]
    command.write("d.dag", "\n".join([*lines, *(f"EDGE t{a} t{b}" for a, b in edges)]))
    assert len(edges) == 25_000
    began = subprocess.run(
        [sys.executable, "-m", "mtask", "pmc", "d.dag", "-q"],
        cwd=command.folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (began.returncode, began.stderr) == (0, "")
    place = {task["name"]: at for at, task in enumerate(records(began.stdout))}
    assert len(place) == 5_000
    assert all(place[f"t{a}"] < place[f"t{b}"] for a, b in edges)
    assert pegasus_is_content(began.stdout)


# -- bad input --------------------------------------------------------------------------------------


def test_malformed_lines_are_named_and_nothing_starts(command):
    command.write("d.dag", "TASK a /bin/touch ran\nTASK\n\nEDGE a b\n")
    code, out, err = command.process("pmc", "d.dag")
    assert (code, out) == (2, "")
    assert err.splitlines()[0].startswith("mtask: d.dag, line 2: a TASK needs a name")
    assert err.splitlines()[1:] == ["d.dag, line 4: there is no task 'b'"]
    assert not (command.folder / "ran").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["no.dag"], "no.dag: can't open the DAG: No such file or directory"),
        (["."], ".: can't open the DAG: Is a directory"),
        (["d.dag", "-r", "no/rescue"], "can't write no/rescue"),
        (["d.dag", "-o", "no/out"], "can't write no/out: No such file or directory"),
        (["d.dag", "--host-memory", "much"], "--host-memory"),
        (["d.dag", "--max-wall-time", "-1"], "is not a number of minutes"),
        (["d.dag", "--tries", "0"], "the least is 1"),
        (["d.dag", "--host-script", "no/script"], "can't start the host script no/script"),
    ],
)
def test_wrong_usage(command, args, said):
    command.write("d.dag", "TASK a /bin/touch ran\n")
    code, out, err = command.process("pmc", *args)
    assert (code in (1, 2), out, said in err) == (True, "", True)
    assert not (command.folder / "ran").exists()


def test_a_rescue_file_that_can_not_be_read(command):
    command.write("d.dag", DIAMOND)
    command.write("d.dag.rescue", "\nDONE A\nDONE\nDONE Z\nDUNE B\n")
    code, out, err = command.process("pmc", "d.dag")
    assert (code, out) == (2, "")
    assert [line.split(": ")[-2 if ":" in line else -1] for line in err.splitlines()]
    assert re.findall(r"d\.dag\.rescue, line (\d)", err) == ["3", "4", "5"]


def test_a_name_with_any_letter_is_found_again(command):
    command.write("d.dag", "TASK a\u00a0b\u2028c /bin/true\n")
    assert [command.process("pmc", "d.dag").code for _ in range(2)] == [0, 0]


def test_a_rescue_file_of_pegasus_is_taken_up(command):
    command.write("d.dag", DIAMOND)
    command.write("d.dag.rescue", "\nDONE A\nDONE B")
    code, out, _ = command.process("pmc", "d.dag")
    assert (code, sorted(task["name"] for task in records(out))) == (0, ["C", "D"])


def test_a_record_that_was_cut_short_names_no_other_task(command):
    command.write("d.dag", "TASK t1 /bin/echo 1\nTASK t12 /bin/echo 12\n")
    assert command.process("pmc", "d.dag").code == 0
    rescue = command.folder / "d.dag.rescue"
    header = rescue.read_text().splitlines()[0]
    rescue.write_text(f"{header}\n\nDONE t1")  # the beginning of `DONE t12`
    _, out, _ = command.process("pmc", "d.dag")
    assert sorted(task["name"] for task in records(out)) == ["t1", "t12"]

"""Which attempts there are, when, and what ends them: retries, expiry, delay, memory, checkpoints."""

from __future__ import annotations

import time

import msgspec
import pytest

import mtask
from mtask.model import Message


@pytest.fixture
def done(command):
    """Runs tasks 0, 1, 2 of a function body with the options, and gives their results."""

    def run(body: str, *options: str, rows: int = 3):
        command.write("m.py", f"import os, time, mtask\n\ndef f(x: int):\n{body}")
        command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(rows)))
        command("run", "t.csv", "--call", "m:f", "--bag", "b", "-j", "1", *options)
        with mtask.connect() as mt:
            return list(mt.bag("b").results())

    return run


def test_fail_is_final(done):
    results = done("    if x == 1:\n        raise mtask.Fail('never')\n    return x\n")
    assert [(r.state.value, r.attempt) for r in results] == [("done", 1), ("failed", 1), ("done", 1)]
    assert results[1].error.type == "mtask.task.Fail"


def test_retry_names_its_pause(done):
    results = done(
        "    if x == 1 and not os.path.exists('seen'):\n"
        "        open('seen', 'w').close()\n        raise mtask.Retry(0.2)\n    return x\n"
    )
    assert [r.attempt for r in results] == [1, 2, 1]
    with mtask.connect() as mt:
        (first,) = mt.bag("b").attempts()
    assert first.error.retry_after_s == 0.2
    assert results[1].started_at - first.finished_at >= 0.2


def test_only_some_exceptions_are_tried_again(done):
    body = "    raise [FileNotFoundError, KeyError, ValueError][x]('no')\n"
    results = done(
        body, "--retries", "1", "--retry-on", "OSError,LookupError", "--no-retry", "builtins.KeyError"
    )
    assert [r.attempt for r in results] == [2, 1, 1]


def test_only_some_exit_codes_are_tried_again(command):
    command.write("t.csv", "x\n1\n75\n")
    command("run", "t.csv", "--shell", "exit $x", "--bag", "b", "--retries", "1", "--retry-on", "75")
    with mtask.connect() as mt:
        assert [r.attempt for r in mt.bag("b").results()] == [1, 2]


def test_tasks_that_have_not_started_expire(command):
    command.write("t.csv", "x\n1\n2\n")
    command("submit", "t.csv", "--run", "echo {x}", "--bag", "b", "--expires", "0.01")
    time.sleep(0.02)
    command("worker", "--idle-exit", "0.2")
    with mtask.connect() as mt:
        assert mt.bag("b").counts() == mtask.Counts(total=2, expired=2)
        assert [r.error.message for r in mt.bag("b").results()] == [
            "not started within 0.01 s of its submit"
        ] * 2
    assert "2 × not started within" in command("status", "b").out


def test_what_expired_can_be_sent_again_and_has_its_time_anew(command):
    command.write("t.csv", "x\n1\n2\n")
    command("submit", "t.csv", "--run", "echo {x}", "--bag", "b", "--expires", "5")
    with mtask.connect() as mt:
        deliveries = mt.queue.receive(max_messages=9, lease_s=60, wait_s=1)
        late = [msgspec.structs.replace(Message.decode(d.body), expires_at=1.0) for d in deliveries]
        mt.queue.delete(deliveries)
        mt.queue.send(late)
    command("worker", "--idle-exit", "0.2")
    with mtask.connect() as mt:
        assert mt.bag("b").counts().expired == 2
    retried_at = time.time()
    command("retry", "b")
    with mtask.connect() as mt:
        deliveries = mt.queue.receive(max_messages=9, lease_s=60, wait_s=1)
        assert min(Message.decode(d.body).expires_at for d in deliveries) >= retried_at + 5
        mt.queue.release(deliveries)
    command("worker", "--idle-exit", "0.2")
    with mtask.connect() as mt:
        assert mt.bag("b").counts() == mtask.Counts(total=2, done=2)


def test_the_attempts_of_all_rounds_stay(done, command):
    done("    raise mtask.Retry(0)\n", "--retries", "1", rows=2)
    command("retry", "b")
    command("worker", "--idle-exit", "0.2")
    with mtask.connect() as mt:
        kept = [(result.index, result.attempt) for result in mt.bag("b").attempts()]
        assert kept == [(index, attempt) for index in (0, 1) for attempt in (1, 1, 2)]
        assert [result.attempt for result in mt.bag("b").results()] == [2, 2]


@pytest.mark.parametrize("how", ["call", "shell"])
def test_the_rest_of_a_message_expires_too(command, how):
    command.write("m.py", "import time\n\ndef f(x: int):\n    time.sleep(0.2)\n    return x\n")
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(20)))
    what = ["--call", "m:f"] if how == "call" else ["--shell", "sleep 0.2"]
    command("run", "t.csv", *what, "--bag", "b", "--expires", "2", "--per-message", "20", "-j", "1")
    with mtask.connect() as mt:
        counts = mt.bag("b").counts()
    assert counts.done + counts.expired == 20
    assert 1 <= counts.done <= 10


def test_nothing_starts_before_its_time(command):
    command.write("t.csv", "x\n1\n2\n")
    began_at = time.time()
    command("run", "t.csv", "--run", "echo {x}", "--bag", "b", "--not-before", "0.6")
    with mtask.connect() as mt:
        assert min(r.started_at for r in mt.bag("b").results()) >= began_at + 0.6


@pytest.mark.parametrize("how", ["call", "run"])
def test_a_task_that_takes_too_much_memory(command, how):
    command.write(
        "m.py",
        "import sys, time\n\ndef f(mb: int):\n    hog = bytearray(mb << 20)\n    time.sleep(0.6)\n    return len(hog)\n\n"
        "if __name__ == '__main__':\n    f(int(sys.argv[1]))\n",
    )
    command.write("t.csv", "mb\n1\n400\n2\n")
    what = ["--call", "m:f"] if how == "call" else ["--run", "python3 m.py {mb}"]
    assert command("run", "t.csv", *what, "--bag", "b", "--memory", "200MB", "--retries", "0").code == 1
    with mtask.connect() as mt:
        small, large, other = mt.bag("b").results()
    assert (small.state, other.state) == ("done", "done")
    assert large.error.reason == "memory"
    assert "it may take 200 MB" in large.error.message


def test_how_much_of_the_output_is_kept(done):
    results = done("    print('y' * 100_000)\n", "--tail", "1KiB", rows=1)
    assert len(results[0].stdout) == 1024


def test_a_checkpoint_is_found_by_the_next_attempt_and_gone_at_the_end(done, command):
    results = done(
        "    place = os.path.join(mtask.checkpoint_dir(), 'step')\n"
        "    step = int(open(place).read()) if os.path.exists(place) else 0\n"
        "    if step < 2:\n        open(place, 'w').write(str(step + 1))\n        raise mtask.Retry(0)\n"
        "    return step\n"
    )
    assert [(r.value, r.attempt) for r in results] == [(2, 3)] * 3
    assert not list((command.folder / ".mtask" / "checkpoints").rglob("step"))


def test_a_command_has_a_checkpoint_too(command):
    command.write("t.csv", "x\n1\n")
    script = 'mkdir -p "$MTASK_CHECKPOINT_DIR"; cd "$MTASK_CHECKPOINT_DIR"; test -e mark && exit 0; touch mark; exit 1'
    assert command("run", "t.csv", "--shell", script, "--bag", "b").code == 0
    assert not list((command.folder / ".mtask" / "checkpoints").rglob("mark"))


def test_outside_of_a_task():
    assert mtask.stopping() is False
    with pytest.raises(mtask.UsageError, match="for tasks"):
        mtask.checkpoint_dir()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--memory", "much"), "'much' is not a size"),
        (("--not-before", "soon"), "'soon' is neither a time from now"),
        (("--retry-on", "a,,b"), "empty name"),
    ],
)
def test_options_that_make_no_sense(command, option, said):
    command.write("t.csv", "x\n1\n")
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", *option)
    assert (code, said in err) == (2, True)
    assert command.sent_nothing()

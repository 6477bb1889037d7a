"""An interrupted submit goes on by the same command: nothing twice, nothing missing (promise 7)."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections import Counter

import pytest

import mtask
from mtask.model import BagState, Message
from mtask.registry import open_queue, open_table

ROWS = [{"x": n} for n in range(500)]
CALLS = ("put_blocks", "update_bag", "send", "create_bag")
KILLED_IN_SENDING = """
import os, signal, sys
import mtask.submitting
from mtask.cli import main

real, calls = mtask.submitting.send_all, 0

def send_all(queue, messages, **options):
    global calls
    calls += 1
    real(queue, messages[: len(messages) // 2] if calls == 3 else messages, **options)
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)

mtask.submitting.send_all = send_all
main()
"""


class Killed(BaseException):
    """Stands for kill -9: nothing after it happens."""


class Fragile:
    """A queue or a table without a common transaction, which is killed before or after its n-th write."""

    def __init__(self, real, fuse):
        self._real, self._fuse = real, fuse

    def __getattr__(self, name):
        method = getattr(self._real, name)
        if name == "transaction":
            return lambda queue: contextlib.nullcontext()
        if name not in CALLS:
            return method

        def guarded(*args, **kwargs):
            self._fuse(f"before {name}")
            result = method(*args, **kwargs)
            self._fuse(f"after {name}")
            return result

        return guarded


class Fuse:
    def __init__(self, blows_at):
        self._left = blows_at

    def __call__(self, place):
        self._left -= 1
        if self._left == 0:
            raise Killed(place)


def submit(folder, blows_at=0):
    """True: it came to its end."""
    url = f"sqlite:///{folder}/t.db"
    fuse = Fuse(blows_at)
    with mtask.Manager(Fragile(open_queue(url), fuse), Fragile(open_table(url), fuse)) as mt:
        try:
            mt.submit(ROWS, run="echo {x}", bag="b", per_message=2)
        except Killed:
            return False
    return True


def messages(folder):
    queue = open_queue(f"sqlite:///{folder}/t.db")
    try:
        while got := queue.receive(max_messages=1000, lease_s=60, wait_s=0):
            yield from (Message.decode(delivery.body) for delivery in got)
            queue.delete(got)
    finally:
        queue.close()


def test_killed_at_every_point_between_two_writes(tmp_path):
    blows_at, whole = 0, False
    while not whole:
        blows_at += 1
        folder = tmp_path / str(blows_at)
        folder.mkdir()
        whole = submit(folder, blows_at)
        assert submit(folder)
        sent, unsure = Counter(), Counter()
        for message in messages(folder):
            (unsure if message.check else sent).update(range(message.first, message.first + message.count))
        assert set(sent) | set(unsure) == set(range(500)), blows_at
        assert set(sent.values()) | set(unsure.values()) <= {1}, blows_at
        # What may be in the queue twice is one batch, and workers look for its rows before running it.
        assert len(set(sent) & set(unsure)) <= 128
        assert len(unsure) <= 128, "and no other costs them that look"
        with mtask.connect(f"sqlite:///{folder}/t.db") as mt:
            info = mt.bag("b").info
            assert (info.state, info.total, info.sent) == (BagState.SEALED, 500, 500)
            assert [task.params["x"] for task in mt.bag("b").tasks()] == [row["x"] for row in ROWS]
    assert blows_at > 30


def test_killed_twice(tmp_path):
    assert not submit(tmp_path, 14)
    assert not submit(tmp_path, 9)
    assert submit(tmp_path)
    assert {n for m in messages(tmp_path) for n in range(m.first, m.first + m.count)} == set(range(500))


@pytest.mark.parametrize("worked_between", [False, True])
def test_kill_9_of_the_command_while_it_sends(command, worked_between):
    command.write(
        "m.py",
        "import os\n\ndef note(x: int):\n"
        "    fd = os.open('notes', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "    os.write(fd, b'%d\\n' % x)\n    os.close(fd)\n",
    )
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(3000)))
    args = ["t.csv", "--call", "m:note", "--bag", "b", "--per-message", "10"]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_SENDING, "submit", *args], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with mtask.connect() as mt:
        info = mt.bag("b").info
        assert (info.state, info.sent) == (BagState.OPEN, 1280)
    assert "being submitted" in command("status", "b").out
    if worked_between:
        assert command("worker", "--idle-exit", "0.3", "-q").code == 0
        assert len(command.results("b")) == 1280
    code, _, err = command("run", *args)
    assert code == 0, err
    assert [result.index for result in command.results("b")] == list(range(3000))
    assert Counter(map(int, command.read("notes").split())) == Counter(range(3000))


def test_another_file_does_not_go_on(command):
    command.write("t.csv", "x\n1\n2\n")
    command("submit", "t.csv", "--run", "echo {x}", "--bag", "b")
    command.write("t.csv", "x\n1\n3\n")
    code, _, err = command("submit", "t.csv", "--run", "echo {x}", "--bag", "b")
    assert (code, "holds other tasks" in err) == (2, True)


LONG = "long" * 100


@pytest.mark.parametrize(
    ("text", "shell", "said"),
    [
        (f"x\n{LONG}1\n{LONG}3\n", "true", "holds other tasks"),
        (f"x\n{LONG}1\n", "true", "holds other tasks"),
        (f"y\n{LONG}1\n{LONG}2\n", "true", "holds other tasks"),
        (f"x\n{LONG}1\n{LONG}2\n", "false", "runs something else (true)"),
    ],
)
def test_what_differs_is_named(command, text, shell, said):
    command.write("t.csv", f"x\n{LONG}1\n{LONG}2\n")
    command("submit", "t.csv", "--shell", "true", "--bag", "b")
    command.write("t.csv", text)
    code, _, err = command("submit", "t.csv", "--shell", shell, "--bag", "b")
    assert (code, said in err) == (2, True)


def test_in_an_hour_is_another_time_when_it_is_said_again(command):
    command.write("t.csv", "x\n1\n2\n")
    args = ["submit", "t.csv", "--run", "echo {x}", "--bag", "b", "--not-before", "1h"]
    assert [command(*args).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("by_row", [True, False])
def test_a_bag_of_another_growth_goes_on_in_its_own_blocks(tmp_path, explicit, by_row):
    """As one that was begun on another queue, or by an older version."""
    rows = [{"x": n, "tags": "ab"[n // 700 % 2]} if by_row else {"x": n} for n in range(3000)]
    name = {"bag": "b"} if explicit else {}

    def submit(mt, growth):
        bag = mt.submit(rows, run="echo {x}", growth=growth, **name)
        return bag.name, [(b.first, b.count, b.lane != "", bytes(b.rows)) for b in mt.table.blocks(bag.name)]

    def connect(name):
        return mtask.connect(f"sqlite:///{tmp_path}/{name}.db", f"sqlite:///{tmp_path}/{name}-t.db")

    with connect("whole") as mt:
        _, wanted = submit(mt, 10)
    with connect("broken") as mt:
        real, count = mt.table.put_blocks, 0

        def put_blocks(blocks):
            nonlocal count
            count += 1
            if count == 2:
                raise Killed
            real(blocks)

        mt.table.put_blocks = put_blocks
        with pytest.raises(Killed):
            submit(mt, 10)
        mt.table.put_blocks = real
        found = submit(mt, 250)
        assert found[1] == wanted
        assert mt.info(found[0]).spec.growth == 10
        if explicit:
            assert submit(mt, 99) == found, "and when it is complete"

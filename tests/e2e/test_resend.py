"""`retry` and `repair`: what is sent again, and what isn't."""

from __future__ import annotations

import contextlib
import time

import msgspec
import pytest

import mtask
from mtask import resend
from mtask.model import BagState, Message, State
from mtask.testing.samples import a_failed


@pytest.fixture
def bag(command):
    """Tasks 0 to 19: those of 3 fail by ValueError, those of 5 by OSError, all others are done."""
    command.write(
        "m.py",
        "import os, time\n\ndef f(x: int):\n    time.sleep(0.06 * os.path.exists('slow'))\n"
        "    with open('notes', 'a') as file:\n        file.write(f'{x}\\n')\n"
        "    if os.path.exists('mended'):\n        return x\n"
        "    if x % 3 == 0:\n        raise ValueError(f'{x} is bad')\n"
        "    if x % 5 == 0:\n        raise OSError(f'{x} is gone')\n    return x\n",
    )
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(20)))
    assert (
        command("run", "t.csv", "--call", "m:f", "--bag", "b", "--retries", "0", "--per-message", "4").code
        == 1
    )
    return command


def counts():
    with mtask.connect() as mt:
        return mt.bag("b").counts()


def messages(mt) -> list[Message]:
    """All that are in the queue; they are taken out."""
    deliveries = mt.queue.receive(max_messages=1000, lease_s=60, wait_s=0)
    mt.queue.delete(deliveries)
    return sorted(
        (Message.decode(delivery.body) for delivery in deliveries), key=lambda message: message.first
    )


def runs(command) -> list[int]:
    return sorted(map(int, command.read("notes").split()))


def test_retry_by_a_condition(bag):
    assert "2 tasks sent again" in bag("retry", "b", "--where", "type = OSError").err
    assert (counts().failed, counts().left) == (7, 2)
    bag.write("mended", "")
    bag("worker", "--idle-exit", "0.2")
    assert (counts().done, counts().failed, counts().left) == (13, 7, 0)
    with mtask.connect() as mt:
        assert [result.index for result in mt.bag("b").attempts()] == [5, 10]


def test_rows_are_out_before_their_messages_are_in(bag, monkeypatch):
    """A worker that is quick would find the old row, and take the task for done with."""
    found = []
    with mtask.connect() as mt:
        send = mt.queue.send

        def noting(messages, **options):
            found.append(mt.table.recorded("b", [message.first for message in messages]))
            send(messages, **options)

        monkeypatch.setattr(mt.queue, "send", noting)
        assert mt.bag("b").retry() == 9
    assert found == [set()]


@pytest.mark.parametrize("batch", [1, 2, 4, 9, 10])
def test_retry_sends_all_in_batches(bag, monkeypatch, batch):
    monkeypatch.setattr("mtask.resend.BATCH", batch)
    with mtask.connect() as mt:
        assert mt.bag("b").retry() == 9
        assert [message.first for message in messages(mt)] == [0, 3, 5, 6, 9, 10, 12, 15, 18]
        assert mt.bag("b").info.state is BagState.SEALED


def test_what_is_too_big_for_the_queue_is_sent_again_without_its_rows(bag, monkeypatch):
    bag.write("mended", "")
    with mtask.connect() as mt:
        monkeypatch.setattr(
            mt.queue.main, "limits", msgspec.structs.replace(mt.queue.limits, message_bytes=50)
        )
        mt.bag("b").retry()
        sent = messages(mt)
        assert not any(message.has_rows for message in sent)
        mt.queue.send(sent)
    bag("worker", "--idle-exit", "0.2")
    assert counts().done == 20


def test_a_wrong_condition_sends_nothing(bag):
    code, _, err = bag("retry", "b", "--where", "kind = OSError")
    assert (code, "no field 'kind'" in err) == (2, True)
    assert counts().failed == 9


def test_repair_after_the_queue_was_lost(command):
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(50)))
    command("submit", "t.csv", "--run", "echo {x}", "--bag", "b", "--per-message", "8")
    with mtask.connect() as mt:
        taken = mt.queue.receive(max_messages=100, lease_s=60, wait_s=1)
        mt.queue.delete(taken[2:])  # lost: 34 tasks
        mt.queue.release(taken[:2])
    command("worker", "--idle-exit", "0.2")
    assert counts().left == 34
    assert "34 tasks sent again" in command("repair", "b").err
    command("worker", "--idle-exit", "0.2")
    assert (counts().done, counts().left) == (50, 0)
    assert command("repair", "b").err == "every task has a result\n"


def test_what_repair_sends_is_looked_up_before_it_runs(bag):
    """Of a block it sends the whole, or single tasks."""
    with mtask.connect() as mt:
        mt.table.retract("b", [0, 10])
        mt.table.put_blocks([mtask.model.Block(bag="b", number=5, first=20, count=2, rows=b"[[20],[21]]")])
        mt.table.update_bag("b", total=22)
        assert mt.bag("b").repair() == 4
        sent = [(message.first, message.count, message.check) for message in messages(mt)]
    assert sent == [(0, 1, True), (10, 1, True), (20, 2, True)]


def test_repair_of_what_is_in_the_queue_all_the_same_runs_only_what_is_held_twice(bag):
    bag.write("notes", "")
    bag.write("mended", "")
    bag.write("slow", "")  # of quick tasks, a slot may hold up to 32 messages in advance
    bag("retry", "b")
    bag("repair", "b")
    bag("worker", "--idle-exit", "0.2", "-j", "1")
    assert counts().done == 20
    assert set(runs(bag)) == {0, 3, 5, 6, 9, 10, 12, 15, 18}
    assert len(runs(bag)) <= 9 + 2  # a slot may hold one beside the one that it runs


def test_a_cancelled_bag_is_taken_up_again_and_old_messages_are_void(command):
    command.write("t.csv", "x\n" + "".join(f"{n}\n" for n in range(10)))
    command("submit", "t.csv", "--shell", "echo $x >> notes", "--bag", "b")
    command("cancel", "b")
    assert "10 tasks sent again" in command("retry", "b").err
    command("worker", "--idle-exit", "0.2")
    assert (counts().done, counts().left) == (10, 0)
    assert runs(command) == list(range(10))
    with mtask.connect() as mt:
        assert mt.queue.depth() == (0, 0, 0)
        assert not list(mt.table.dead())


@pytest.mark.parametrize("verb", ["retry", "repair", "run"])
def test_a_retry_that_was_killed_is_gone_on_with(bag, verb):
    """Killed after it took the rows out, and before it sent anything."""
    bag.write("mended", "")
    with mtask.connect() as mt:
        mt.table.update_bag("b", state=BagState.RESENDING)
        mt.table.retract("b", range(10))
    args = ["t.csv", "--call", "m:f", "--bag", "b", "--retries", "0", "--per-message", "4"]
    assert bag(verb, *(args if verb == "run" else ["b"])).code in (0, 1)
    bag("worker", "--idle-exit", "0.2")
    with mtask.connect() as mt:
        rows = {result.index: result.state for result in mt.bag("b").results()}
        assert set(rows) == set(range(20))
        assert all(rows[index] is State.DONE for index in range(10))
        assert mt.bag("b").info.state is BagState.SEALED


@pytest.mark.parametrize("sealed", [False, True])
def test_a_retry_of_an_open_bag_that_was_killed_is_gone_on_with(command, monkeypatch, sealed):
    """Killed after it took the row out; then the bag may be sealed."""

    class Killed(BaseException):
        pass

    def killed(*_args):
        raise Killed

    with mtask.connect() as mt:
        bag = mt.submit([{"x": 1}], run="echo {x}", bag="b", open=True)
        messages(mt)
        mt.table.record([a_failed(0, bag="b")])
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(mt.table, "transaction", lambda _queue: contextlib.nullcontext())
            patch.setattr(resend, "_send", killed)
            bag.retry()
        if sealed:
            bag.seal()
        assert bag.retry() == 1
        assert [message.first for message in messages(mt)] == [0]
        assert bag.retry() == 0
        assert bag.info.state is (BagState.SEALED if sealed else BagState.OPEN)


def test_an_open_bag_is_not_retried(command):
    command.write("t.csv", "x\n1\n")
    command("submit", "t.csv", "--run", "false", "--bag", "b")
    with mtask.connect() as mt:
        mt.table.update_bag("b", state=BagState.OPEN)
    for verb in ("retry", "repair"):
        code, _, err = command(verb, "b")
        assert code == 2
        assert "submit" in err


def test_tasks_of_a_key_that_expired_have_their_time_anew(command):
    command.write("m.py", "def f(x: int):\n    return x\n")
    command.write("t.csv", "x,who\n" + "".join(f"{x},a\n" for x in range(3)))
    command("submit", "t.csv", "--call", "m:f", "--bag", "b", "--serial", "who", "--expires", "0.1s")
    time.sleep(0.15)
    command("worker", "--idle-exit", "0.5")
    with mtask.connect() as mt:
        assert mt.bag("b").counts().expired == 3
        assert mt.bag("b").retry() == 3
        (message,) = messages(mt)
        assert message.expires_at > time.time() - 5
        mt.queue.send([msgspec.structs.replace(message, expires_at=time.time() + 60)])
    command("worker", "--idle-exit", "0.5")
    assert (counts().done, counts().expired) == (3, 0)

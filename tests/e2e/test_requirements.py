"""What tasks need, how they are limited, and what makes two of them one: from the command to the queue."""

from __future__ import annotations

import contextlib
import sys
import time

import msgspec
import pytest

import mtask
from mtask.heartbeat import WorkerStatus
from mtask.model import Message
from mtask.requirements import Capabilities, Requirements

FUNCTIONS = """
def f(x: int, sample: str = ""):
    return x

def with_needs(x: int, cpus: float, memory: str):
    return [x, cpus, memory]
"""
CALL = ("--call", "m:f")
ROWS = "x,sample\n1,a\n2,b\n3,a\n4,\n5,\n6,b\n"


@pytest.fixture
def command(command, monkeypatch):
    monkeypatch.delenv("MTASK_TAGS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command.write("m.py", FUNCTIONS)
    command.write("t.csv", ROWS)
    return command


def info(bag: str) -> mtask.Bag:
    with mtask.connect() as mt:
        return mt.bag(bag).info


def messages(bag: str) -> list[Message]:
    """All that were sent of a bag, in whatever lanes; they are taken out."""
    with mtask.connect() as mt:
        lanes = ["", *(lane.name for lane in mt.bag(bag).info.lanes)]
        found = [
            Message.decode(delivery.body)
            for lane in lanes
            for delivery in mt.queue.receive(max_messages=1000, lease_s=60, wait_s=0, lane=lane)
        ]
    return sorted((each for each in found if each.bag == bag), key=lambda message: message.first)


def a_worker(name: str, state: str = "working", **can) -> None:
    """Is entered in the table as if it were there."""
    with mtask.connect() as mt:
        able = Capabilities(**can)
        mt.table.beat(
            WorkerStatus(worker=name, host="h", pid=1, slots=1, state=state, can=able, beat_at=time.time())
        )


class TestOptions:
    def test_the_needs_of_all_tasks(self, command):
        options = (
            "--cpus",
            "0.5",
            "--memory",
            "8GB",
            "--gpus",
            "1",
            "--tags",
            "eu,!spot,blast",
            "--only-on",
            "b,a",
        )
        limits = ("--priority", "high", "--max-running", "3", "--rate", "600/min")
        code, _, err = command("submit", "t.csv", *CALL, *options, *limits, "--bag", "b")
        assert code == 0
        assert "bag 'b': 6 tasks; `mtask worker --tags a,blast,eu` runs them" in err
        spec = info("b").spec
        assert spec.requires == Requirements(
            cpus=0.5, memory_bytes=8 * 10**9, gpus=1, tags=("!spot", "blast", "eu"), only_on=("a", "b")
        )
        assert (spec.priority, spec.max_running, spec.rate) == (1, 3, 10)
        (lane,) = info("b").lanes
        assert (lane.requires, lane.priority, lane.max_running, lane.rate) == (spec.requires, 1, 3, 10)
        assert {(message.lane, message.count) for message in messages("b")} == {(lane.name, 1)}

    def test_who_asks_for_nothing_is_in_the_queue_itself(self, command):
        command("submit", "t.csv", *CALL, "--cpus", "1", "--priority", "normal", "--bag", "b")
        assert info("b").lanes == ()
        assert {message.lane for message in messages("b")} == {""}

    def test_the_same_in_other_words_is_the_same_bag(self, command):
        command(
            "submit", "t.csv", *CALL, "--bag", "b", "--tags", "a,b", "--memory", "8GB", "--rate", "60/min"
        )
        _, _, err = command(
            "submit", "t.csv", *CALL, "--bag", "b", "--tags", "b a b", "--memory", "8000MB", "--rate", "1/s"
        )
        assert "bag 'b': going on, 6 of 6 tasks are left" in err
        assert len(messages("b")) == 6

    def test_other_needs_are_another_bag(self, command):
        command("submit", "t.csv", *CALL, "--bag", "b", "--cpus", "2")
        code, _, err = command("submit", "t.csv", *CALL, "--bag", "b", "--cpus", "3")
        assert (code, "it has other options: cpus=2.0 (now 3.0)" in err) == (2, True)

    def test_run_quietly_says_nothing(self, command):
        command.write("c.csv", "x,cpus\n1,1\n1,\n")
        code, out, err = command("run", "c.csv", *CALL, "--key", "x", "-q")
        assert (code, out, err) == (0, "", "")


class TestColumns:
    def test_each_row_in_its_lane_and_told_so(self, command):
        command.write(
            "c.csv", 'x,cpus,memory,tags,priority\n1,,,,\n2,2,1GB,"eu,blast",high\n3,2,1000MB,blast eu,1\n'
        )
        _, _, err = command("submit", "c.csv", *CALL, "--bag", "b", "--priority", "low")
        assert (
            "note: the columns cpus, memory, priority and tags say what each task needs of its worker\n"
            in err
        )
        lanes = {lane.name: lane for lane in info("b").lanes}
        of = [lanes[message.lane] for message in messages("b")]
        assert [lane.priority for lane in of] == [-1, 1, 1]
        assert [str(lane.requires) for lane in of] == ["", *["cpus=2 memory=1GB tags=blast,eu"] * 2]

    def test_they_stay_parameters(self, command):
        command.write("c.csv", "x,cpus,memory\n1,2,100MB\n")
        assert command("run", "c.csv", "--call", "m:with_needs", "-j", "2", "--bag", "call").code == 0
        assert [result.value for result in command.results("call")] == [[1, 2.0, "100MB"]]
        assert command("run", "c.csv", "--run", "echo {cpus} {memory}", "-j", "2", "--bag", "run").code == 0
        assert [result.stdout for result in command.results("run")] == ["2 100MB\n"]
        assert command("run", "c.csv", *CALL, "-j", "2", "--bag", "without").code == 0
        assert [result.value for result in command.results("without")] == [1]

    def test_they_tell_bags_apart(self, command):
        command.write("c.csv", "x,cpus\n1,1\n")
        command("submit", "c.csv", *CALL, "--bag", "b")
        command.write("c.csv", "x,cpus\n1,2\n")
        code, _, err = command("submit", "c.csv", *CALL, "--bag", "b")
        assert (code, "the bag 'b' is taken: it holds other tasks" in err) == (2, True)

    def test_an_interrupted_submit_goes_on_in_the_same_lanes(self, command, monkeypatch):
        rows = "".join(f"{n},{n % 3 + 1}\n" for n in range(200))
        command.write("c.csv", f"x,cpus\n{rows}")

        def killed(through):
            raise KeyboardInterrupt

        with mtask.connect() as mt, pytest.raises(KeyboardInterrupt):
            mt.submit("c.csv", call="m:f", bag="b", rate=5, on_sent=killed)
        assert 0 < info("b").sent < 200
        assert command("submit", "c.csv", *CALL, "--bag", "b", "--rate", "5/s").code == 0
        bag = info("b")
        cpus = {lane.name: lane.requires.cpus for lane in bag.lanes}
        assert (bag.state, len(bag.lanes)) == ("sealed", 3)
        sent = messages("b")
        assert {message.first: cpus[message.lane] for message in sent} == {n: n % 3 + 1 for n in range(200)}
        assert len(sent) == 200

    def test_a_column_of_another_meaning(self, command):
        command.write("c.csv", "x,tags\n1,nlp\n2,machine learning; NLP\n")
        code, _, err = command("submit", "c.csv", *CALL)
        assert code == 2
        assert "c.csv, line 3, column 'tags': 'learning;' can't be a tag" in err
        assert "the column 'tags' says what each task needs: rename it if it means something else" in err
        assert command.sent_nothing()


class TestKeys:
    def test_repeated_keys_are_left_out_and_told(self, command):
        code, _, err = command("submit", "t.csv", *CALL, "--key", "sample", "--bag", "b")
        assert code == 0
        assert "note: 2 of 6 rows repeat a value of 'sample' and are left out\n" in err
        with mtask.connect() as mt:
            assert [task.params["x"] for task in mt.bag("b").tasks()] == [1, 2, 4, 5]

    def test_one_repeated_key(self, command):
        command.write("c.csv", "x\n1\n1\n")
        assert (
            "1 of 2 rows repeats a value of 'x' and is left out"
            in command("submit", "c.csv", *CALL, "--key", "x").err
        )

    def test_no_repeated_key_is_not_told(self, command):
        assert "left out" not in command("submit", "t.csv", *CALL, "--key", "x").err

    def test_with_needs_by_row(self, command):
        command.write("c.csv", "x,cpus\n1,1\n1,2\n2,2\n")
        command("submit", "c.csv", *CALL, "--key", "x", "--bag", "b")
        bag = info("b")
        assert [bag.lane(message.lane).requires.cpus for message in messages("b")] == [1, 2]

    def test_of_each_serial_key_the_first_is_sent_and_knows_the_next(self, command):
        command("submit", "t.csv", *CALL, "--serial", "sample", "--bag", "b")
        assert [(message.first, message.then) for message in messages("b")] == [
            (0, 2),
            (1, 5),
            (3, None),
            (4, None),
        ]
        with mtask.connect() as mt:
            assert [(block.count, block.then) for block in mt.table.blocks("b")] == [
                (1, then) for then in (2, 5, None, None, None, None)
            ]

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_a_task_that_ends_while_the_later_ones_are_being_sent_has_them_run(self, command, interrupted):
        """Whoever ends a task sends the next of its key, which the submit has come to by then, or not."""
        command.write("c.csv", "x,sample\n" + "".join(f"{n},{n % 100}\n" for n in range(200)))
        seen = []

        def work(through):
            if not seen:
                seen.append(through)
                command("worker", "--idle-exit", "0.3", "-j", "2")
                if interrupted:
                    raise KeyboardInterrupt

        with mtask.connect() as mt, contextlib.suppress(KeyboardInterrupt):
            mt.submit("c.csv", call="m:f", bag="b", serial="sample", on_sent=work)
        assert seen[0] < 100
        command("submit", "c.csv", *CALL, "--serial", "sample", "--bag", "b")
        command("worker", "--idle-exit", "0.3", "-j", "2")
        results = command.results("b")
        assert [result.value for result in results] == list(range(200))
        assert all(results[n].finished_at <= results[n + 100].started_at for n in range(100))


class TestPython:
    @pytest.fixture
    def mt(self, command):
        sys.path.insert(0, str(command.folder))
        with mtask.connect() as opened:
            yield opened

    def test_as_people_write_it(self, mt):
        options = {
            "cpus": 4,
            "memory": "8GB",
            "gpus": 1,
            "tags": "b,a",
            "only_on": ["eu"],
            "priority": "high",
        }
        bag = mt.submit([{"x": 1}], call="m:f", rate="600/min", max_running=2, **options)
        spec = bag.info.spec
        assert spec.requires == Requirements(
            cpus=4, memory_bytes=8 * 10**9, gpus=1, tags=("a", "b"), only_on=("eu",)
        )
        assert (spec.priority, spec.rate, spec.max_running) == (1, 10, 2)

    def test_the_command_goes_on_with_it(self, mt, command):
        mt.submit("t.csv", call="m:f", bag="b", cpus=2, tags=["b", "a"], memory_bytes=10**9)
        code, _, err = command(
            "submit", "t.csv", *CALL, "--bag", "b", "--cpus", "2", "--tags", "a,b", "--memory", "1GB"
        )
        assert (code, "bag 'b': going on" in err) == (0, True)

    def test_by_row(self, mt):
        rows = [{"x": 1, "cpus": None, "tags": []}, {"x": 2, "cpus": 0.5, "tags": ["eu"]}]
        bag = mt.submit(rows, call="m:f")
        assert [str(lane.requires) for lane in bag.info.lanes] == ["cpus=0.5 tags=eu"]
        assert [task.params["tags"] for task in bag.tasks()] == [[], ["eu"]]

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"memory": "lots"}, "memory: 'lots' is not a size"),
            ({"memory": 8}, "a unit seems to be missing, as in 8GB"),
            ({"cpus": 0}, "cpus must be more than 0"),
            ({"rate": 0}, "a rate must be more than 0"),
            ({"max_running": 0}, "max_running: 0 is not"),
            ({"priority": 10}, "10 is not a priority"),
            ({"tags": "a,!a"}, "exclude each other"),
            ({"key": "y"}, "--key y: rows has no such column; it has x"),
        ],
    )
    def test_wrong(self, mt, command, options, problem):
        with pytest.raises(mtask.UsageError, match=problem):
            mt.submit([{"x": 1}], call="m:f", **options)
        assert command.sent_nothing()

    def test_a_wrong_row(self, mt, command):
        with pytest.raises(
            mtask.InputError, match=r"rows, line 2, column 'gpus': 1\.5 is not a whole number"
        ):
            mt.submit([{"x": 1, "gpus": 1}, {"x": 2, "gpus": 1.5}], call="m:f")
        assert command.sent_nothing()


class TestWorkers:
    """What is said of those that are there when tasks are submitted."""

    def test_none_can(self, command):
        for name in ("w1", "w2", "w3"):
            a_worker(name, cpus=4)
        _, _, err = command("submit", "t.csv", *CALL, "--gpus", "1")
        assert "note: needs gpus=1: none of the 3 workers has that; the tasks wait for one that does\n" in err

    def test_one_can(self, command):
        a_worker("w1")
        a_worker("w2", gpus=("0",), tags=("eu",))
        assert "note" not in command("submit", "t.csv", *CALL, "--gpus", "1", "--only-on", "eu").err

    def test_all_that_a_task_needs_must_be_in_one_place(self, command):
        a_worker("w1", tags=("eu",))
        a_worker("w2", gpus=("0",))
        err = command("submit", "t.csv", *CALL, "--gpus", "1", "--tags", "eu").err
        assert "note: needs gpus=1 tags=eu: none of the 2 workers has that" in err

    def test_those_that_have_stopped_do_not_count(self, command):
        a_worker("w1", "stopped")
        assert "note" not in command("submit", "t.csv", *CALL, "--gpus", "1").err
        a_worker("w2")
        assert "the only worker doesn't have that" in command("submit", "t.csv", *CALL, "--gpus", "2").err

    def test_some_rows(self, command):
        command.write("c.csv", "x,tags\n1,\n2,blast\n3,!spot\n")
        a_worker("w1", tags=("spot",))
        err = command("submit", "c.csv", *CALL).err
        assert (
            "note: needs the tag blast: the only worker doesn't have that; some tasks wait for one that does"
            in err
        )
        assert "note: needs a worker without the tag spot: the only worker doesn't have that" in err

    def test_quietly(self, command):
        a_worker("w1")
        assert command("submit", "t.csv", *CALL, "--gpus", "1", "-q").err == ""
        code, out, err = command("submit", "t.csv", *CALL, "--gpus", "1", "--json", "--bag", "j")
        assert (code, msgspec.json.decode(out)["total"], err) == (0, 6, "")


class TestRun:
    """A local run has what its tasks ask for, or says at once what it hasn't."""

    def test_it_has_the_tags(self, command):
        code, out, _ = command(
            "run", "t.csv", *CALL, "--tags", "blast,!spot", "--priority", "high", "-j", "1"
        )
        assert (code, out.startswith("6 done")) == (0, True)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (
                ("--cpus", "3", "-j", "2"),
                "the tasks need cpus=3, and the worker here has 2, as many as -j says",
            ),
            (("--memory", "900TB"), "the tasks need memory=900TB, and this machine has "),
            (("--gpus", "1"), "the tasks need gpus=1, and this machine has none"),
            (
                ("--only-on", "eu,us"),
                "MTASK_TAGS doesn't say that this machine has one; set it where that is so, or",
            ),
        ],
    )
    def test_it_does_not_wait_for_ever(self, command, monkeypatch, options, problem):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        code, out, err = command("run", "t.csv", *CALL, *options)
        assert (code, out) == (2, "")
        assert problem in err
        assert ", or choose a --queue that other workers serve, too. Nothing was sent" in err
        assert command.sent_nothing()

    def test_of_a_row(self, command):
        command.write("c.csv", "x,cpus\n1,\n2,64\n")
        code, _, err = command("run", "c.csv", *CALL, "-j", "2")
        assert (code, "mtask: some tasks need cpus=64" in err) == (2, True)
        assert command.sent_nothing()

    def test_more_slots_are_more_cpus(self, command):
        assert command("run", "t.csv", *CALL, "--cpus", "3", "-j", "3").code == 0

    def test_where_data_must_stay_the_machine_says_that_it_is_the_place(self, command, monkeypatch):
        monkeypatch.setenv("MTASK_TAGS", "eu-cluster")
        assert command("run", "t.csv", *CALL, "--only-on", "us,eu-cluster", "-j", "1").code == 0
        code, _, err = command("run", "t.csv", *CALL, "--tags", "!eu-cluster", "--bag", "b")
        assert (code, "a worker without the tag eu-cluster, and the one here has it" in err) == (2, True)

    def test_a_wrong_variable_is_named(self, command, monkeypatch):
        monkeypatch.setenv("MTASK_TAGS", "<eu>")
        code, _, err = command("run", "t.csv", *CALL)
        assert (code, "MTASK_TAGS: '<eu>' can't be a tag" in err) == (2, True)

    def test_where_others_serve_the_queue_it_waits_for_them(self, command):
        process = command.start("run", "t.csv", *CALL, "--only-on", "here", "--queue", "sqlite:///q.db")
        worker = command.start("worker", "--tags", "here", "--queue", "sqlite:///q.db", "--idle-exit", "20")
        out, err = process.communicate(timeout=60)
        worker.terminate()
        assert "they wait for another worker that can run them" in err
        assert (process.returncode, out.startswith("6 done")) == (0, True)


WORKER = {
    "no tag": (("--tags", ","), "names no tag"),
    "a strange tag": (("--tags", "a,<b>"), "'<b>' can't be a tag"),
    "not a tag": (("--tags", "!spot"), "only --tags of tasks may say"),
    "no cpu": (("--cpus", "0"), "cpus must be more than 0"),
    "no unit": (("--memory", "64"), "a unit seems to be missing, as in 64GB"),
    "no gpu": (("--gpus", "?"), "'?' is neither a number of GPUs nor ids like 0,2"),
    "a gpu twice": (("--gpus", "1,1"), "names a GPU twice"),
    "too many gpus": (("--gpus", "9999"), "more than any machine has; the most is 1024"),
}


@pytest.mark.parametrize(("args", "problem"), WORKER.values(), ids=WORKER)
def test_a_worker_with_wrong_options_does_not_start(command, args, problem):
    code, out, err = command("worker", *args)
    assert (code, out) == (2, "")
    assert problem in err


@pytest.mark.parametrize(
    ("given", "visible", "ids"),
    [
        ("0", None, ()),
        ("2", None, ("0", "1")),
        ("0,2", None, ("0", "2")),
        ("3,", None, ("3",)),
        ("GPU-5a", None, ("GPU-5a",)),
        ("1", "7,9", ("7",)),
        ("0,2", "7,9", ("0", "2")),
    ],
)
def test_the_gpus_of_a_worker(command, monkeypatch, given, visible, ids):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code, _, _ = command(
        "worker", "--gpus", given, "--cpus", "1.5", "--memory", "4GB", "--tags", "b,a", "--idle-exit", "0.1"
    )
    assert code == 0
    with mtask.connect() as mt:
        (worker,) = mt.table.workers()
    assert worker.can == Capabilities(cpus=1.5, memory_bytes=4 * 10**9, gpus=ids, tags=("a", "b"))


def test_the_tags_of_all_workers_of_a_machine(command, monkeypatch):
    monkeypatch.setenv("MTASK_TAGS", "eu blast")
    assert command("worker", "--idle-exit", "0.1").code == 0
    with mtask.connect() as mt:
        assert [worker.can.tags for worker in mt.table.workers()] == [("blast", "eu")]

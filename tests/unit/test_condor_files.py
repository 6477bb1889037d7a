"""The files between a submit machine and its nodes: whole or not there, whoever dies when."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import StorageFullError, UsageError
from mtask.manager import Manager, connect
from mtask.model import Bag, DeadMessage, Delivery, Failure, Message, Reason, Result, Spec, State
from mtask.packing import slice_message, split_rows
from mtask.portion import Portion, line_of
from mtask_condor.address import address_of
from mtask_condor.batch import Batch, Filling, Head, abandoned, storing
from mtask_condor.census import Present
from mtask_condor.collector import Collector
from mtask_condor.jobs import Jobs, _description, requirements_of
from mtask_condor.live import Live, runs_of
from mtask_condor.live import _merged as merged
from mtask_condor.mending import Mending
from mtask_condor.node import Outbox, _starts
from mtask_condor.node import main as node_main
from mtask_condor.order import Order
from mtask_condor.outcome import Letter, Outcome, Writer, read
from mtask_condor.removed import Removed
from mtask_condor.watch import News, Watch, cluster_in_log
from tests.servers.process import missing

EVENTS = b"".join(
    b"005 (007.%03d.000) 2026-11-21 23:57:10 Job terminated.\n\t(1) Normal termination (return value 0)\n"
    % number
    + b"\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage\n" * 4
    + b"\t0  -  Run Bytes Sent By Job\n" * 4
    + b"...\n"
    for number in range(2)
)
GONE = (
    b"036 (007.-01.000) 2026-11-21 23:57:10 Cluster removed\n"
    b"\tMaterialized 3 jobs from 0 items.\tComplete\n...\n"
)
"""HTCondor Manual, "Job Event Log Codes"."""
FAILURE = Failure(reason=Reason.RAISED, type="ValueError", message="no")


@pytest.fixture
def writing() -> Iterator[Callable[[Path], Writer]]:
    """Writers, closed at the end."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(Writer(path)))


class Died(BaseException):
    """A SIGKILL, as near as a test in one process comes."""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as made:
        yield made


def messages(manager: Manager, count: int = 4, per_message: int = 4, **options: object) -> list[Message]:
    bag = manager.submit(
        [{"x": x} for x in range(count)], run="echo {x}", bag="b", per_message=per_message, **options
    )
    return [Message.of(bag.info, block) for block in manager.table.blocks("b")]


def batch_of(manager: Manager, folder: Path, sent: list[Message]) -> Batch:
    info = manager.info("b")
    filling = Filling(folder, Head(bag="b", uid=info.uid), Order(bag=info))
    for message in sent:
        filling.add(message)
    return filling.seal()


def collector(manager: Manager, send: Callable[..., None], folder: Path | None = None) -> Collector:
    """`folder`: what is in there is on its way."""
    return Collector(
        manager.table, send, lambda: Live() if folder is None else Live.of(folder), lambda _: None
    )


def part(message: Message, index: int, **changes: object) -> Message:
    at = index - message.first
    return msgspec.structs.replace(slice_message(message, split_rows(message.rows), at, at + 1), **changes)


# -- the file that is brought back ------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path, manager, writing):
    (message,) = messages(manager)
    writer = writing(tmp_path / "0.out")
    rows = [Result.done("b", 0, value=1), Result.done("b", 1, value="é\n")]
    writer.rows(
        [Portion("b", 0, 2, b"".join(line_of(row) + b"\n" for row in rows)), Result.failed("b", 2, FAILURE)]
    )
    writer.attempts([Result.failed("b", 3, FAILURE)])
    writer.letters([Letter(message=part(message, 3, attempt=1), due_at=12.5)])
    writer.dead([DeadMessage(body=b"\xff", reason="why", at=1.0)])
    writer.stopped()
    found = read(tmp_path / "0.out")
    assert [(row.index, row.state) for row in found.rows] == [
        (0, State.DONE),
        (1, State.DONE),
        (2, State.FAILED),
    ]
    assert [row.value for row in found.rows] == [1, "é\n", None]
    assert [each.index for each in found.attempts] == [3]
    assert [(each.message.first, each.message.attempt, each.due_at) for each in found.letters] == [
        (3, 1, 12.5)
    ]
    assert (found.dead[0].body, found.clean_stops) == (b"\xff", 1)


def test_a_torn_line_counts_as_none_and_is_written_over(tmp_path, writing):
    path = tmp_path / "0.out"
    with_two = writing(path)
    with_two.rows([Result.done("b", 0), Result.done("b", 1)])
    path.write_bytes(path.read_bytes()[:-7])
    assert [row.index for row in read(path).rows] == [0]
    writing(path).rows([Result.done("b", 2)])
    assert [row.index for row in read(path).rows] == [0, 2]


def test_a_line_of_the_future_is_no_result(tmp_path):
    path = tmp_path / "0.out"
    path.write_bytes(b"Z{}\n")
    with pytest.raises(ValueError, match="unknown line"):
        read(path)


def test_a_full_disk_on_the_node_is_said(tmp_path, manager):
    """A real one, of 64 KiB. The job ends with a status for which HTCondor holds it, and says why."""
    bag = manager.submit([{"x": 1}], run="head -c 100000 /dev/zero", bag="b", tail_bytes=100_000)
    files = {
        "order.json": msgspec.json.encode(Order(bag=bag.info)),
        "0.in": Message.of(bag.info, next(manager.table.blocks("b"))).encode(),
        "0.out": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "small").mkdir()
    script = "mount -t tmpfs -o size=64k none small && cp order.json 0.in 0.out small && cd small && exec "
    script += f"{sys.executable} -m mtask_condor 0"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        missing(
            "a file system of one's own", f"unshare --user --mount doesn't work here: {done.stderr.strip()}"
        )
    assert (done.returncode, "No space left on device" in done.stderr) == (70, True), done


# -- starts, and what counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ad", "clean_stops", "deliveries"),
    [
        ("NumJobStarts = 0\n", 0, 1),
        ("NumJobStarts = 3\nNumShadowStarts = 9\n", 0, 4),
        ("NumJobStarts = 3\nNumHolds = 1\n", 1, 2),
        ("NumJobStarts = 1\nNumHolds = 2\n", 1, 1),
        ("", 0, 1),
    ],
)
def test_deliveries_are_starts_that_nothing_excuses(tmp_path, monkeypatch, ad, clean_stops, deliveries):
    (tmp_path / "ad").write_text(ad)
    monkeypatch.setenv("_CONDOR_JOB_AD", str(tmp_path / "ad"))
    assert _starts(Outcome(clean_stops=clean_stops)) == deliveries


def test_a_worker_that_stops_leaves_the_rest_in_place(tmp_path, manager, writing):
    (message,) = messages(manager)
    outbox = Outbox(writing(tmp_path / "0.out"), message)
    outbox.stop()
    outbox.send([part(message, 0), part(message, 1, attempt=1)])
    assert read(tmp_path / "0.out").left(message) == [0, 2, 3]


# -- batches ----------------------------------------------------------------------------------------


def test_a_batch_whose_filler_died_is_completed(tmp_path, manager):
    sent = messages(manager, 4, per_message=2)
    info = manager.info("b")
    filling = Filling(tmp_path, Head(bag="b", uid=info.uid), Order(bag=info))
    filling.add(sent[0])
    filling.add(sent[1])
    assert list(abandoned(tmp_path)) == [], "it lives"
    filling._lock.close()
    (batch,) = abandoned(tmp_path)
    assert (batch.count, batch.head.ranges, batch.message(1)) == (2, ((0, 2), (2, 2)), sent[1])
    assert Batch.all(tmp_path)[0].cluster() is None


def test_a_torn_message_was_never_sent(tmp_path, manager):
    sent = messages(manager, 4, per_message=2)
    info = manager.info("b")
    filling = Filling(tmp_path, Head(bag="b", uid=info.uid), Order(bag=info))
    filling.add(sent[0])
    (tmp_path / f".{filling.id}" / "1.in").write_bytes(sent[1].encode()[:20])
    filling._lock.close()
    (batch,) = abandoned(tmp_path)
    assert batch.head.ranges == ((0, 2),)


def test_a_batch_that_is_removed_goes_as_a_whole(tmp_path, manager):
    """Whoever removes it may be killed at any step."""
    sent, folder = messages(manager), tmp_path / "folder"
    folder.mkdir()
    jobs = Jobs(address_of("condor:///reads"))
    steps = 0
    while True:
        batch = batch_of(manager, folder, sent)
        died = _dies(batch.remove, {"os.rename", "os.remove", "os.rmdir"}, steps)
        steps += 1
        there = Batch.all(folder)
        assert [each.damaged() for each in there] in ([], [[]]), steps
        Mending(folder, jobs, lambda message: pytest.fail(str(message))).mend()
        assert list(folder.iterdir()) == [each.path for each in there], steps
        if not died:
            break
        for each in there:
            each.remove()
    assert steps > 5


def _dies(act: Callable[[], object], steps: set[str], at: int) -> bool:
    """Another process does this, and is killed at the step of this number; False: it had ended before."""
    pid = os.fork()
    if not pid:
        left = iter(range(at, -1, -1))

        def step(event: str, _args: object) -> None:
            if event in steps and not next(left):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_full_disk_here_is_said(tmp_path):
    with pytest.raises(StorageFullError, match="free some space"), storing(tmp_path):
        raise OSError(28, "No space left on device", str(tmp_path))


# -- collecting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["record", "keep_attempts", "send", "forget"])
@pytest.mark.parametrize("after", [False, True])
def test_who_collects_may_die_at_any_step(tmp_path, manager, monkeypatch, step, after, writing):
    """And the next one ends with the same rows, attempts and messages, nothing of it lost."""
    (message,) = messages(manager)
    batch = batch_of(manager, tmp_path, [message])
    writer = writing(batch.path / "0.out")
    writer.rows([Result.done("b", 0, value=1), Result.failed("b", 1, FAILURE)])
    writer.attempts([Result.failed("b", 2, FAILURE)])
    writer.letters([Letter(message=part(message, 2, attempt=1))])
    sent: list[tuple[Letter, object]] = []

    def send(letters, sources):
        sent.extend((letter, tuple(sources)) for letter in letters)

    def dying(method):
        def die(*args, **options):
            if after:
                method(*args, **options)
            raise Died

        return die

    with monkeypatch.context() as patch:
        owner = {"record": manager.table, "keep_attempts": manager.table, "forget": batch}.get(step)
        if owner is not None:
            patch.setattr(owner, step, dying(getattr(owner, step)))
        first = collector(manager, dying(send) if step == "send" else send)
        with pytest.raises(Died):
            first.take(batch, [0])
    collector(manager, send).take(batch, [0])
    assert {r.index: r.state for r in manager.table.results("b")} == {0: State.DONE, 1: State.FAILED}
    assert {each.index for each in manager.table.attempts("b")} == {2}
    # Task 3, of which the file says nothing, is sent again as well.
    assert {letter.message.first for letter, _ in sent} == {2, 3}
    assert all(sources == ((batch.id, 0),) for _, sources in sent)
    assert batch.live() == set()


# -- chains (--serial) ------------------------------------------------------------------------------


class Chained:
    """Tasks of one key, of which the messages that are sent become batches in a folder."""

    def __init__(self, manager: Manager, folder: Path, count: int) -> None:
        self.manager, self.folder = manager, folder
        rows = [{"x": x, "key": "a"} for x in range(count)]
        self.bag = manager.submit(rows, run="echo {x}", bag="b", serial="key")
        self.blocks = list(manager.table.blocks("b"))

    def put(self, *indexes: int, ended: bool = True, generation: int = 0) -> Batch:
        """Messages of these tasks, and with `ended` what their jobs brought back."""
        info = msgspec.structs.replace(self.bag.info, generation=generation)
        head = Head(bag="b", uid=info.uid, generation=generation)
        filling = Filling(self.folder, head, Order(bag=info))
        for index in indexes:
            filling.add(Message.of(info, self.blocks[index]))
        batch = filling.seal()
        for number, index in enumerate(indexes):
            if ended:
                with closing(Writer(batch.path / f"{number}.out")) as writer:
                    writer.rows([Result.done("b", index)])
        return batch

    def send(self, letters: Iterable[Letter], sources: Sequence[tuple[str, int]]) -> None:
        for letter in letters:
            assert letter.message.generation == self.bag.info.generation
            self.put(letter.message.first, ended=False, generation=letter.message.generation)
        for _, number in sources:
            self.source.forget(number)

    def take(self, batch: Batch, send: Callable[..., None] | None = None) -> None:
        self.source = batch
        collector(self.manager, send or self.send, self.folder).take(batch, sorted(batch.live()))

    def waiting(self) -> list[int]:
        """The tasks of all messages that are left."""
        found = [batch.message(number) for batch in Batch.all(self.folder) for number in batch.live()]
        return sorted(message.first for message in found if message is not None)


@pytest.fixture
def chained(manager: Manager, tmp_path: Path) -> Callable[[int], Chained]:
    folder = tmp_path / "queue"
    folder.mkdir()
    return lambda count: Chained(manager, folder, count)


@pytest.mark.parametrize("step", ["record", "send", "forget"])
@pytest.mark.parametrize("after", [False, True])
def test_a_chain_goes_on_whoever_dies(chained, manager, monkeypatch, step, after):
    chain = chained(3)
    batch = chain.put(0)

    def dying(method):
        def die(*args, **options):
            if after:
                method(*args, **options)
            raise Died

        return die

    with monkeypatch.context() as patch:
        owner = {"record": manager.table, "forget": Batch, "send": chain}[step]
        patch.setattr(owner, step, dying(getattr(owner, step)))
        with pytest.raises(Died):
            chain.take(batch)
    chain.take(batch)
    assert (manager.table.recorded("b", range(3)), chain.waiting()) == ({0}, [1])


def test_of_a_task_that_ran_twice_one_follower_comes(chained, manager):
    """And none that has ended, or is on its way: what comes after it is sent then."""
    chain = chained(4)
    chain.take(chain.put(0, 0))
    assert chain.waiting() == [1]
    chain.take(chain.put(0))
    assert chain.waiting() == [1]
    manager.table.record([Result.done("b", 1)])
    for batch in Batch.all(chain.folder):
        batch.remove()
    chain.take(chain.put(0))
    assert chain.waiting() == [2], "1 has ended elsewhere"


def test_a_chain_goes_on_in_the_generation_of_now(chained, manager):
    """A bag that was cancelled and taken up again, while a row of before was on its way."""
    chain = chained(3)
    old = chain.put(0)
    manager.table.update_bag("b", generation=1)
    new = chain.put(0, generation=1)
    chain.take(old)
    assert chain.waiting() == [0], "what was wanted before the cancel is void"
    chain.take(new)
    assert chain.waiting() == [1]


def test_a_chain_whose_next_task_was_never_stored(chained, manager, monkeypatch):
    chain = chained(2)
    monkeypatch.setattr(manager.table, "block", lambda *key: {}[key])
    chain.take(chain.put(0))
    assert (manager.table.recorded("b", range(2)), chain.waiting()) == ({0}, [])


# -- what is in the folder, and what is over --------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6))), st.integers(0, 30), st.integers(1, 9))
def test_what_is_there_is_taken_out(ranges, first, count):
    live = Live()
    live._ranges = {("u", 0): merged(ranges)}
    rows = msgspec.Raw(msgspec.json.encode([[x] for x in range(first, first + count)]))
    message = Message(bag="b", uid="u", block=0, first=first, count=count, rows=rows)
    there = {x for start, size in ranges for x in range(start, start + size)}
    parts = list(live.without(message))
    tasks = [x for each in parts for x in range(each.first, each.first + each.count)]
    assert tasks == [x for x in range(first, first + count) if x not in there]
    assert [value for each in parts for (value,) in msgspec.json.decode(each.rows)] == tasks
    assert live.has(message) == (not tasks)
    assert next(live.without(msgspec.structs.replace(message, generation=1))).count == count


@given(st.sets(st.integers(0, 20)))
def test_runs_of_numbers(numbers):
    found = list(runs_of(sorted(numbers)))
    assert [x for start, stop in found for x in range(start, stop)] == sorted(numbers)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


def test_what_somebody_fills_is_there(tmp_path, manager):
    sent = messages(manager, 4, per_message=2)
    info = manager.info("b")
    filling = Filling(tmp_path, Head(bag="b", uid=info.uid), Order(bag=info))
    filling.add(sent[0])
    for live in (Live.of(tmp_path), Live.of(tmp_path, [filling])):
        assert (live.has(sent[0]), live.has(sent[1])) == (True, False)
    batch = filling.seal()
    assert Live.of(tmp_path).has(sent[0])
    batch.forget(0)
    assert not Live.of(tmp_path).has(sent[0])


@pytest.mark.parametrize(
    ("present", "left"),
    [
        (None, {0, 1, 2}),
        (Present({1}, 2), {1, 2}),
        (Present({1}, math.inf), {1}),
        (Present(set(), math.inf), set()),
    ],
)
def test_what_the_schedd_has_no_more_is_over(tmp_path, manager, writing, present, left):
    """With a log that says nothing: results are recorded, and what has none is sent again."""
    sent = messages(manager, 6, per_message=2)
    batch = batch_of(manager, tmp_path, sent)
    writing(batch.path / "0.out").rows([Result.done("b", 0)])
    letters: list[Letter] = []
    collecting = collector(manager, lambda found, _: letters.extend(found))
    collecting.collect([batch], {} if present is None else {batch.id: present})
    assert batch.live() == left
    again = {
        index
        for letter in letters
        for index in range(letter.message.first, letter.message.first + letter.message.count)
    }
    over = {index for number in {0, 1, 2} - left for index in (2 * number, 2 * number + 1)}
    assert again == over - {0}
    assert (manager.table.recorded("b", range(6)), batch.path.exists()) == (
        {0} if over else set(),
        bool(left),
    )


def test_a_row_that_is_there_is_not_sent_again(tmp_path, manager, writing):
    (message,) = messages(manager)
    batch = batch_of(manager, tmp_path, [message])
    writing(batch.path / "0.out").letters([Letter(message=part(message, x)) for x in range(4)])
    manager.table.record([Result.done("b", 1)])
    sent: list[Letter] = []
    collector(manager, lambda letters, _: sent.extend(letters)).take(batch, [0])
    assert [letter.message.first for letter in sent] == [0, 2, 3]


def test_files_of_a_bag_that_was_replaced_are_dropped(tmp_path, manager, writing):
    (message,) = messages(manager)
    batch = batch_of(manager, tmp_path, [message])
    writing(batch.path / "0.out").rows([Result.done("b", 0)])
    batch.head = msgspec.structs.replace(batch.head, uid="other")
    assert collector(manager, lambda *_: None).take(batch, [0]) == 0
    assert (list(manager.table.results("b")), batch.live()) == ([], set())


@pytest.mark.parametrize(("bag", "index"), [("b", 4), ("other", 0)])
def test_what_a_node_says_of_other_tasks_is_not_believed(tmp_path, manager, writing, bag, index):
    message, _ = messages(manager, 8, per_message=4)
    batch = batch_of(manager, tmp_path, [message])
    writing(batch.path / "0.out").rows([Result.done("b", 0), Result.done(bag, index)])
    collector(manager, lambda *_: None).take(batch, [0])
    (dead,) = manager.table.dead()
    assert (list(manager.table.results("b")), "it is about other tasks" in dead.reason) == ([], True)


def test_what_a_job_of_before_a_cancel_wants_sent_is_void(tmp_path, manager, writing):
    (message,) = messages(manager)
    batch = batch_of(manager, tmp_path, [message])
    writing(batch.path / "0.out").rows([Result.done("b", 0)])
    manager.table.update_bag("b", generation=1)
    sent: list[Letter] = []
    collector(manager, lambda letters, _: sent.extend(letters)).take(batch, [0])
    assert ([row.index for row in manager.table.results("b")], sent) == ([0], [])


def test_an_unreadable_file_is_set_aside(tmp_path, manager):
    (message,) = messages(manager)
    batch = batch_of(manager, tmp_path, [message])
    (batch.path / "0.out").write_bytes(b"R{nonsense}\n")
    collector(manager, lambda *_: None).take(batch, [0])
    (dead,) = manager.table.dead()
    assert (dead.body, "can't be used" in dead.reason, batch.live()) == (b"R{nonsense}\n", True, set())


# -- addresses and descriptions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("condor:reads", "it should look like condor:///reads"),
        ("condor://", "needs a name"),
        ("condor:///a/b", "needs a name"),
        ("condor:///a b", "needs a name"),
        ("condor:///a?foldr=x", "unknown option 'foldr'; there are collect, disk, folder"),
        ("condor:///a?table=dynamodb", "table is files"),
        ("condor:///a?disk=much", "'much' is not a size"),
        ("condor:///a?pool=b", "which schedd of that pool"),
        ("condor://s/a?pool=b/c", "pool is the host"),
        ("condor:///a?collect=maybe", "collect is yes or no"),
        ("condor:///a?grace_s=-1", "grace_s must be a number of seconds"),
        ("condor:///a?split_after_s=x", "split_after_s must be a number of seconds"),
    ],
)
def test_urls_that_make_no_sense(url, complaint):
    with pytest.raises(UsageError, match=complaint):
        address_of(url)


def test_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = address_of("condor://submit.example.org/reads?disk=1GB&python=/usr/bin/python3&path=/a:/b")
    assert found.folder == tmp_path / ".mtask/condor/submit.example.org/reads"
    assert (found.schedd, found.disk_kib, found.path) == ("submit.example.org", 976563, ("/a", "/b"))
    assert address_of("condor:///reads").folder == tmp_path / ".mtask/condor/local/reads"
    assert str(tmp_path) in address_of("condor:///reads").path


def test_messages_are_cut_only_where_somebody_collects(monkeypatch):
    """The pieces wait for somebody who collects; and without cutting, none should be long."""
    from mtask_condor.queue import CondorQueue

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ends = ["", "?collect=no", "?split_after_s=9&collect=no"]
    found = [address_of(f"condor:///reads{end}") for end in ends]
    assert [(each.collect, each.split_after_s) for each in found] == [(True, 60), (False, None), (False, 9)]
    assert [CondorQueue(each).limits.growth for each in found] == [10, 250, 10]
    assert not address_of("condor://submit.example.org/reads").collect, "it may be another machine"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not address_of("condor:///reads").collect, "its jobs are somebody else's"
    with pytest.raises(UsageError, match="somebody else's"):
        address_of("condor:///reads?collect=yes")
    order = Order(bag=Bag(name="b", spec=Spec(kind="command")))
    assert msgspec.json.decode(msgspec.json.encode(order), type=Order).split_after_s is None


def test_a_node_cuts_nothing_by_itself(tmp_path, manager, monkeypatch):
    """Its order says nothing of it: the whole message is worked off, however long it takes."""
    import mtask.worker.supervisor as supervisor

    seen = []
    real = supervisor.Worker
    monkeypatch.setattr(
        supervisor, "Worker", lambda *args, **kw: (seen.append(args[2]), real(*args, **kw))[1]
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (message,) = messages(manager)
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(Order(bag=manager.info("b"))))
    (tmp_path / "0.in").write_bytes(message.encode())
    monkeypatch.chdir(tmp_path)
    assert node_main("0") == 0
    assert [row.state for row in read(tmp_path / "0.out").rows] == [State.DONE] * 4
    assert [options.split_after_s for options in seen] == [math.inf]


@pytest.mark.parametrize("table", [None, "postgresql://u:secret@h/d"])
def test_the_tables_url_travels_encrypted(tmp_path, manager, table):
    info = manager.submit([{"x": 1}], run="echo {x}", bag="b").info
    filling = Filling(tmp_path, Head(bag="b", uid=info.uid), Order(bag=info, table=table))
    filling.add(Message.of(info, next(manager.table.blocks("b"))))
    text = _description(address_of("condor:///reads"), filling.seal())
    assert ("encrypt_input_files = order.json" in text.splitlines(), "secret" in text) == (
        table is not None,
        False,
    )


def test_requirements_are_expressions():
    if importlib.util.find_spec("classad2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    import classad2

    from mtask.requirements import Lane, Requirements

    lane = Lane.of(0, Requirements(tags=("blast", "!slow"), only_on=("eu", "u:s")))

    def matches(tags: str | None, due_at: float = 0.0) -> bool:
        machine = classad2.ClassAd({} if tags is None else {"MtaskTags": tags})
        job = classad2.ClassAd({"Requirements": classad2.ExprTree(requirements_of(lane, due_at))})
        return bool(machine.matches(job))

    assert matches("blast, eu")
    assert matches("blast,u:s")
    assert not matches("blast")
    assert not matches("eu")
    assert not matches("blast,eu,slow")
    assert not matches(None)
    assert matches("blast,eu", due_at=1)
    assert not matches("blast,eu", due_at=4e9)


@pytest.mark.parametrize(
    ("content", "ended", "cluster"),
    [
        (None, [], None),
        (b"", [], None),
        (EVENTS, [0, 1], 7),
        (EVENTS[:60], [], 0),
        (EVENTS[:250] + EVENTS[EVENTS.index(b"\n...\n") + 5 :], [], 0),
        (EVENTS + EVENTS[:60] + EVENTS, [0, 1], 7),
    ],
)
def test_logs_that_cannot_be_read(tmp_path, manager, content, ended, cluster):
    """What is before the damage counts; whoever looks at the schedd sees the rest."""
    if importlib.util.find_spec("htcondor2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    batch = batch_of(manager, tmp_path, messages(manager))
    if content is not None:
        (batch.path / "log").write_bytes(content)
    with closing(Watch(batch)) as watch:
        assert (watch.news(), cluster_in_log(batch)) == (News(ended, {}, None), cluster)
        assert watch.news() == News([], {}, None)


def test_a_log_that_says_only_that_the_cluster_is_gone(tmp_path, manager, writing):
    """What was brought back counts, although the event of it is lost; jobs that brought nothing were removed."""
    if importlib.util.find_spec("htcondor2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    batch = batch_of(manager, tmp_path, messages(manager, 6, per_message=2))
    writing(batch.path / "0.out").rows([Result.done("b", 0), Result.done("b", 1)])
    writing(batch.path / "1.out").rows([Result.done("b", 2)])
    (batch.path / "2.out").touch()
    (batch.path / "log").write_bytes(GONE)
    removed, letters = list[Removed](), list[Letter]()
    made = Collector(manager.table, lambda found, _: letters.extend(found), Live, removed.extend)
    assert made.collect([batch], {}) == 3
    assert manager.table.recorded("b", range(6)) == {0, 1, 2}
    assert [(each.message.first, each.message.count) for each in letters] == [(3, 1)]
    assert [(each.first, each.count) for each in removed] == [(4, 2)]
    assert not batch.path.exists()


def test_nobody_receives():
    if importlib.util.find_spec("htcondor2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    from mtask.errors import BackendError
    from mtask_condor import open_queue

    queue = open_queue("condor:///reads")
    for call in (
        lambda: queue.receive(max_messages=1, lease_s=1, wait_s=1),
        lambda: queue.extend([Delivery(body=b"", token=0)], lease_s=1),
        lambda: queue.delete([]),
        lambda: queue.release([]),
    ):
        with pytest.raises(BackendError, match="mtask wait"):
            call()

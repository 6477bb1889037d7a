"""What is special about a queue and a table in a file: processes, kills, full disks, other people's files."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mtask.errors import BackendError, BagNotFoundError, SchemaError, UnavailableError
from mtask.model import Counts, State
from mtask.testing.samples import a_bag, a_done, a_failed, a_message, index_of, messages
from mtask_sqlite import Database, SqliteQueue, SqliteTable, open_queue, open_table

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tasks.db")


@pytest.fixture
def url(path: str) -> str:
    return f"sqlite:///{path}"


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that runs `script` as soon as a line comes to its standard input."""
    imports = (
        "import sys, time\n"
        "from mtask.model import *\n"
        "from mtask.testing.samples import *\n"
        "from mtask_sqlite import open_queue, open_table\n"
        "url = sys.argv[1]\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", imports + script, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()


def receive(queue: SqliteQueue, count: int = 1000) -> list[int]:
    return [index_of(d) for d in queue.receive(max_messages=count, lease_s=60, wait_s=0)]


# -- processes ------------------------------------------------------------------------------------------

HAMMER = """
queue, table = open_queue(url), open_table(url)
queue.send([a_message(int(sys.argv[2]) * 100 + i) for i in range(100)])
while time.monotonic() < float(sys.argv[3]):
    taken = queue.receive(max_messages=3, lease_s=60, wait_s=0.2)
    if not taken and table.counts("bag").done == 400:
        break
    with table.transaction(queue):
        table.record([a_done(index_of(delivery)) for delivery in taken])
        queue.delete(taken)
    print(*map(index_of, taken), flush=True)
"""


def test_many_processes_handle_each_message_once(url: str, table: SqliteTable, queue: SqliteQueue) -> None:
    table.create_bag(a_bag())
    processes = [start(HAMMER, url, str(number), str(time.monotonic() + 60)) for number in range(4)]
    go(processes)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert Counter(map(int, " ".join(outputs).split())) == Counter(range(400))
    assert all(output.split() for output in outputs)  # each had its turns
    assert (table.counts("bag").done, queue.depth()) == (400, (0, 0, 0))


def test_many_processes_make_the_file_at_once(url: str) -> None:
    processes = [start("open_queue(url).send([a_message(int(sys.argv[2]))])", url, str(n)) for n in range(6)]
    go(processes)
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 6
    with closing(open_queue(url)) as queue:
        assert sorted(receive(queue)) == list(range(6))


def test_the_file_is_made_once_however_many_try(tmp_path: Path) -> None:
    def make(path: str) -> None:
        start.wait()
        Database(path).close()  # not `open`, which would be one for all threads
        made.append(path)

    made: list[str] = []
    start = threading.Barrier(6)
    for turn in range(30):
        threads = [threading.Thread(target=make, args=(f"{tmp_path}/{turn}.db",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 180


WRITER = """
queue, table = open_queue(url), open_table(url)
number = int(sys.argv[2])
while True:
    batch = range(number * 20, number * 20 + 20)
    with table.transaction(queue):
        table.record([a_done(index) for index in batch])
        queue.send([a_message(index) for index in batch])
    print(number, flush=True)
    number += 1
"""


def test_a_kill_amid_writing(url: str, path: str, table: SqliteTable) -> None:
    table.create_bag(a_bag())
    committed, number = set(), 0
    for turn in range(4):
        process = start(WRITER, url, str(number))
        go([process])
        assert process.stdout
        for _ in range(5 + turn):
            committed.add(int(process.stdout.readline()))
        process.kill()
        # Not `communicate`, which would pass over what `readline` has read in advance.
        committed.update(map(int, process.stdout.read().split()))
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        number = max(committed) + 2  # the one after the last may have been committed, too
    with closing(open_queue(url)) as queue:
        sent = Counter(index // 20 for index in iter_all(queue))
    assert set(sent.values()) == {20}  # all or nothing
    assert committed <= set(sent)
    rows = [result.index for result in table.results("bag")]
    assert Counter(index // 20 for index in rows) == sent
    assert table.counts("bag").done == len(rows)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def iter_all(queue: SqliteQueue) -> Iterator[int]:
    while taken := receive(queue):
        yield from taken


def test_a_writer_that_takes_too_long(path: str) -> None:
    with closing(SqliteTable(Database(path, busy_s=0.1))) as table, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            table.create_bag(a_bag())
        other.rollback()
        table.create_bag(a_bag())


# -- the machine starts anew ----------------------------------------------------------------------------


def test_leases_and_delays_end_with_the_boot(path: str) -> None:
    def boot(name: str, now: float) -> SqliteQueue:
        return SqliteQueue(Database.open(path), clock=lambda: now, boot_id=name)

    with closing(boot("first", 5000.0)) as queue:
        queue.send(messages(2))
        (held,) = queue.receive(max_messages=1, lease_s=1e6, wait_s=0)
        queue.send([a_message(2)], delay_s=1e6)
    with closing(boot("first", 5001.0)) as queue:
        assert queue.depth() == (1, 1, 1)
    with closing(boot("second", 3.0)) as queue:
        assert queue.depth() == (3, 0, 0)
        assert queue.extend([held], lease_s=60).lost == [held]
        queue.delete([held])
        taken = queue.receive(max_messages=5, lease_s=60, wait_s=0)
        assert {index_of(delivery): delivery.deliveries for delivery in taken} == {0: 2, 1: 1, 2: 1}


# -- other files ----------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(url: str, path: str) -> None:
    open_table(url).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SchemaError, match=r"tasks\.db was made by a newer mtask .*upgrade"):
        open_table(url)


def test_a_bag_that_cant_be_read_is_named(url: str, path: str) -> None:
    with closing(open_table(url)) as table:
        table.create_bag(a_bag("odd"))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                'UPDATE bag SET body = replace(CAST(body AS TEXT), \'"spec":{\', \'"spec":{"retries":null,\')'
            )
        for read in (table.bags, lambda: table.bag("odd")):
            with pytest.raises(
                SchemaError, match="the bag 'odd' can't be read, a newer mtask may have made it"
            ):
                read()


def test_an_older_schema_is_refused(url: str, path: str) -> None:
    open_table(url).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    before = Path(path).read_bytes()
    for function in (open_table, open_queue):
        with pytest.raises(SchemaError, match=r"tasks\.db was made by an older mtask .*name another file"):
            function(url)
    assert Path(path).read_bytes() == before


def test_a_file_that_is_no_database_is_refused(url: str, path: str) -> None:
    text = "id,sequence\n" * 500
    Path(path).write_text(text)
    with pytest.raises(BackendError, match=r"tasks\.db: it is not an SQLite database"):
        open_queue(url)
    assert Path(path).read_text() == text
    assert os.listdir(os.path.dirname(path)) == ["tasks.db"]


def test_somebody_elses_database_is_refused(url: str, path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (name)")
    before = Path(path).read_bytes()
    with pytest.raises(BackendError, match="another application"):
        open_queue(url)
    assert Path(path).read_bytes() == before
    assert os.listdir(os.path.dirname(path)) == ["tasks.db"]


def test_an_empty_file_is_fine(url: str, path: str) -> None:
    Path(path).touch()
    open_table(url).close()


@contextmanager
def a_place_without_permission() -> Iterator[Path]:
    """A directory in which this process may not write; root becomes somebody else for the time."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o755)
        shutil.rmtree(directory)


def test_a_directory_that_can_not_be_written() -> None:
    with a_place_without_permission() as directory:
        with pytest.raises(BackendError, match=f"{directory}/tasks.db: it can't be opened; check") as caught:
            open_queue(f"sqlite:///{directory}/tasks.db")
        assert not isinstance(caught.value, UnavailableError)
        with pytest.raises(BackendError, match="directory can't be made: Permission denied"):
            open_queue(f"sqlite:///{directory}/sub/tasks.db")


@contextmanager
def a_small_disk(directory: Path) -> Iterator[None]:
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with a_small_disk(disk):
        url = f"sqlite:///{disk}/tasks.db"
        with closing(open_table(url)) as table, closing(open_queue(url)) as queue:
            table.create_bag(a_bag())
            ballast = disk / "ballast"
            ballast.write_bytes(b"x" * 1024 * 1024)
            stored = 0
            with pytest.raises(UnavailableError, match=r"tasks\.db: the disk is full; free some space"):
                while True:
                    with table.transaction(queue):
                        table.record([a_done(stored, "v" * 5000)])
                        queue.send([a_message(stored)])
                    stored += 1
            assert stored > 10
            assert table.counts("bag").done == sum(1 for _ in table.results("bag")) == stored
            assert queue.depth().ready == stored
            ballast.unlink()
            table.record([a_done(stored, "v" * 5000)])
            assert table.counts("bag").done == stored + 1


# -- one database, opened many times --------------------------------------------------------------------


def test_one_file_is_one_database_by_any_name(url: str, path: str, table: SqliteTable) -> None:
    os.symlink(path, f"{path}-link")
    with closing(open_queue(f"{url}-link?lane=x")) as queue:
        assert queue.database is table.database
        with pytest.raises(RuntimeError), table.transaction(queue):
            queue.send([a_message()])
            raise RuntimeError
        assert queue.depth().ready == 0


def test_a_transaction_with_another_file_is_none(url: str, table: SqliteTable) -> None:
    with closing(open_queue(f"{url}2")) as queue:
        with pytest.raises(RuntimeError), table.transaction(queue):
            table.create_bag(a_bag())
            queue.send([a_message()])
            raise RuntimeError
        assert (len(table.bags()), queue.depth().ready) == (1, 1)


def test_an_error_within_a_transaction_undoes_only_its_own_call(
    table: SqliteTable, queue: SqliteQueue
) -> None:
    table.create_bag(a_bag())
    with table.transaction(queue):
        table.record([a_done(0)])
        with pytest.raises(BagNotFoundError):
            table.record([a_done(1), a_done(0, bag="none")])
        with pytest.raises(RuntimeError), table.transaction(queue):
            table.record([a_done(2)])
            raise RuntimeError
        queue.send([a_message()])
    assert (table.counts("bag"), queue.depth().ready) == (Counts(done=1), 1)


def test_close_closes_the_connections_of_all_threads(url: str, path: str) -> None:
    def open_files() -> list[str]:
        return [f for f in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if f.startswith(path)]

    table, queue = open_table(url), open_queue(url)
    used, leave = threading.Event(), threading.Event()

    def use() -> None:
        queue.depth()
        used.set()
        leave.wait()

    thread = threading.Thread(target=use)
    thread.start()
    used.wait()
    table.close()
    table.close()  # again, which counts for nothing
    queue.depth()
    assert open_files()
    queue.close()
    assert open_files() == []
    with pytest.raises(BackendError, match="closed"):
        queue.depth()
    with pytest.raises(BackendError, match="closed"):
        table.bags()
    leave.set()
    thread.join()


def test_a_file_made_anew_is_another_one(url: str, path: str, table: SqliteTable) -> None:
    table.create_bag(a_bag())
    for name in Path(path).parent.iterdir():
        name.unlink()
    with closing(open_table(url)) as new:
        assert new.bags() == []


def test_a_child_must_open_its_own(queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(BackendError, match="forked"):
        queue.depth()


# -- cost -----------------------------------------------------------------------------------------------


def test_waiting_costs_next_to_nothing(queue: SqliteQueue) -> None:
    before = time.process_time()
    queue.receive(max_messages=1, lease_s=1, wait_s=1)
    assert time.process_time() - before < 0.1


def test_failed_rows_are_found_without_a_look_at_the_others(table: SqliteTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(index) for index in range(20_000)])
    table.record([a_failed(20_000)])
    steps = 0

    def count_steps() -> int:
        nonlocal steps
        steps += 1
        return 0

    with table.database.read() as connection:
        connection.set_progress_handler(count_steps, 10)
    assert [result.index for result in table.results("bag", states=[State.FAILED])] == [20_000]
    assert table.counts("bag") == Counts(done=20_000, failed=1)
    assert steps < 50


OFF, NORMAL, FULL = range(3)
"""What SQLite calls `synchronous`."""


@pytest.mark.parametrize(("option", "levels"), [("", (FULL, NORMAL)), ("?durable=no", (OFF, OFF))])
def test_what_waits_for_the_disk(tmp_path: Path, option: str, levels: tuple[int, int]) -> None:
    with closing(open_table(f"sqlite:///{tmp_path}/t.db{option}")) as table:
        found = []
        for durable in (True, False):
            with table.database.write(durable=durable) as connection:
                found.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        assert tuple(found) == levels


def test_who_wants_it_durable_has_it_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    with (
        closing(open_table(f"{url}?durable=no")) as one,
        closing(open_table(url)),
        one.database.write() as connection,
    ):
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == FULL

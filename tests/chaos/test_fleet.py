"""A fleet on a real pool: workers come with the backlog, die with their machine, come again; nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtask.bag import BagHandle
from mtask.manager import Manager, connect
from mtask.model import Result
from mtask_condor.fleet import CondorFleet
from mtask_condor.keeper import step
from mtask_rabbitmq import make_queue
from tests.servers.condor import ROOT, CondorPool, wait_until
from tests.servers.rabbitmq import Broker

pytestmark = pytest.mark.timeout(600)
LONG_S = 90.0
TASKS = Path(__file__).with_name("fleet_tasks.py")
PERSONAL_POOL = (sys.executable, str(ROOT / "condor/pool.py"))


@pytest.fixture(scope="module")
def home(pool: CondorPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mtask and all that it needs, where the pool's user can read it."""
    return pool.home(tmp_path_factory.mktemp("home"), "rabbitmq")


class Camp:
    """A folder with a queue and a table on the disk, and commands that are given there."""

    def __init__(self, pool: CondorPool, home: Path, queue: str = "") -> None:
        """`queue`: with the table, in a file, unless it is said here."""
        self.pool = pool
        self.folder = pool.folder / f"camp-{uuid.uuid4().hex[:8]}"
        self.marks = self.folder / "marks"
        self.marks.mkdir(parents=True)
        shutil.copy(TASKS, self.folder)
        self.url = f"sqlite:///{self.folder}/mtask.db"
        urls = {"MTASK_QUEUE": queue or self.url, "MTASK_TABLE": self.url}
        self.env = os.environ | {"PYTHONPATH": str(home)} | urls
        self.manager: Manager = connect(queue or self.url, self.url)
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)

    def __call__(self, *args: str, code: int = 0, **env: str) -> str:
        """`mtask fleet …`; what it printed. A fleet is made from what the pool's user can read."""
        python = self.pool.python
        if args[0] != "up":
            python, env = sys.executable, {"PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"} | env
        done = subprocess.run(
            [python, "-m", "mtask", "fleet", *args],
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def up(self, *args: str, **env: str) -> str:
        return self(
            "up",
            "condor",
            "--every",
            "1s",
            "--idle-exit",
            "2s",
            "--grace",
            "10s",
            "--lost-after",
            "20s",
            *args,
            **env,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", "--json"))
        return found

    def submit(self, call: str, tasks: int, **params: Any) -> BagHandle:
        rows = [{"x": x, **params} for x in range(tasks)]
        return self.manager.submit(rows, call=f"fleet_tasks:{call}", per_message=1, lease_s=10)

    def pilots(self, *attributes: str) -> list[list[str]]:
        return [
            job[2:]
            for job in self.pool.jobs("JobStatus", "MtaskFleetFolder", *attributes)
            if job[3] == str(self.folder / ".mtask/fleets/fleet")
        ]

    def running(self) -> int:
        return sum(status == "2" for status, *_ in self.pilots())

    def begun(self) -> set[int]:
        return {int(path.name) for path in self.marks.iterdir() if path.name != "gate"}

    def finish(self, bag: BagHandle) -> list[Result]:
        wait_until(bag.finished, "all tasks have ended", LONG_S)
        found = list(bag.results())
        assert [result.index for result in found] == list(range(len(found))), "one row a task"
        assert {result.state for result in found} == {"done"}, found
        return found


@pytest.fixture
def camp_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Camp]]:
    monkeypatch.syspath_prepend(str(TASKS.parent))
    made: list[Camp] = []

    def make(pool: CondorPool, queue: str = "") -> Camp:
        made.append(Camp(pool, home, queue))
        return made[-1]

    yield make
    for camp in made:
        camp.manager.close()


@pytest.fixture
def camp(pool: CondorPool, camp_of: Callable[..., Camp]) -> Iterator[Camp]:
    camp = camp_of(pool)
    yield camp
    if (camp.folder / ".mtask/fleets/fleet/place").exists():
        print(camp("status"))
        for path in (camp.folder / ".mtask/fleets/fleet").glob("errors/*"):
            print(path.name, path.read_text())
        print((camp.folder / ".mtask/fleets/fleet/keeper.err").read_text())
        camp("down", "--now")


@pytest.fixture
def own_pool(pool: CondorPool, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CondorPool]:
    """A second pool, which may be killed. What jobs import lies in the folder of the first."""
    folder = pool.folder.parent / "own"
    try:
        done = subprocess.run(
            [*PERSONAL_POOL, "start", "--folder", str(folder)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("CONDOR_CONFIG", str(folder / "condor_config"))
        yield CondorPool(folder, pool.python, pool.path)
    finally:
        stop(folder)


def stop(folder: Path) -> None:
    subprocess.run([*PERSONAL_POOL, "stop", "--folder", str(folder)], timeout=60)


def processes_of(place: Path) -> list[int]:
    """All that have this folder in their environment: daemons, what looks after jobs, and the jobs."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            inside = str(place).encode() + b"/" in (each / "environ").read_bytes()
        except OSError:
            continue
        if inside and int(each.name) != os.getpid():
            found.append(int(each.name))
    return found


def kill_all(pool: CondorPool) -> Callable[[], subprocess.Popen[bytes]]:
    """As when the power goes; returns what starts the pool again, with its queue."""
    master = Path("/proc", (pool.folder / "master.pid").read_text().strip())
    args = (master / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    pairs = (each.partition(b"=") for each in (master / "environ").read_bytes().split(b"\0") if each)
    environment = {name: value for name, _, value in pairs}
    owner = pool.folder.stat()
    while pids := processes_of(pool.folder):  # one may have started another meanwhile
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start() -> subprocess.Popen[bytes]:
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        with (pool.folder / "master.out").open("ab") as output:
            return subprocess.Popen(args, env=environment, stdout=output, stderr=output, **user)

    return start


def test_workers_come_with_the_backlog_and_go_with_it(camp: Camp) -> None:
    camp.up("--workers", "3")
    assert camp.status()["running"] == 0
    bag = camp.submit("wait", 8, folder=str(camp.marks))
    wait_until(lambda: len(camp.begun()) == 3, "three workers work", LONG_S)
    assert camp.status()["wanted"] == 3
    assert len(camp.pilots()) == 3
    (camp.marks / "gate").touch()
    assert [result.value for result in camp.finish(bag)] == [2 * x for x in range(8)]
    wait_until(lambda: not camp.pilots(), "they end when there is nothing to do", LONG_S)
    again = camp.submit("marked", 2, folder=str(camp.marks))
    camp.finish(again)
    assert not camp.status()["troubles"]


def test_workers_that_are_killed_with_their_pool_come_again(
    own_pool: CondorPool, camp_of: Callable[..., Camp]
) -> None:
    check_that_nothing_is_lost(camp_of(own_pool))


def test_over_rabbitmq_too(own_pool: CondorPool, camp_of: Callable[..., Camp], rabbitmq: Broker) -> None:
    url = rabbitmq.url()
    make_queue(url)
    camp = camp_of(own_pool, url)
    check_that_nothing_is_lost(camp)


def check_that_nothing_is_lost(camp: Camp, *more: str) -> None:
    camp.up("--workers", "3", *more)
    bag = camp.submit("marked", 60, folder=str(camp.marks), seconds=0.3)
    wait_until(lambda: len(camp.begun()) > 6, "they work", LONG_S)
    restart = kill_all(camp.pool)
    assert bag.counts().done < 60, "killed in the middle"
    master = restart()
    try:
        results = camp.finish(bag)
    finally:
        stop(camp.pool.folder)
        master.wait(30)
    assert [result.value for result in results] == [2 * x for x in range(60)]
    workers = {line for path in camp.marks.iterdir() for line in path.read_text().split()}
    assert len(workers) > 3, "others than before"


def test_no_secret_is_in_the_job_or_in_a_command(camp: Camp) -> None:
    value = f"s3cret-{uuid.uuid4().hex}"
    bag = camp.submit("secret", 1)
    hold = camp.submit("wait", 1, folder=str(camp.marks))
    camp.up("--workers", "1", "--env", "FLEET_TEST_SECRET", FLEET_TEST_SECRET=value)
    wait_until(lambda: camp.begun() and bag.finished(), "it works", LONG_S)
    commands = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    assert any(b"worker" in text and b"--idle-exit" in text for text in commands.values())
    fleet = camp.folder / ".mtask/fleets/fleet"
    assert value in (fleet / "environment.json").read_text()
    assert (fleet / "environment.json").stat().st_mode & 0o077 == 0
    ads = camp.pool.run("condor_q", "-long")
    assert str(fleet) in ads
    (camp.marks / "gate").touch()
    assert [result.value for result in camp.finish(bag)] == [value]
    camp.finish(hold)
    wait_until(lambda: not camp.pilots(), "the worker has ended", LONG_S)
    history = camp.pool.run("condor_history", "-long")
    assert str(fleet) in history
    assert camp.url not in ads + history
    for text in (ads, history, camp("status", "--json"), camp("status")):
        assert value not in text
    assert all(value.encode() not in text and camp.url.encode() not in text for text in commands.values())
    files = [*camp.pool.folder.glob("log/**/*"), *camp.pool.folder.glob("spool/**/*"), *fleet.rglob("*")]
    found = [path for path in files if path.is_file() and value.encode() in path.read_bytes()]
    assert found == [fleet / "environment.json"]
    camp("down")
    assert not (fleet / "environment.json").exists()


def test_down_drains_and_up_goes_on(camp: Camp) -> None:
    bag = camp.submit("wait", 5, folder=str(camp.marks))
    camp.up("--workers", "2")
    wait_until(lambda: len(camp.begun()) == 2, "two work", LONG_S)
    assert "2 workers told to stop" in camp("down")
    wait_until(lambda: all(w.state != "working" for w in camp.manager.table.workers()), "they drain", LONG_S)
    assert "told to stop" in camp("status")
    (camp.marks / "gate").touch()
    wait_until(lambda: not camp.pilots(), "they have ended", LONG_S)
    assert bag.counts().done == 2, "what ran has ended, and nothing else was begun"
    wait_until(lambda: camp.manager.queue.depth().ready == 3, "the others are for anybody")
    assert not camp.pool.run("condor_q", "-constraint", "MtaskFleetKeeper =!= undefined", "-af", "ClusterId")
    camp.up("--workers", "2")
    camp.finish(bag)
    begun = Counter(len(path.read_text().split()) for path in camp.marks.iterdir() if path.name != "gate")
    assert begun == {1: 5}, "no task ran twice"


def test_down_now_kills_who_still_drains(camp: Camp) -> None:
    bag = camp.submit("wait", 1, folder=str(camp.marks))
    camp.up("--workers", "1", "--grace", "10m")
    wait_until(lambda: camp.begun(), "one works", LONG_S)
    camp("down")
    found = camp.status()
    assert (found["leaving"], found["running"], found["down"]) == (1, 0, True)
    assert "1 worker killed" in camp("down", "--now")
    wait_until(lambda: not camp.pilots(), "it is gone", 30)
    wait_until(lambda: not processes_of(camp.folder), "and so is its task", 30)
    assert bag.counts().done == 0


def test_a_node_without_python_is_named_and_mended(camp: Camp) -> None:
    broken = camp.folder / "python-of-old"
    broken.write_text("#!/bin/sh\ncase $2 in *version_info*11*) exit 1;; esac\necho CPython-3.6-x86_64\n")
    broken.chmod(0o755)
    bag = camp.submit("marked", 3, folder=str(camp.marks))
    camp.up("--workers", "2", "--python", str(broken))
    wait_until(lambda: camp.status()["held"] == 2, "they are held", LONG_S)
    (trouble,) = camp.status()["troubles"]
    assert trouble.startswith("2 workers are held (as ")
    assert ": no Python that fits on " in trouble
    assert "python-of-old is CPython-3.6-x86_64, too old: mtask needs Python 3.11" in trouble
    assert len(camp.pilots()) == 2, "no others come to the same end"
    camp.up("--workers", "2")
    camp.finish(bag)
    assert camp.status()["troubles"] == []


def test_what_no_machine_has_is_said(camp: Camp) -> None:
    camp.submit("marked", 1, folder=str(camp.marks))
    camp.up("--workers", "2", "--cpus", "64", "-j", "1")
    wait_until(lambda: camp.status()["waiting"] == 1, "it waits", LONG_S)
    (trouble,) = camp.status()["troubles"]
    assert trouble.startswith("1 worker waits in vain: no machine of the pool has cpus=64 ")
    assert "its only one offers cpus=8, memory=8.59GB, " in trouble
    waits = camp.pilots("ClusterId")
    camp.up("--workers", "3", "--cpus", "64", "-j", "1")
    assert camp.pilots("ClusterId") == waits, "the same again leaves those that wait in their place"
    camp.up("--workers", "2", "--require", "TARGET.Moon =?= True")
    wait_until(lambda: "Moon" in str(camp.status()["troubles"]), "it says so", LONG_S)
    camp.up("--workers", "2", "--tag", "x")
    wait_until(lambda: camp.status()["backlog"] == 0, "it works", LONG_S)


def test_shipped_code_runs_where_there_is_none(camp: Camp, pool: CondorPool) -> None:
    bag = camp.submit("marked", 4, folder=str(camp.marks))
    camp.up("--workers", "2", "--ship", "--max-runtime", "1h")
    settings = json.loads((camp.folder / ".mtask/fleets/fleet/pilot.json").read_text())
    assert settings["path"] == []
    assert [result.value for result in camp.finish(bag)] == [0, 2, 4, 6]
    text = TASKS.read_text().replace("2 * x", "3 * x")
    (camp.folder / "fleet_tasks.py").write_text(text)
    camp.up("--workers", "2", "--ship", "--max-runtime", "1h")
    wait_until(lambda: not camp.running(), "those with the old code are gone", LONG_S)
    again = camp.submit("marked", 2, folder=str(camp.marks))
    assert [result.value for result in camp.finish(again)] == [0, 3]


def keepers(camp: Camp) -> list[int]:
    """The processes of its keepers."""
    keeper = re.compile(rb"mtask_condor\.keeper\0.*" + str(camp.folder).encode())
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if keeper.search(path.read_bytes()):
                found.append(int(path.parent.name))
    return found


def stopped_between_looks(pid: int) -> bool:
    """SIGSTOP, but not while it holds a lock that others would wait for."""
    os.kill(pid, signal.SIGSTOP)
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    if all(str(pid) not in lock or "WRITE" not in lock for lock in locks):
        return True
    os.kill(pid, signal.SIGCONT)
    return False


def test_up_while_the_old_keeper_still_ends(camp: Camp) -> None:
    camp.up("--workers", "1")
    (old,) = wait_until(lambda: keepers(camp), "the keeper runs", LONG_S)
    wait_until(lambda: stopped_between_looks(old), "it is stopped between two looks")
    try:
        camp("down")
        camp.up("--workers", "1")
        wait_until(lambda: set(keepers(camp)) - {old}, "there is another", LONG_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGCONT)
    (camp.marks / "gate").touch()
    camp.finish(camp.submit("wait", 1, folder=str(camp.marks)))


def test_the_keeper_is_killed_and_removed(camp: Camp) -> None:
    camp.up("--workers", "2", "--min", "1")
    wait_until(lambda: camp.running() == 1, "one is there without tasks", LONG_S)
    (pid,) = wait_until(lambda: keepers(camp), "the keeper runs", LONG_S)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: keepers(camp) not in ([], [pid]), "there is another", LONG_S)
    bag = camp.submit("wait", 3, folder=str(camp.marks))
    wait_until(lambda: len(camp.begun()) == 2, "one more comes", LONG_S)
    camp.pool.run("condor_rm", "-constraint", "MtaskFleetKeeper =!= undefined")
    wait_until(lambda: not keepers(camp), "nobody keeps it", LONG_S)
    assert "nobody keeps the number of workers: `mtask fleet up`" in camp("status")
    camp.up("--workers", "2")
    (camp.marks / "gate").touch()
    camp.finish(bag)
    wait_until(lambda: not camp.pilots(), "without --min, none stays", LONG_S)
    assert camp.status()["troubles"] == []


def test_two_keepers_and_a_command_agree(camp: Camp, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = camp.submit("wait", 4, folder=str(camp.marks))
    camp.up("--workers", "3")
    for name in ("MTASK_QUEUE", "MTASK_TABLE"):
        monkeypatch.setenv(name, "what a keeper sets anew")
    folder = camp.folder / ".mtask/fleets/fleet"
    fleet = CondorFleet("condor", folder)
    before = fleet.record()
    environment = json.loads((folder / "environment.json").read_bytes())
    for _ in range(5):
        manager = step(fleet, fleet.record(), None)
        assert manager is not None
        manager.close()
        fleet.up(before.spec, environment, None)
        assert (len(camp.pilots()), fleet.seen().wanted) == (3, 3)
    assert fleet.record() == before
    wait_until(lambda: len(camp.begun()) == 3, "they work", LONG_S)
    (camp.marks / "gate").touch()
    camp.finish(bag)


def test_a_worker_lives_no_longer_than_it_may(camp: Camp) -> None:
    bag = camp.submit("marked", 24, folder=str(camp.marks), seconds=0.2)
    camp.up("--workers", "1", "--max-runtime", "2s")
    camp.finish(bag)
    begun = Counter(line for path in camp.marks.iterdir() for line in path.read_text().split())
    assert len(begun) > 1
    assert max(begun.values()) <= 11
    assert sum(begun.values()) == 24, "to drain costs nothing"

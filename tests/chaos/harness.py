"""A place with real workers that can be killed, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mtask.bag import BagHandle
from mtask.manager import connect
from mtask.model import Result
from mtask.settings import Urls

TASKS = Path(__file__).with_name("chaos_tasks.py")
CLOCK = Path(__file__).with_name("clock")


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float = 20) -> float:
    """Poll until it is true; returns the seconds that took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began_s


def exists(pid: int) -> bool:
    """Is there such a process (a zombie is none)?"""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class WorkerProcess:
    """`mtask worker` on its own."""

    def __init__(self, site: Site, options: Iterable[str]) -> None:
        self._said = site.folder / f"worker{len(site.workers)}.txt"
        self.started_at = time.time()
        with open(self._said, "wb") as said:
            self.process = subprocess.Popen(
                [*site.command, "worker", *options],
                cwd=site.folder,
                env=site.env,
                stderr=said,
            )
        self.pid = self.process.pid

    def kill(self) -> None:
        """As the out-of-memory killer does, or a host that vanishes."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def exit_code(self, *, timeout_s: float = 20) -> int:
        """Of a worker that ends."""
        return self.process.wait(timeout_s)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self._said.read_text()


class Begin(NamedTuple):
    """A line of the log: a task began."""

    task: int
    child: int
    worker: int


class Site:
    """A folder with a queue and a table, the workers there, and the log that their tasks write."""

    def __init__(self, folder: Path, urls: Urls | None = None) -> None:
        """`urls`: where queue and table are; by default in a file in the folder."""
        self.folder = folder
        self.log = folder / "log"
        self.gate = folder / "gate"
        here = f"sqlite:///{folder}/mtask.db"
        urls = urls or Urls(here, here)
        self.env = os.environ | {"MTASK_QUEUE": urls.queue, "MTASK_TABLE": urls.table}
        self.manager = connect(*urls)
        self.workers: list[WorkerProcess] = []
        self.command = [sys.executable, "-m", "mtask"]

    def submit(
        self, function: str, count: int, *, bag: str = "bag", lease_s: float = 3.0, **options: Any
    ) -> BagHandle:
        """`count` tasks, numbered from 0; what isn't an option of `submit` is a parameter of each."""
        known = {"per_message", "retries", "max_deliveries", "timeout_s", "serial"}
        settings = {key: value for key, value in options.items() if key in known}
        shared = {key: value for key, value in options.items() if key not in known}
        rows = [{"x": x, "log": str(self.log), **shared} for x in range(count)]
        return self.manager.submit(rows, call=f"{TASKS}:{function}", bag=bag, lease_s=lease_s, **settings)

    def start_worker(self, *options: str) -> WorkerProcess:
        worker = WorkerProcess(self, options)
        self.workers.append(worker)
        return worker

    def begins(self) -> list[Begin]:
        """All tasks that began, in order."""
        text = self.log.read_text() if self.log.exists() else ""
        return [Begin(*map(int, line.split())) for line in text.splitlines()]

    def begun(self, worker: WorkerProcess) -> set[int]:
        """The tasks that this worker began."""
        return {begin.task for begin in self.begins() if begin.worker == worker.pid}

    def set_clock(self, ahead_s: float) -> None:
        """The wall clock of all workers that were started after the first call."""
        clock = self.folder / "clock"
        path = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env |= {"CHAOS_CLOCK": str(clock), "PYTHONPATH": os.pathsep.join(path)}
        new = clock.with_suffix(".new")
        new.write_text(str(ahead_s))
        new.rename(clock)

    def open_gate(self) -> None:
        self.gate.touch()

    def close(self) -> None:
        self.open_gate()
        for worker in self.workers:
            if worker.alive:
                worker.go_on()
                worker.kill()
        self.manager.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, worker in enumerate(self.workers):
            print(f"worker {number} said:\n{worker.said()}")


def init(folder: Path, *args: str) -> str:
    """`mtask init`, and what it printed."""
    command = [sys.executable, "-m", "mtask", "init", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(bag: BagHandle) -> list[Result]:
    """What must hold at the end, whatever happened: each task has exactly one row."""
    results = list(bag.results())
    counts = bag.counts()
    assert [result.index for result in results] == list(range(counts.total))
    assert (counts.ended, counts.left) == (counts.total, 0)
    return results


def one_of_three_is_killed(
    site: Site, tasks: int, *, lease_s: float = 10, seconds: float = 0.01, **options: Any
) -> None:
    """Each task has its row, only those of the worker that was killed ran twice, and the others end in order."""
    bag = site.submit("work", tasks, lease_s=lease_s, seconds=seconds, **options)
    killed = site.start_worker("-j", "2")
    wait_for(lambda: site.begun(killed), "it works", timeout_s=60)
    others = [site.start_worker("-j", "2") for _ in range(2)]
    killed.kill()
    assert not bag.finished()
    wait_for(bag.finished, "all tasks have ended", timeout_s=120)
    assert [result.value for result in check(bag)] == list(range(tasks))
    times = Counter(begin.task for begin in site.begins())
    assert {task for task, number in times.items() if number > 1} <= site.begun(killed)
    assert set(times) == set(range(tasks))
    for worker in others:
        worker.terminate()
        assert worker.exit_code(timeout_s=40) == 0, worker.said()
    assert list(site.manager.table.dead()) == []

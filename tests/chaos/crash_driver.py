"""Kills a process at each of its writes, one after the other: `python -m tests.chaos.crash_driver SCENARIO FOLDER`.

For each point, in a fresh database: a process is killed by SIGKILL exactly there, then the machine
"reboots" (so that leases needn't be waited for), the same is done again without a fault, and what can be seen
from outside is checked. Queue and table are not written together here: it is as on a cloud, where
anything may happen between two requests. Prints JSON: the points, and what was wrong at which.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtask.append
import mtask.submitting
from mtask.bag import BagHandle
from mtask.manager import Manager
from mtask.model import Message, State
from mtask.testing.faults import Faults, FaultyQueue, FaultyTable
from mtask.worker.supervisor import Options, Worker
from mtask_sqlite import Database, SqliteQueue, SqliteTable

TASKS = Path(__file__).with_name("crash_tasks.py")
MOST_POINTS = 200
MOST_WRONG = 3
OPEN = {"add": 3, "retry-open": 2, "spawn": 2, "then": 2}
"""Scenarios with open bags, and how many tasks there are in the end."""
MOST_S = 10.0
"""A bag that isn't finished by then is one that doesn't heal."""


class Place:
    """One database, of one point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        os.environ["CRASH_FOLDER"] = str(folder)
        self.boots = 0

    def manager(self, faults: Faults | None = None) -> Manager:
        """As after a reboot: no lease holds any more."""
        self.boots += 1
        path = str(self.folder / "db")
        boot_id = f"boot-{os.getpid()}-{self.boots}"
        faults = faults or Faults()
        queue = SqliteQueue(Database.open(path), boot_id=boot_id)
        return Manager(FaultyQueue(queue, faults), FaultyTable(SqliteTable(Database.open(path)), faults))

    def log(self) -> Counter[int]:
        path = self.folder / "log"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def submit(manager: Manager, count: int = 12, *, function: str = "plain", **options: Any) -> BagHandle:
    rows = [{"x": x} for x in range(count)]
    options = {"per_message": 2, "retries": 1, "backoff_s": 0.0, **options}
    return manager.submit(rows, call=f"{TASKS}:{function}", bag="b", **options)


def work(manager: Manager, *, until_finished: bool = True, **options: Any) -> None:
    """Until the bag is finished, or until the queue is empty."""
    options = {"max_runtime_s": MOST_S, "idle_exit_s": None if until_finished else 0.2, **options}
    settings = Options(slots=1, **options)
    Worker(manager.queue, manager.table, settings, say=lambda _: None).run(
        manager.bag("b").finished if until_finished else None
    )


# Each scenario: what comes before, what is killed, and how it is gone on with.


def nothing(manager: Manager) -> None:
    pass


def failed_before(manager: Manager) -> None:
    submit(manager, 6, function="sick", retries=0)
    work(manager)


def lost_before(manager: Manager) -> None:
    submit(manager, 6)
    while deliveries := manager.queue.receive(max_messages=10, lease_s=60, wait_s=0):
        manager.queue.delete(deliveries)


def work_and_submit(manager: Manager) -> None:
    """A worker is quicker than whoever goes on with the submit."""
    work(manager, until_finished=False, idle_exit_s=0.05)
    submit(manager, 8)


def retry(manager: Manager) -> None:
    (Path(os.environ["CRASH_FOLDER"]) / "mended").touch()
    manager.bag("b").retry()


def cancel(manager: Manager) -> None:
    manager.bag("b").cancel()


def cancel_and_retry(manager: Manager) -> None:
    cancel(manager)
    retry(manager)


def add(manager: Manager) -> None:
    """Two tasks to an open bag, and one more, with which the second comes again."""
    options: dict[str, Any] = {"open": True, "per_message": 2, "bag": "b", "key": "x"}
    for numbers in ((0, 1), (1, 2)):
        manager.submit([{"x": x} for x in numbers], call=f"{TASKS}:plain", **options)
    manager.bag("b").seal()


def parent(manager: Manager) -> None:
    manager.submit([{"x": 2}], call=f"{TASKS}:spawn", bag="p", backoff_s=0.0)


def work_and_seal(manager: Manager) -> None:
    work(manager, until_finished=False)
    manager.bag("b").seal()


def with_then(manager: Manager) -> None:
    submit(manager, 2, then=f"{TASKS}:total")


def work_long(manager: Manager) -> None:
    """A worker that nobody tells of the bag."""
    work(manager, until_finished=False, idle_exit_s=1.0)


def retry_and_seal(manager: Manager) -> None:
    retry(manager)
    manager.bag("b").seal()


Step = Callable[[Manager], object]
SCENARIOS: dict[str, tuple[Step, Step, Step]] = {
    "submit": (nothing, submit, submit),
    "sent": (nothing, lambda m: submit(m, 8), work_and_submit),
    "work": (lambda m: submit(m, 5, function="moody"), work, work),
    "split": (
        lambda m: submit(m, 4, function="slow", per_message=4),
        lambda m: work(m, split_after_s=0.05),
        work,
    ),
    "drain": (
        lambda m: submit(m, 4, function="slow", per_message=4),
        lambda m: work(m, max_tasks=1, grace_s=0.0),
        work,
    ),
    "retry": (failed_before, retry, retry),
    "repair": (lost_before, lambda m: m.bag("b").repair(), lambda m: m.bag("b").repair()),
    "cancel": (lambda m: submit(m, 6), cancel_and_retry, cancel_and_retry),
    "add": (nothing, add, add),
    "retry-open": (
        lambda m: (submit(m, 2, function="sick", retries=0, open=True), work(m, until_finished=False)),
        retry,
        retry_and_seal,
    ),
    "then": (with_then, lambda m: work(m, until_finished=False), work_long),
    "spawn": (parent, lambda m: work(m, until_finished=False), work_and_seal),
}


def wrongs(place: Place, manager: Manager, scenario: str) -> list[str]:
    """What of the promises doesn't hold."""
    found = []
    bag = manager.bag("b")
    total = {"submit": 12, "sent": 8, "work": 5, "split": 4, "drain": 4, **OPEN}.get(scenario, 6)
    rows = Counter(result.index for result in bag.results())
    if rows != Counter(range(total)):
        found.append(f"rows: {dict(rows)}")
    counts = bag.counts()
    real = Counter(result.state for result in bag.results())
    if (counts.total, counts.done, counts.failed) != (total, real[State.DONE], real[State.FAILED]):
        found.append(f"{counts} but {dict(real)}")
    expected_failed = {4} if scenario == "work" else set()
    failed = {result.index for result in bag.results(states={State.FAILED})}
    if failed != expected_failed:
        found.append(f"failed: {failed}")
    if set(place.log()) != set(range(total)):
        found.append(f"ran: {dict(place.log())}")
    if scenario == "then" and [result.value for result in manager.bag("b.then").results()] != [1]:
        found.append(f"in b.then: {list(manager.bag('b.then').results())}")
    if not bag.finished():
        found.append(f"not finished: {bag.info.state}")
    work(manager, until_finished=False)
    if tuple(manager.queue.depth(["", *(lane.name for lane, _ in manager.table.lanes())])) != (0, 0, 0):
        left = [Message.decode(d.body) for d in manager.queue.receive(max_messages=9, lease_s=1, wait_s=0)]
        found.append(f"in the queue at the end: {left}")
    if list(manager.table.dead()):
        found.append("messages were set aside")
    return found


def in_a_process(step: Callable[[], object]) -> int:
    """Wait status of a forked process that does it."""
    pid = os.fork()
    if pid == 0:
        try:
            step()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_point(folder: Path, scenario: str, point: int) -> tuple[bool, list[str]]:
    """(was there such a point, what was wrong)."""
    place = Place(folder)
    before, killed, again = SCENARIOS[scenario]
    report = folder / "report.json"

    def prepare() -> None:
        before(place.manager())

    def run() -> None:
        killed(place.manager(Faults(crash_at=point)))

    def go_on() -> None:
        manager = place.manager()
        again(manager)
        work(manager)
        report.write_text(json.dumps(wrongs(place, manager, scenario)))

    if in_a_process(prepare) != 0:
        return False, ["the preparation failed"]
    status = in_a_process(run)
    if status not in (0, -signal.SIGKILL):
        return False, [f"it ended with {status}"]
    if in_a_process(go_on) != 0:
        return True, ["it could not be gone on with"]
    return status == -signal.SIGKILL, json.loads(report.read_text())


def main() -> None:
    mtask.submitting.SEND_BLOCKS = 2  # so that a small bag is sent in several batches
    mtask.append.BLOCK_BYTES = 12  # and is added in several blocks, without waiting long for the dead
    mtask.append.PATIENCE_S = 0.05
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    wrong: dict[int, list[str]] = {}
    # Nothing happens between one write of an open bag and the next: to die after one is to die before the next.
    for point in range(0, MOST_POINTS, 2 if scenario in OPEN else 1):
        crashed, found = at_point(folder / str(point), scenario, point)
        if found:
            wrong[point] = found
        if not crashed or len(wrong) == MOST_WRONG:
            break
    print(json.dumps({"points": point, "wrong": wrong}))


if __name__ == "__main__":
    main()

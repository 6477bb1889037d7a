"""A seeded storm over a bag: workers die, freeze and drain, queue and table go away, clocks jump.

Afterwards `wrongs` looks from outside at what must hold, whatever happened. A long one, with its figures:
`make chaos`, or `python -m tests.chaos --help`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mtask.bag import BagHandle
from mtask.model import Reason, Result, State
from mtask.settings import Urls
from tests.chaos.harness import Site, WorkerProcess
from tests.chaos.storm_witness import Fault, Run, Witness, received

HERE = Path(__file__).parent
LEASE_S = 3.0
RETRIES = 1
PER_MESSAGE = 5
SEED = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(2)))
"""Of this run; what failed can be tried again with the same one."""
MOST_DEATHS = 8
"""So many random kills in a row hit hardly any innocent task."""
COMMAND = """
worker=${MTASK_WORKER%-*}
echo "$x $$ ${worker##*-} $(date +%s.%N)" >> "$folder/log"
if [ "$kind" = poison ]; then kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); fi
sleep "$seconds"
[ "$kind" = plain ]
"""


class Plan(NamedTuple):
    """How bad it gets."""

    seed: int
    tasks: int
    workers: int
    every_s: float
    """Between faults, on average."""
    kinds: dict[str, float]
    """Fault → weight."""
    task_s: float
    """Of a slow task; most are quick."""
    rates: dict[str, float]
    """Of chance faults in each call of a worker to queue and table; with any, a message may be lost."""
    kill_every_s: float = math.inf
    """Beside the other faults."""
    poison: int = 0
    """Tasks that kill their workers."""


class Storm:
    """Submits two bags, of functions and of commands, and runs them in bad weather."""

    def __init__(self, folder: Path, plan: Plan, urls: Urls | None = None) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.site = Site(folder, urls)
        self.down = folder / "down"
        self.down.mkdir()
        self.site.command = [sys.executable, str(HERE / "storm_worker.py")]
        self._receipts = folder / "receipts"
        harm = {
            "seed": plan.seed,
            "rates": plan.rates,
            "down": str(self.down),
            "receipts": str(self._receipts),
        }
        self.site.env["CHAOS"] = json.dumps(harm)
        self.site.set_clock(0)
        self.faults: list[Fault] = []
        self.wrong: list[str] = []
        self.repairs = 0
        self._until: list[tuple[float, Callable[[], None]]] = []
        self._alive: list[WorkerProcess] = []
        self._doomed: dict[WorkerProcess, set[int]] = {}
        """Workers about to end → exit codes that are right then."""
        self.bags, self.kinds = self._submit()
        self.began_s = time.time()

    def _submit(self) -> tuple[list[BagHandle], dict[str, list[str]]]:
        (self.site.folder / "functions").mkdir()
        (self.site.folder / "commands").mkdir()
        bags, kinds = [], {}
        call = f"{HERE / 'storm_tasks.py'}:work"
        for name, count in (("functions", self.plan.tasks * 9 // 10), ("commands", self.plan.tasks // 10)):
            rows = list(self._rows(count, str(self.site.folder / name)))
            what = {"call": call} if name == "functions" else {"shell": COMMAND}
            options = {"lease_s": LEASE_S, "retries": RETRIES, "max_deliveries": MOST_DEATHS}
            bags.append(self.site.manager.submit(rows, bag=name, per_message=PER_MESSAGE, **options, **what))
            kinds[name] = [str(row["kind"]) for row in rows]
        return bags, kinds

    def _rows(self, count: int, folder: str) -> Iterator[dict[str, object]]:
        """A third are slow, and one in a hundred takes longer than its lease."""
        poison = set(self.rng.sample(range(count), self.plan.poison))
        for x in range(count):
            kind = self.rng.choices(["plain", "moody", "sick"], [97, 2, 1])[0]
            if kind == "moody" and folder.endswith("commands"):
                kind = "sick"
            seconds = self.plan.task_s * self.rng.choices([0.01, self.rng.random()], [2, 1])[0]
            if self.rng.random() < 0.01:
                seconds = 1.5 * LEASE_S
            kind = "poison" if x in poison else kind
            yield {"x": x, "folder": folder, "seconds": round(seconds, 4), "kind": kind}

    # -- the weather --------------------------------------------------------------------------------

    def rage(self, seconds: float) -> None:
        """Until so many seconds have passed, or all is done."""
        plan, end_s, next_s = self.plan, time.monotonic() + seconds, 0.0
        next_kill_s = time.monotonic() + plan.kill_every_s
        while time.monotonic() < end_s and not self.finished():
            self._keep_up()
            if time.monotonic() >= next_s:
                getattr(self, self.rng.choices(list(plan.kinds), list(plan.kinds.values()))[0])()
                next_s = time.monotonic() + plan.every_s * self.rng.uniform(0.5, 1.5)
            if time.monotonic() >= next_kill_s:
                self.kill()
                next_kill_s += plan.kill_every_s
            time.sleep(0.02)

    def calm(self, *, timeout_s: float) -> None:
        """No more faults; all ends."""
        for _, end in self._until:
            end()
        self._until.clear()
        began_s = moved_s = time.monotonic()
        ended = -1
        while not self.finished():
            self._keep_up()
            now_ended = sum(bag.counts().ended for bag in self.bags)
            if now_ended != ended:
                ended, moved_s = now_ended, time.monotonic()
            if self.plan.rates and time.monotonic() - moved_s > 2 * LEASE_S:
                self.repairs += sum(bag.repair() for bag in self.bags)
                moved_s = time.monotonic()
            if time.monotonic() - began_s > timeout_s:
                self.wrong.append(f"not finished {timeout_s:g} s after the storm: {self.counts()}")
                break
            time.sleep(0.05)
        for worker in self._alive:
            worker.terminate()
            code, right = worker.exit_code(), self._doomed.get(worker, {0})
            # One that has only just been started doesn't listen yet.
            if code not in right and (code, worker.said()) != (-signal.SIGTERM, ""):
                self.wrong.append(f"a worker ended with {code}: {worker.said()[-1000:]}")
        self._alive.clear()

    def finished(self) -> bool:
        return all(bag.finished() for bag in self.bags)

    def counts(self) -> str:
        return f"{[bag.counts() for bag in self.bags]}, queue {self.site.manager.queue.depth()}"

    def _keep_up(self) -> None:
        """End what has lasted long enough, and start a worker for each that has gone."""
        now_s = time.monotonic()
        for due in [due for due in self._until if due[0] <= now_s]:
            self._until.remove(due)
            due[1]()
        for worker in [worker for worker in self._alive if not worker.alive]:
            self._alive.remove(worker)
            if worker not in self._doomed and self.plan.poison:
                self._note("poison", worker, math.inf)
                self._doomed[worker] = {-signal.SIGKILL}
            if worker.exit_code() not in self._doomed.pop(worker, set()):
                self.wrong.append(f"a worker ended with {worker.exit_code()}: {worker.said()[-1000:]}")
        options = ["-j", "2", "--grace", "0.3s", "--split-after", "1s", "--lease", f"{LEASE_S}s"]
        while len(self._alive) < self.plan.workers:
            self._alive.append(self.site.start_worker(*options))

    def _one(self) -> WorkerProcess | None:
        """Any that works: when it has just started or is ending, it may still be hit."""
        free = [worker for worker in self._alive if worker not in self._doomed]
        return self.rng.choice(free) if free else None

    def _note(self, kind: str, worker: WorkerProcess | None, lasts_s: float = 0.0) -> None:
        now_s = time.time()
        self.faults.append(Fault(kind, worker, now_s, now_s + lasts_s))

    def kill(self) -> None:
        if (worker := self._one()) is not None:
            self._note("kill", worker, math.inf)
            self._doomed[worker] = {-signal.SIGKILL}
            worker.kill()

    def drain(self) -> None:
        if (worker := self._one()) is not None:
            self._note("drain", worker, math.inf)
            # Its last results can't be written while the table is away: it says so. Right at its start,
            # before it listens, the signal ends it as it ends any program.
            self._doomed[worker] = {0, 3, -signal.SIGTERM}
            worker.terminate()

    def freeze(self) -> None:
        """The whole worker stands still for longer than its leases, as a suspended machine does."""
        self._freeze(lambda worker: [worker.pid, *_children(worker.pid)], "freeze")

    def freeze_supervisor(self) -> None:
        """Its children run on meanwhile."""
        self._freeze(lambda worker: [worker.pid], "freeze_supervisor")

    def _freeze(self, pids_of: Callable[[WorkerProcess], list[int]], kind: str) -> None:
        if (worker := self._one()) is None:
            return
        lasts_s = LEASE_S * self.rng.uniform(1.1, 2.0)
        pids = pids_of(worker)
        self._doomed[worker] = set()

        def thaw() -> None:
            for pid in reversed(pids):
                _signal(pid, signal.SIGCONT)
            self._doomed.pop(worker, None)

        self._note(kind, worker, lasts_s)
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        self._until.append((time.monotonic() + lasts_s, thaw))

    def queue_outage(self) -> None:
        self._outage("queue")

    def table_outage(self) -> None:
        self._outage("table")

    def _outage(self, side: str) -> None:
        gone = self.down / side
        if not gone.exists():
            lasts_s = LEASE_S * self.rng.uniform(0.2, 2.0)
            self._note(f"{side}_outage", None, lasts_s)
            gone.touch()
            self._until.append((time.monotonic() + lasts_s, gone.unlink))

    def clock_jump(self) -> None:
        """By an hour, in either direction, on all workers."""
        self._note("clock_jump", None)
        self.site.set_clock(self.rng.choice([-3600, 0, 3600]))

    # -- afterwards ---------------------------------------------------------------------------------

    def wrongs(self) -> list[str]:
        """What of the promises doesn't hold, printed, too; empty: they do."""
        found = list(self.wrong)
        for bag in self.bags:
            found += self._wrong_rows(bag) + self._wrong_runs(bag)
        before = {bag.name: len(self.runs(bag)) for bag in self.bags}
        # Long enough for the leases of what a vanished request left behind.
        worker = self.site.start_worker("--idle-exit", f"{LEASE_S + 1}s")
        if worker.exit_code(timeout_s=60) != 0:
            found.append(f"the last worker: {worker.said()[-1000:]}")
        if before != {bag.name: len(self.runs(bag)) for bag in self.bags}:
            found.append("tasks that had a row were run again at the end")
        lanes = ["", *(lane.name for lane, _ in self.site.manager.table.lanes())]
        depth = tuple(self.site.manager.queue.depth(lanes))
        if any(depth):  # None: the queue can't know
            found.append(f"in the queue at the end: {depth}")
        if dead := list(self.site.manager.table.dead()):
            found.append(f"set aside: {dead[:3]}")
        if found:
            print(*found, sep="\n")
            print(*(f"worker {worker.pid} said: {worker.said()}" for worker in self.site.workers), sep="\n")
        return found

    def _wrong_rows(self, bag: BagHandle) -> list[str]:
        kinds, rows, found = self.kinds[bag.name], list(bag.results()), []
        if [row.index for row in rows] != list(range(len(kinds))):
            found.append(f"{bag.name}: {len(rows)} rows of {len(kinds)} tasks, or not one each")
        states = Counter(row.state for row in rows)
        counts = bag.counts()
        if (counts.done, counts.failed, counts.left) != (states[State.DONE], states[State.FAILED], 0):
            found.append(f"{bag.name}: {counts}, but the rows are {dict(states)}")
        for row in rows:
            if not _is_right(row, kinds[row.index]):
                found.append(f"{bag.name}: {kinds[row.index]} task {row.index} is {row.state}: {row.error}")
        return found

    def runs(self, bag: BagHandle) -> dict[int, list[Run]]:
        """What ran of each task, in order of time."""
        runs = defaultdict(list)
        for line in (self.site.folder / bag.name / "log").read_text().splitlines():
            index, child, worker, at_s = line.split()
            runs[int(index)].append(Run(int(index), int(child), int(worker), float(at_s)))
        return {index: sorted(found, key=lambda run: run.at_s) for index, found in runs.items()}

    def twice(self, bag: BagHandle) -> Iterator[tuple[Run, Run]]:
        """Pairs of runs of a task, one of which did not need to be. Attempts that failed needed another."""
        for index, runs in self.runs(bag).items():
            if self.kinds[bag.name][index] == "plain":
                yield from itertools.pairwise(runs)

    def _wrong_runs(self, bag: BagHandle) -> list[str]:
        found = []
        if missing := set(range(len(self.kinds[bag.name]))) - set(self.runs(bag)):
            found.append(f"{bag.name}: never run: {sorted(missing)[:10]}")
        if not self.plan.rates:
            witness = Witness(self.site.workers, self.faults, received(self._receipts, bag.name))
            for index, runs in self.runs(bag).items():
                witness.saw(index // PER_MESSAGE, runs)
            found += [
                f"{bag.name}: run twice without a reason: {witness.story(second)}"
                for _, second in self.twice(bag)
                if not witness.explains(second)
            ]
        return found

    def figures(self) -> dict[str, object]:
        """What happened, to be written down."""
        kinds = Counter(fault.kind for fault in self.faults)
        return {
            "seed": self.plan.seed,
            "seconds": round(time.time() - self.began_s),
            "tasks": self.plan.tasks,
            "workers started": len(self.site.workers),
            "faults": dict(sorted(kinds.items())),
            "runs": sum(len(runs) for bag in self.bags for runs in self.runs(bag).values()),
            "run twice": sum(1 for bag in self.bags for _ in self.twice(bag)),
            "sent again by repair": self.repairs,
            "states": dict(
                sum((Counter(row.state.value for row in bag.results()) for bag in self.bags), Counter())
            ),
        }


def storm_is_survived(
    folder: Path,
    urls: Urls | None = None,
    *,
    tasks: int,
    seconds: float,
    every_s: float = 0.8,
    rates: dict[str, float] | None = None,
) -> None:
    """All faults for so long, after which nothing may be wrong."""
    print(f"CHAOS_SEED={SEED}")
    plan = Plan(seed=SEED, tasks=tasks, workers=3, every_s=every_s, kinds=ALL, task_s=0.2, rates=rates or {})
    storm = Storm(folder, plan, urls)
    try:
        storm.rage(seconds)
        storm.calm(timeout_s=90)
        wrongs = storm.wrongs()
        print(storm.figures())
    finally:
        storm.site.close()
    assert wrongs == []


def _is_right(row: Result, kind: str) -> bool:
    """A task that fails always has failed after all its attempts, one that kills is lost, any other is done."""
    if kind == "poison":
        return row.error is not None and row.error.reason is Reason.LOST
    if kind == "sick":
        return row.state is State.FAILED and row.attempt == 1 + RETRIES
    return row.state is State.DONE


def _children(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *_children(child)]
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


ALL: Final = {
    "kill": 5.0,
    "drain": 2.0,
    "freeze": 1.0,
    "freeze_supervisor": 1.0,
    "queue_outage": 1.0,
    "table_outage": 1.0,
    "clock_jump": 1.0,
}
"""Of a hard storm."""
CHANCES = {"before": 0.03, "after": 0.03, "duplicate": 0.05, "drop": 0.02, "delay": 0.05}
"""Of a flaky one."""

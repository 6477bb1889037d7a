"""The throughput study: the same abstracts, more and more instances, and tables that take their time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import mtask
from examples.arxiv.slow_table.mtask_slow import Stored, stored
from examples.arxiv.studies.processes import ROOT, environment, find_packages, running

TABLES_S = {"null": 0.0, "fast": 0.06, "reliable": 0.1}
"""How long the table's service takes for one call, in seconds."""
UP_S, LONGEST_S = 120.0, 900.0
"""So long a worker may take to start, and a bag to be done."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    documents: int = 200
    classification_s: float = 0.45
    real: bool = True
    """Classify within that time; else only sleep."""
    learn: int = 600
    """Papers to train the models with."""
    instances: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    several: tuple[int, int] | None = (3, 8)
    """Besides: so many workers, with so many instances each."""
    at_once: int = 24
    """Runs of few instances, which mostly sleep, are done side by side, up to so many instances in all."""
    repeats: int = 3
    """Of the runs of one worker with `at_once` slots."""

    def bound(self, instances: int) -> float:
        """The best speed-up there can be: the tasks are equal, and the last round may not be full."""
        return self.documents / -(-self.documents // instances)


class Size(NamedTuple):
    """So many workers with so many slots each, and the tables that are measured with them, one after the other."""

    workers: int
    slots: int
    tables: tuple[str, ...]

    @property
    def instances(self) -> int:
        return self.workers * self.slots


class Run(NamedTuple):
    """One table with so many instances; the median of its repetitions."""

    table: str
    workers: int
    instances: int
    """Of all workers together."""
    took_s: float
    """From the first start of a task to the last end, by the rows' own times."""
    stored_s: float
    """From the first start of a task until the last row was stored."""
    writes: int
    """Calls of the table that stored all rows."""
    all_took_s: list[float]
    """Of all repetitions."""


def study(
    plan: Plan, papers: Sequence[dict[str, str]], folder: Path, say: Callable[[str], None] = lambda _: None
) -> list[Run]:
    """All runs, fewest instances first. `folder` is for what they leave behind; `say` is told what is next."""
    find_packages()
    if plan.real:
        _train(papers[plan.documents :][: plan.learn], folder)
    documents = [{key: paper[key] for key in ("title", "abstract")} for paper in papers[: plan.documents]]
    runs = []
    for group in _groups(plan):
        counts = dict.fromkeys(f"{size.workers} × {size.slots}" for size in group)
        say(f"workers × instances: {', '.join(counts)}")
        runs += _together(plan, documents, folder, group)
    return sorted(runs, key=lambda run: (run.instances, run.workers, list(TABLES_S).index(run.table)))


def _train(papers: Sequence[dict[str, str]], folder: Path) -> None:
    file = folder / "papers.json"
    file.write_text(json.dumps(papers), encoding="utf-8")
    command = [sys.executable, "-m", "examples.arxiv.studies.model", str(file), str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment(folder), check=True)


def _groups(plan: Plan) -> list[list[Size]]:
    """What is measured side by side, and what by itself."""
    groups: list[list[Size]] = [[]]
    for workers, slots in [
        *((1, slots) for slots in plan.instances),
        *([plan.several] if plan.several else []),
    ]:
        apart = workers * slots * len(TABLES_S) <= plan.at_once
        for tables in [(table,) for table in TABLES_S] if apart else [tuple(TABLES_S)]:
            size = Size(workers, slots, tables)
            if sum(each.instances for each in [*groups[-1], size]) > plan.at_once:
                groups.append([])
            groups[-1].append(size)
    return [group for group in groups if group]


def _together(
    plan: Plan, documents: Sequence[dict[str, str]], folder: Path, group: Sequence[Size]
) -> list[Run]:
    """None begins before the instances of all are ready."""
    ready = threading.Barrier(len(group))
    repeats = plan.repeats if group[0].slots == plan.at_once else 1
    rows = [{**document, "least_s": plan.classification_s, "real": plan.real} for document in documents]

    def measured(size: Size) -> list[Run]:
        place = folder / f"{size.workers}x{size.slots}-{size.tables[0]}"
        try:
            with _instances(size, folder, place, real=plan.real) as manager:
                ready.wait()
                runs = [_once(rows, manager, place, size, table) for table in size.tables * repeats]
        except BaseException:
            ready.abort()  # nobody waits for this one
            raise
        by_table = sorted(runs, key=lambda run: (run.table, run.took_s))
        return [_median(list(of_table)) for _, of_table in groupby(by_table, lambda run: run.table)]

    with ThreadPoolExecutor(len(group)) as pool:
        futures = [pool.submit(measured, size) for size in group]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the cause before its consequences
    return [run for future in futures for run in future.result()]


def _once(
    rows: Sequence[dict[str, object]], manager: mtask.Manager, place: Path, size: Size, table: str
) -> Run:
    name = f"{table}-{len(manager.bags())}"
    bag = manager.submit(rows, call="examples.arxiv.studies.work:classify", bag=name)
    bag.wait(timeout_s=LONGEST_S)
    results = list(bag.results())
    _require_all_done(results, place)
    began_at = min(result.started_at or 0.0 for result in results)
    took_s = max(result.finished_at or 0.0 for result in results) - began_at
    calls = _calls(place / "table.db.stored", name, len(rows))
    return Run(table, size.workers, size.instances, took_s, calls[-1].at - began_at, len(calls), [took_s])


def _calls(file: Path, bag: str, rows: int) -> list[Stored]:
    """All that stored the bag's rows; a row can be read a little before the service says that it is stored."""
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        calls = stored(file, bag)
        if sum(call.rows for call in calls) >= rows:
            return calls
        time.sleep(0.01)
    raise RuntimeError(f"{file}: not all {rows} rows of {bag} were stored")


def _median(runs: Sequence[Run]) -> Run:
    """By `took_s`, in whose order they are."""
    return runs[len(runs) // 2]._replace(all_took_s=[run.took_s for run in runs])


@contextmanager
def _instances(size: Size, folder: Path, place: Path, *, real: bool) -> Iterator[mtask.Manager]:
    """`mtask worker -j SLOTS`, on a queue and a table of their own, with the model loaded in each slot."""
    (place / "ready").mkdir(parents=True)
    services = "&".join(f"{table}={took_s}" for table, took_s in TABLES_S.items())
    queue, table = f"sqlite:///{place}/queue.db", f"slow:///{place}/table.db?{services}"
    places = ["--queue", queue, "--table", table]
    command = [sys.executable, "-m", "mtask", "worker", "-j", str(size.slots), "--idle-exit", "15m", *places]
    with ExitStack() as stack:
        manager = stack.enter_context(mtask.connect(queue, table))
        for number in range(size.workers):
            stack.enter_context(running(command, folder, place / f"worker-{number}.log"))
        _wait_for_workers(manager, size.workers, place)
        common = {"of": size.instances, "folder": str(place / "ready"), "real": real}
        rows = [{"number": number, **common} for number in range(size.instances)]
        bag = manager.submit(rows, call="examples.arxiv.studies.work:get_ready", bag="ready")
        bag.wait(timeout_s=LONGEST_S)
        _require_all_done(list(bag.results()), place)
        yield manager


def _wait_for_workers(manager: mtask.Manager, workers: int, place: Path) -> None:
    until_s = time.monotonic() + UP_S
    while len(manager.table.workers()) < workers:
        if time.monotonic() > until_s:
            said = "".join(log.read_text() for log in sorted(place.glob("worker-*.log")))
            raise RuntimeError(
                f"{workers} workers should be up after {UP_S:g} s; they said: {said or 'nothing'}"
            )
        time.sleep(0.05)


def _require_all_done(results: Sequence[mtask.Result], place: Path) -> None:
    bad = [result for result in results if result.state is not mtask.State.DONE]
    if bad:
        raise RuntimeError(
            f"{place.name}: {len(bad)} of {len(results)} tasks failed, the first with {bad[0].error}"
        )


def speedup(plan: Plan, run: Run, *, until_stored: bool = False) -> float:
    """Over one instance that does nothing but classify: on a busy machine, one that was measured would flatter."""
    return plan.documents * plan.classification_s / (run.stored_s if until_stored else run.took_s)

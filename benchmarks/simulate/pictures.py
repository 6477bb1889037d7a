"""The pictures of docs/scale.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.simulate.bound import greedy_s
from benchmarks.simulate.charts import Chart, Line
from benchmarks.simulate.clouds import CLOUDS
from benchmarks.simulate.fleet import simulate
from benchmarks.simulate.setup import Outcome, Setup
from benchmarks.simulate.times import task_times

__all__ = ["draw"]

SLOTS = (10, 30, 100, 300, 1000, 3000)
TASKS_A_SLOT = 100
TASK_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TASKS, FLEET = 200_000, 20


def draw(folder: Path) -> list[Path]:
    """Write them; returns their paths."""
    costs = {cloud: [_cost(cloud, task_s) for task_s in TASK_S] for cloud in ("aws", "gcp", "azure")}
    pictures = {"bound": _bound(), "requests": _requests(costs), "dollars": _dollars(costs)}
    paths = []
    for name, svg in pictures.items():
        paths.append(folder / f"scale-{name}.svg")
        paths[-1].write_text(svg, encoding="utf-8")
    return paths


def _cost(cloud: str, task_s: float) -> Outcome:
    times_s = task_times(f"constant:{task_s}", TASKS, seed=1)
    return simulate(Setup(times_s, FLEET, cloud=CLOUDS[cloud]))


def _bound() -> str:
    lines = {name: Line(name, []) for name in ("no preemption", "one an hour", "… and longest first")}
    lines["last"] = Line("… given back last", [], dashed=True)
    greedy = Line("costless greedy", [], dashed=True)
    for slots in SLOTS:
        times_s = task_times("lognormal:60:0.7", TASKS_A_SLOT * slots, seed=1)
        setup = Setup(times_s, slots, cloud=CLOUDS["aws"])
        hourly = replace(setup, preempt_per_hour=1.0)
        longest = replace(hourly, times_s=np.sort(times_s)[::-1], per_message=1)
        cases = (setup, hourly, longest, replace(hourly, front=False))
        for line, case in zip(lines.values(), cases, strict=True):
            out = simulate(case)
            line.points.append((slots, out.bound_s / out.makespan_s))
        greedy.points.append((slots, max(times_s.max(), times_s.sum() / slots) / greedy_s(times_s, slots)))
    chart = Chart(
        f"{TASKS_A_SLOT} log-normal tasks a slot, mean 60 s, SQS",
        "slots",
        "share of the bound",
        x_ticks=[10, 30, 100, 300, 1000, 3000],
        y_ticks=[0.6, 0.7, 0.8, 0.9, 1.0],
        log_y=False,
        y_format="{:.0%}",
    )
    return chart.svg([*lines.values(), greedy])


def _requests(costs: dict[str, list[Outcome]]) -> str:
    lines = [
        Line(cloud, [(task_s, out.count.requests / TASKS) for task_s, out in zip(TASK_S, outs, strict=True)])
        for cloud, outs in costs.items()
    ]
    chart = Chart(
        f"{TASKS:,} tasks on {FLEET} slots",
        "seconds a task",
        "queue requests a task",
        x_ticks=[0.01, 0.1, 1, 10, 100],
        y_ticks=[0.001, 0.01, 0.1, 1, 10],
    )
    goal = Line("0.05", [(0.01, 0.05), (100, 0.05)], dashed=True)
    return chart.svg([*lines, goal])


def _dollars(costs: dict[str, list[Outcome]]) -> str:
    def line(cloud: str) -> Line:
        price = CLOUDS[cloud]
        points = [
            (task_s, (price.queue_dollars(out.count) + price.table_dollars(out.count)) * 1e6 / TASKS)
            for task_s, out in zip(TASK_S, costs[cloud], strict=True)
        ]
        return Line(cloud, points)

    chart = Chart(
        f"{TASKS:,} tasks on {FLEET} slots",
        "seconds a task",
        "dollars a million tasks, queue and table",
        x_ticks=[0.01, 0.1, 1, 10, 100],
        y_ticks=[0.03, 0.1, 0.3, 1, 3, 10, 30, 100],
    )
    return chart.svg([line(cloud) for cloud in ("aws", "gcp", "azure")])

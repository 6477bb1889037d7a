"""The pictures: the speed-up beside what was published, and the time line of the functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.arxiv.studies.serverless import Outcome
from examples.arxiv.studies.throughput import TABLES_S, Plan, Run, speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED = {16: (8.5, "published: 16 on nine servers"), 24: (13.0, "published: 24 on ten cores, null")}
"""Instances → speed-up; read off a curve, so about."""
COLOURS = {"null": "#1b7837", "fast": "#2166ac", "reliable": "#b2182b"}
MARKERS = {"null": ("o", 11), "fast": ("s", 7), "reliable": ("^", 4)}
"""The smallest on top: the points may lie on each other."""
STARTING, MAIN, TOPIC = "#d9d9d9", "#b2182b", "#2166ac"


def amdahl(plan: Plan, instances: int, service_s: float) -> float:
    """The speed-up where each task is followed by a service, one at a time, which is waited for."""
    alone_s = plan.classification_s + service_s
    return alone_s / (plan.classification_s / instances + service_s)


def draw_speedup(plan: Plan, runs: Sequence[Run], folder: Path) -> None:
    """experiment-speedup.svg and .png."""
    figure, axes = _figure(8, 5.5)
    every = range(1, max(plan.instances) + 1)
    axes.step(
        every,
        [plan.bound(n) for n in every],
        where="mid",
        color="#999999",
        lw=1,
        label="bound: equal tasks in rounds",
    )
    for table in TABLES_S:
        marker, size = MARKERS[table]
        of_table = [run for run in runs if run.table == table and run.workers == 1]
        points = [run.instances for run in of_table], [speedup(plan, run) for run in of_table]
        axes.plot(*points, marker=marker, ms=size, color=COLOURS[table], lw=1, label=f"mtask, table {table}")
        if service_s := TABLES_S[table]:
            curve = [amdahl(plan, n, service_s) for n in every]
            label = f"Amdahl's law, {table}: at most {(plan.classification_s + service_s) / service_s:.1f}"
            axes.plot(every, curve, "--", color=COLOURS[table], lw=1, label=label)
    several = [run for run in runs if run.workers > 1]
    for run in several:
        label = f"mtask, {run.workers} workers" if run is several[0] else None
        axes.plot(run.instances, speedup(plan, run), "x", ms=9, color=COLOURS[run.table], label=label)
    for marker, (instances, (value, label)) in zip("DP", PUBLISHED.items(), strict=True):
        axes.plot(instances, value, marker, ms=8, mfc="white", color="black", ls="none", label=label)
    axes.set(xlabel="instances", ylabel="speed-up over one instance", xlim=(0, 25), ylim=(0, 24))
    axes.set_xticks(plan.instances)
    axes.set_title(f"{plan.documents} abstracts, {plan.classification_s * 1000:.0f} ms each")
    axes.grid(color="#eeeeee")
    axes.legend(fontsize="small", loc="upper left")
    _save(figure, folder / "experiment-speedup")


def draw_timeline(outcome: Outcome, folder: Path) -> None:
    """experiment-timeline.svg and .png."""
    figure, axes = _figure(8, 1.5 + 0.055 * len(outcome.spans))
    kinds = {"main classifier": MAIN, "topic classifier": TOPIC, "its process starts or ends": STARTING}
    ordered = sorted(outcome.spans, key=lambda span: (span.started_s, span.document))
    bars = [(row, span.started_s, span.over_s, STARTING) for row, span in enumerate(ordered)]
    bars += [
        (row, span.began_s, span.ended_s, TOPIC if span.topic else MAIN) for row, span in enumerate(ordered)
    ]
    axes.hlines(*zip(*bars, strict=True), lw=3)
    from matplotlib.patches import Patch

    axes.legend(handles=[Patch(color=colour, label=kind) for kind, colour in kinds.items()], loc="lower left")
    axes.set(xlabel="seconds", ylabel="executions", ylim=(len(outcome.spans), -1), xlim=(0, None))
    axes.set_title(f"{len(outcome.spans)} executions, up to {outcome.most_at_once} at once")
    _save(figure, folder / "experiment-timeline")


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mtask", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=100)
    pyplot.close(figure)

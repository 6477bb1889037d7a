"""The figures as text: tables in Markdown, which go between markers of a page, and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.arxiv.studies import serverless, throughput
from examples.arxiv.studies.pictures import PUBLISHED, amdahl
from examples.arxiv.studies.throughput import TABLES_S, Run, speedup

PAGE, FIGURES = "experiment.md", "experiment.json"
_EMPTY = "# The experiments again\n\n<!-- throughput -->\n<!-- end -->\n\n<!-- serverless -->\n<!-- end -->\n"


def throughput_table(plan: throughput.Plan, runs: Sequence[Run]) -> str:
    rows = [
        [
            "instances",
            *TABLES_S,
            "bound",
            *(f"Amdahl, {table}" for table in TABLES_S if TABLES_S[table]),
            "published",
        ]
    ]
    for workers, instances in dict.fromkeys((run.workers, run.instances) for run in runs):
        measured = {run.table: run for run in runs if (run.workers, run.instances) == (workers, instances)}
        rows.append(
            [
                str(instances) if workers == 1 else f"{instances}, in {workers} workers",
                *(f"{speedup(plan, measured[table]):.2f}" for table in TABLES_S),
                f"{plan.bound(instances):.2f}",
                *(f"{amdahl(plan, instances, took_s):.2f}" for took_s in TABLES_S.values() if took_s),
                f"{PUBLISHED[instances][0]:g}" if instances in PUBLISHED and workers == 1 else "",
            ]
        )
    return _markdown(rows)


def times_table(plan: throughput.Plan, runs: Sequence[Run]) -> str:
    rows = [
        [
            "instances",
            "table",
            "first start to last end",
            "until the last row is stored",
            "speed-up until then",
        ]
    ]
    rows[0] += ["documents a second", "calls of the table"]
    for run in runs:
        rows.append(
            [
                str(run.instances) if run.workers == 1 else f"{run.instances}, in {run.workers} workers",
                run.table,
                f"{run.took_s:.2f} s",
                f"{run.stored_s:.2f} s",
                f"{speedup(plan, run, until_stored=True):.2f}",
                f"{plan.documents / run.took_s:.1f}",
                str(run.writes),
            ]
        )
    return _markdown(rows)


def serverless_table(plan: serverless.Plan, outcome: serverless.Outcome) -> str:
    return _markdown(
        [
            ["", ""],
            ["documents", str(plan.documents)],
            ["executions", str(len(outcome.spans))],
            ["at the same time, at most", str(outcome.most_at_once)],
            ["from the first start to the last end", f"{outcome.took_s:.1f} s"],
            ["one document, one execution at a time", f"{outcome.alone_s:.1f} s"],
            ["speed-up over one execution at a time", f"{outcome.speedup:.1f}"],
            ["CPU time of all processes", f"{outcome.cpu_s:.1f} s"],
        ]
    )


def figures(
    plans: tuple[throughput.Plan, serverless.Plan],
    runs: Sequence[Run],
    outcome: serverless.Outcome,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """What experiment.json holds; durations in seconds."""
    measured = [
        run._asdict()
        | {"speedup": speedup(plans[0], run), "speedup_stored": speedup(plans[0], run, until_stored=True)}
        for run in runs
    ]
    functions = outcome._asdict() | {
        "speedup": outcome.speedup,
        "spans": [list(span) for span in outcome.spans],
        "span": list(serverless.Span._fields),
    }
    return _rounded(
        {
            "machine": machine,
            "throughput": {"plan": asdict(plans[0]), "tables_s": TABLES_S, "runs": measured},
            "serverless": {"plan": asdict(plans[1]), **functions},
        }
    )


def write(folder: Path, found: dict[str, Any], sections: dict[str, str]) -> None:
    """The figures, and the page: in one that is there, what stands between the markers is replaced."""
    text = json.dumps(found, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda innermost: " ".join(innermost[0].split()), text)  # a list, a line
    (folder / FIGURES).write_text(text + "\n", encoding="utf-8")
    page = folder / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else _EMPTY
    for name, section in sections.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = between.sub(lambda found, new=section: f"{found[1]}\n{new}\n\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rounded(value: Any) -> Any:
    """To milliseconds."""
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
    return value

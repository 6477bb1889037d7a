"""The experiments of the literature again: `python -m examples.arxiv.experiment --out docs/examples`.

The throughput study: the same abstracts on more and more instances, with tables that take their time. The serverless
study: documents, two levels of classifiers, and a process for each execution. Writes the pictures experiment-speedup and
experiment-timeline (SVG, PNG), experiment.json, and the tables of experiment.md. See docs/examples/experiment.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.arxiv.data import load
from examples.arxiv.studies import page, pictures, serverless, throughput

THROUGHPUT, SERVERLESS = throughput.Plan(), serverless.Plan()
QUICK_THROUGHPUT = throughput.Plan(
    documents=12, classification_s=0.1, real=False, instances=(1, 3), several=None, at_once=1, repeats=1
)
QUICK_SERVERLESS = serverless.Plan(documents=2, topics=2, load_s=0.05, statement_s=0.05)


def experiment(
    out: Path, *, quick: bool = False, data: Path | None = None, say: Callable[[str], None] = print
) -> None:
    """Run both studies, and write what was found into the folder `out`."""
    papers, origin = load(data)
    plans = (QUICK_THROUGHPUT, QUICK_SERVERLESS) if quick else (THROUGHPUT, SERVERLESS)
    random.Random(0).shuffle(papers)  # they come topic by topic
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mtask-experiment-") as name:
        folder = Path(name)
        say(f"{plans[0].documents} abstracts of {len(papers)}: {origin}")
        runs = throughput.study(plans[0], papers, folder, say)
        tables = page.throughput_table(plans[0], runs), page.times_table(plans[0], runs)
        say(f"\n{tables[0]}\n\n{tables[1]}\n")
        say(f"{plans[1].documents} documents, a process for each execution")
        outcome = serverless.study(plans[1], papers, folder)
        functions = page.serverless_table(plans[1], outcome)
        say(f"\n{functions}")
    pictures.draw_speedup(plans[0], runs, out)
    pictures.draw_timeline(outcome, out)
    found = page.figures(plans, runs, outcome, machine())
    page.write(out, found, {"throughput": "\n\n".join(tables), "serverless": functions})


def machine() -> dict[str, object]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="few documents that take little time")
    parser.add_argument("--data", type=Path, help="JSON Lines, as fetch.py writes them")
    options = parser.parse_args()
    experiment(options.out, quick=options.quick, data=options.data)


if __name__ == "__main__":
    main()

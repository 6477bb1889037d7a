"""The whole example, here and now: `python -m examples.arxiv.all --out docs/examples`.

Trains, classifies the tasks at both levels by a worker, validates, and writes the page arxiv-report.html with its
pictures, and the tables of arxiv.md, if that is there. Takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mtask
from examples.arxiv import models, pipeline, report
from examples.arxiv.data import load
from examples.arxiv.scores import Scores, compare
from examples.arxiv.topics import TOPICS
from examples.arxiv.train import train
from examples.arxiv.validate import SEEDS, validate

MARK = "<!-- by examples.arxiv.all: {} -->\n"


def classify(work: Path, slots: int) -> Scores:
    """As README.md says it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/mtask.db"
        roles = ",".join(("main", *TOPICS))
        command = [
            sys.executable,
            "-m",
            "mtask",
            "worker",
            "--queue",
            url,
            "--roles",
            roles,
            "-j",
            str(slots),
            "--quiet",
        ]
        worker = subprocess.Popen(command, env={**os.environ, "ARXIV_WORK": str(work.absolute())})
        try:
            with mtask.connect(url) as mt:
                pipeline.classify(mt, work / "tasks.csv", "papers")
                pipeline.write(pipeline.answers(mt, "papers"), work / "answers.csv")
        finally:
            worker.terminate()
            worker.wait()
    return compare(work / "answers.csv", work / "truth.csv")


def put(page: Path, name: str, table: report.Table) -> None:
    """Between the two marks of this name, in a Markdown file. Raises ValueError if they aren't there."""
    begin, end = MARK.format(name), MARK.format(f"end of {name}")
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"{page}: the lines {begin.strip()} and {end.strip()} are missing")
    page.write_text(f"{before}{begin}\n{report.as_markdown(table)}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/examples"), help="(default: docs/examples)")
    parser.add_argument("--data", type=Path, help="JSON Lines, as fetch.py writes them")
    parser.add_argument(
        "--trees", type=int, default=models.TREES, help="of the random forest (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="how many splits for the topics (default: 10)"
    )
    parser.add_argument("-j", "--slots", type=int, default=os.cpu_count(), help="(default: one a CPU)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        documents, origin = load(options.data)
        learned, tested = train(documents, work, trees=options.trees)
        print(f"{origin}: learned from {learned} documents, {tested} are tasks", flush=True)
        scores = classify(work, options.slots)
        data = str(options.data.absolute()) if options.data else None
        validated = validate(data, options.trees, seeds=options.seeds, slots=options.slots)
        print(json.dumps(validated))
    report.write(scores, validated, options.out / "arxiv-report.html")
    page = options.out / "arxiv.md"
    if page.exists():
        put(page, "topics", report.main_table(scores))
        put(page, "marks", report.marks_table(scores.parts))
        put(page, "splits", report.splits_table(validated))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()

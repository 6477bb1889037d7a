"""Classifies papers at both levels, by workers: `python -m examples.arxiv.pipeline tasks.csv -o answers.csv`.

Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mtask
from examples.arxiv.classify import main_topic
from examples.arxiv.topics import TOPICS

COLUMNS = ("id", "rf", "best", "topic", "sub_topic", "chance", "error")


def classify(mt: mtask.Manager, tasks: Path, bag: str) -> None:
    """Return when all papers of the file are classified. A role that a worker serves is `main`, or a topic."""
    with tasks.open(encoding="utf-8", newline="") as file:
        rows = [{**row, "bag": bag} for row in csv.DictReader(file)]
    mt.submit(rows, call=main_topic, bag=bag, tags=("main",)).wait(progress=True)
    for handle in topic_bags(mt, bag).values():
        handle.seal()  # their tasks come from those of the first bag, which have ended
        handle.wait(progress=True)


def answers(mt: mtask.Manager, bag: str) -> Iterator[dict[str, Any]]:
    """One row a paper and topic: what the main models said, and what the topic's own did."""
    parts = {
        (result.id, topic): result
        for topic, handle in topic_bags(mt, bag).items()
        for result in handle.results()
    }
    for result in mt.bag(bag).results():
        if result.value is None:
            yield {"id": result.id, "error": error_of(result)}
            continue
        for topic in result.value["topics"]:
            row = {"id": result.id, "rf": result.value["rf"], "best": result.value["best"], "topic": topic}
            part = parts.get((result.id, topic))
            if part is None:
                yield {**row, "error": "not classified yet"}
            else:
                yield {**row, **(part.value or {"error": error_of(part)})}


def topic_bags(mt: mtask.Manager, bag: str) -> dict[str, mtask.BagHandle]:
    """Those that there are: none is made for a topic that no paper has."""
    names = {each.name for each in mt.bags()}
    return {topic: mt.bag(f"{bag}-{topic}") for topic in TOPICS if f"{bag}-{topic}" in names}


def error_of(result: mtask.Result) -> str:
    return f"{result.error.type}: {result.error.message}" if result.error else ""


def write(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Returns how many of them are errors."""
    errors = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            errors += "error" in row
            writer.writerow(row)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, help="CSV with the columns id, title and abstract")
    parser.add_argument(
        "--bag", default="papers", help="the topics' bags are BAG-physics, … (default: papers)"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("answers.csv"), help="(default: answers.csv)")
    options = parser.parse_args()
    with mtask.connect() as mt:  # MTASK_QUEUE and MTASK_TABLE, mtask.toml, or a file here
        classify(mt, options.tasks, options.bag)
        errors = write(answers(mt, options.bag), options.out)
    print(f"written to {options.out}")
    if errors:
        parser.exit(1, f"{errors} of its rows have an error\n")


if __name__ == "__main__":
    main()

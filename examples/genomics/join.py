"""The hits of all tasks of a bag as one table: `python -m examples.genomics.join BAG PLACE -o hits.csv`."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator

import mtask
from examples.genomics import place
from examples.genomics.hits import COLUMNS


def joined(bag: mtask.BagHandle, at: str) -> Iterator[list[str]]:
    """A row for each hit, in the order of the tasks: the task's id, and the hit.

    Raises ValueError when not all tasks are done, FileNotFoundError when the hits of one aren't where `--out` said.
    """
    results = list(bag.results())
    counts = bag.counts()
    if counts.done < counts.total:
        raise ValueError(
            f"{counts.total - counts.done} of {counts.total} tasks of {bag.name} are not done: "
            f"see `mtask status {bag.name}`, `mtask retry {bag.name}`"
        )
    ids = [str(result.id) for result in results]
    for name, content in place.get(at, [f"hits/{id}.tsv" for id in ids]).items():
        for line in content.decode("ascii").splitlines():
            yield [name.removeprefix("hits/").removesuffix(".tsv"), *line.split("\t")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag")
    parser.add_argument("place", help="where the hits are")
    parser.add_argument("-o", "--output", help="file to write (default: the screen)")
    options = parser.parse_args()
    try:
        with mtask.connect() as mt:
            rows = list(joined(mt.bag(options.bag), options.place.rstrip("/")))
    except (OSError, ValueError, mtask.MtaskError) as error:
        sys.exit(str(error))
    with open(options.output or sys.stdout.fileno(), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("task", *COLUMNS))
        writer.writerows(rows)
    print(f"{len(rows):,} hits", file=sys.stderr)


if __name__ == "__main__":
    main()

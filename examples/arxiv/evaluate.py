"""How good were the answers? `python -m examples.arxiv.evaluate results.csv`.

Prints the accuracy and the confusion matrix, and draws the matrix to confusion.png.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from examples.arxiv.data import WORK

NONE = "(none)"


def confusion(results: Path, truth: Path) -> Counter[tuple[str, str]]:
    """How often each (true topic, answered topic) occurred. A task without an answer counts as (none)."""
    with results.open(encoding="utf-8", newline="") as file:
        answers = {row["id"]: row["topic"] for row in csv.DictReader(file)}
    with truth.open(encoding="utf-8", newline="") as file:
        return Counter((row["topic"], answers.get(row["id"]) or NONE) for row in csv.DictReader(file))


def accuracy(pairs: Counter[tuple[str, str]]) -> float:
    return sum(count for (true, answer), count in pairs.items() if true == answer) / pairs.total()


def as_text(pairs: Counter[tuple[str, str]]) -> str:
    """The matrix: a row for each true topic, a column for each answer."""
    rows, columns = topics(pairs)
    width = max(map(len, rows + columns)) + 2
    lines = ["".join(f"{name:>{width}}" for name in ("", *columns))]
    lines += [f"{row:>{width}}" + "".join(f"{pairs[row, name]:>{width}}" for name in columns) for row in rows]
    return "\n".join(lines)


def draw(pairs: Counter[tuple[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    rows, columns = topics(pairs)
    figure, axes = pyplot.subplots(figsize=(1.2 + len(columns), 1.2 + len(rows)), layout="constrained")
    axes.imshow([[pairs[row, column] for column in columns] for row in rows], cmap="Blues")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(
        xlabel="answer", ylabel="truth", title=f"accuracy {accuracy(pairs):.3f} of {pairs.total()} papers"
    )
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            count = pairs[row, column]
            color = "white" if count > max(pairs.values()) / 2 else "black"
            axes.text(x, y, str(count), ha="center", va="center", color=color)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def topics(pairs: Counter[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The names of the rows (true topics) and of the columns (those, and other answers)."""
    rows = sorted({true for true, _ in pairs})
    return rows, rows + sorted({answer for _, answer in pairs} - set(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what `mtask results BAG -o results.csv` wrote")
    parser.add_argument("--work", type=Path, default=WORK, help="where train.py wrote (default: %(default)s)")
    options = parser.parse_args()
    pairs = confusion(options.results, options.work / "truth.csv")
    print(f"accuracy {accuracy(pairs):.3f} of {pairs.total()} papers\n\n{as_text(pairs)}")
    draw(pairs, options.work / "confusion.png")
    print(f"\ndrawn to {options.work / 'confusion.png'}")


if __name__ == "__main__":
    main()

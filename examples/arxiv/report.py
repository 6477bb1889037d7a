"""A page on how good the answers were: `python -m examples.arxiv.report answers.csv`.

It needs nothing else: no other file, no script, no net. The pictures in it are also written one by one, and what the
models reach over several splits of the data is in it if validate.py has written that.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from examples.arxiv.data import WORK
from examples.arxiv.scores import (
    Pairs,
    Part,
    Scores,
    accuracy,
    by_mark,
    by_threshold,
    compare,
    names,
    share,
)

CELL = 46
LABEL = 150
FONT = "font-family='sans-serif' font-size='11'"
STYLE = (
    "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Its head, and its rows."""


# What is drawn.


def matrix(pairs: Pairs, title: str) -> str:
    """A confusion matrix as SVG: a row for each true name, a column for each answer; a darker cell is a larger
    part of its row."""
    rows, columns = names(pairs)
    sums = {row: sum(pairs[row, column] for column in columns) for row in rows}
    width, height = LABEL + CELL * len(columns) + 60, 30 + CELL * len(rows) + 110
    parts = [text(LABEL, 16, f"{title}: {accuracy(pairs):.3f} of {pairs.total()} right", bold=True)]
    for y, row in enumerate(rows):
        parts.append(text(LABEL - 6, 30 + CELL * y + CELL / 2 + 4, row, anchor="end"))
        for x, column in enumerate(columns):
            part = pairs[row, column] / max(1, sums[row])
            left, top = LABEL + CELL * x, 30 + CELL * y
            parts.append(
                f"<rect x='{left}' y='{top}' width='{CELL}' height='{CELL}' stroke='#fff' fill='{shade(part)}'/>"
            )
            colour = "#fff" if part > 0.5 else "#222"
            at = left + CELL / 2, top + CELL / 2 + 4
            parts.append(text(*at, str(pairs[row, column]), anchor="middle", colour=colour))
    for x, column in enumerate(columns):
        at = LABEL + CELL * x + CELL / 2, 30 + CELL * len(rows) + 14
        parts.append(text(*at, column, turn=40))
    return svg(width, height, parts)


def curve(parts: Sequence[Part]) -> str:
    """What a threshold does, as SVG: the more answers are left out, the more of the others are right."""
    wide, high, points = 420, 240, by_threshold(parts)
    drawn = []
    for step in range(0, 11, 2):
        x, y = 50 + wide * step / 10, 20 + high * (1 - step / 10)
        drawn.append(f"<path d='M50 {y}H{50 + wide}' stroke='#ddd'/>")
        drawn.append(text(44, y + 4, f"{step / 10:.1f}", anchor="end"))
        drawn.append(text(x, high + 36, f"{step / 10:.1f}", anchor="middle"))
    for column, colour, label in ((1, "#888", "answers that are so sure"), (2, "#1f5fa8", "of them right")):
        line = " ".join(
            f"{50 + wide * point[0]:.1f},{20 + high * (1 - point[column]):.1f}" for point in points
        )
        drawn.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>")
        drawn.append(text(58, high - 14 * column + 10, label, colour=colour))
    drawn.append(text(50 + wide / 2, high + 54, "least probability of the answer", anchor="middle"))
    return svg(wide + 70, high + 66, drawn)


def shade(part: float) -> str:
    """From white to blue."""
    return "#" + "".join(f"{round(255 + (end - 255) * part):02x}" for end in (31, 95, 168))


def text(
    x: float,
    y: float,
    said: str,
    *,
    anchor: str = "start",
    colour: str = "#222",
    bold: bool = False,
    turn: int = 0,
) -> str:
    more = " font-weight='bold'" if bold else ""
    if turn:
        more += f" transform='rotate({turn} {x:g} {y:g})'"
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' fill='{colour}'{more}>{escape(said)}</text>"


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' {FONT}>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


# What is said in tables.


def main_table(scores: Scores) -> Table:
    papers = scores.models["best"].total()
    rows = [(f"{name} is right", f"{accuracy(pairs):.3f}") for name, pairs in scores.models.items()]
    return (f"of {papers} papers", "part"), [
        *rows,
        ("both say the same", f"{scores.agree:.3f}"),
        ("the paper came to its topic, alone or as one of two", f"{scores.reached:.3f}"),
    ]


def marks_table(parts: Sequence[Part]) -> Table:
    rows = [(mark or "none", f"{part:.3f}", f"{right:.3f}") for mark, part, right in by_mark(parts)]
    return ("mark", "part of the answers", "of them right"), rows


def splits_table(validated: dict[str, Any]) -> Table:
    rows = [
        (
            f"topics, {name}",
            f"{len(figures)} quarters",
            f"{mean(figures):.3f}",
            f"{min(figures):.3f}",
            f"{max(figures):.3f}",
        )
        for name, figures in validated["topics"].items()
    ]
    for topic, figures in validated["sub_topics"].items():
        rows.append(
            (
                topic,
                "4-fold, each paper once",
                f"{mean(figures):.3f}",
                f"{min(figures):.3f}",
                f"{max(figures):.3f}",
            )
        )
    return ("", "tested on", "mean", "least", "most"), rows


def as_html(table: Table) -> str:
    head, rows = table
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>\n"


def as_markdown(table: Table) -> str:
    head, rows = table
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# The page.


def pictures(scores: Scores) -> dict[str, str]:
    """Name → SVG."""
    drawn = {name: matrix(pairs, f"topics, {name}") for name, pairs in scores.models.items()}
    for topic in sorted({part.topic for part in scores.parts}):
        pairs = Counter((part.true, part.answer) for part in scores.parts if part.topic == topic)
        drawn[topic] = matrix(pairs, topic)
    return {**drawn, "thresholds": curve(scores.parts)}


def page(scores: Scores, validated: dict[str, Any] | None) -> str:
    drawn = pictures(scores)
    right = share(part.right for part in scores.parts)
    lines = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>arXiv, classified</title><style>{STYLE}</style>",
        "<h1>arXiv, classified</h1><h2>Topics</h2>",
        as_html(main_table(scores)),
        drawn.pop("rf"),
        drawn.pop("best"),
        "<h2>Sub-topics</h2>",
        f"<p>Of {len(scores.parts)} papers that came to their topic and whose sub-topic is known, {right:.3f} are right.</p>",
        as_html(marks_table(scores.parts)),
        drawn.pop("thresholds"),
        *drawn.values(),
    ]
    if validated:
        lines += ["<h2>Over several splits of the data</h2>", as_html(splits_table(validated))]
    return "\n".join(lines) + "</html>\n"


def write(scores: Scores, validated: dict[str, Any] | None, out: Path) -> None:
    """The page, and its pictures beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(scores, validated), encoding="utf-8")
    for name, drawn in pictures(scores).items():
        (out.parent / f"{out.stem}-{name}.svg").write_text(drawn, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", type=Path, help="what pipeline.py wrote")
    parser.add_argument("--work", type=Path, default=WORK, help="where train.py wrote (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="(default: report.html)")
    options = parser.parse_args()
    scores = compare(options.answers, options.work / "truth.csv")
    found = options.work / "validated.json"
    validated = json.loads(found.read_text()) if found.exists() else None
    write(scores, validated, options.out)
    for name, value in main_table(scores)[1]:
        print(f"{value}  {name}")
    print(f"{share(part.right for part in scores.parts):.3f}  sub-topics are right, of {len(scores.parts)}")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()

"""How good were the answers? Compares what pipeline.py wrote with what train.py knows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.arxiv.classify import MARKS, mark_of

NONE = "(none)"
Pairs = Counter[tuple[str, str]]
"""How often each (true, answered) occurred."""


class Part(NamedTuple):
    """What a topic's model said of a paper that is of this topic, and whose sub-topic is known."""

    topic: str
    true: str
    answer: str
    chance: float

    @property
    def right(self) -> bool:
        return self.true == self.answer


class Scores(NamedTuple):
    models: dict[str, Pairs]
    """Of `rf` and `best`, by topics. A paper without an answer counts as (none)."""
    agree: float
    """In which part of the answers they agree."""
    reached: float
    """Which part of the papers came to their topic, as one of two or alone."""
    parts: list[Part]


def compare(answers: Path, truth: Path) -> Scores:
    with truth.open(encoding="utf-8", newline="") as file:
        true = {row["id"]: row for row in csv.DictReader(file)}
    models: dict[str, Pairs] = {"rf": Counter(), "best": Counter()}
    sent: dict[str, set[str]] = {}
    said: dict[str, dict[str, str]] = {}
    parts = []
    with answers.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            said[row["id"]] = row
            sent.setdefault(row["id"], set()).add(row["topic"])
            paper = true[row["id"]]
            if row["topic"] == paper["topic"] and paper["sub_topic"] and row["sub_topic"]:
                name = row["sub_topic"].rstrip("?")
                parts.append(Part(row["topic"], paper["sub_topic"], name, float(row["chance"])))
    for paper, known in true.items():
        for name, pairs in models.items():
            pairs[known["topic"], said.get(paper, {}).get(name) or NONE] += 1
    both = [row for row in said.values() if row["rf"]]
    return Scores(
        models,
        agree=share(row["rf"] == row["best"] for row in both),
        reached=share(known["topic"] in sent.get(paper, ()) for paper, known in true.items()),
        parts=parts,
    )


def share(these: Iterable[bool]) -> float:
    counted = Counter(these)
    return counted[True] / max(1, counted.total())


def accuracy(pairs: Pairs) -> float:
    return sum(count for (true, answer), count in pairs.items() if true == answer) / max(1, pairs.total())


def names(pairs: Pairs) -> tuple[list[str], list[str]]:
    """Of the rows of a confusion matrix (what is true), and of its columns (those, and other answers)."""
    rows = sorted({true for true, _ in pairs})
    return rows, rows + sorted({answer for _, answer in pairs} - set(rows))


def by_mark(parts: Sequence[Part]) -> list[tuple[str, float, float]]:
    """(mark, which part of the answers has it, which part of those is right)."""
    found = []
    for _, mark in MARKS:
        marked = [part for part in parts if mark_of(part.chance) == mark]
        found.append((mark, len(marked) / max(1, len(parts)), share(part.right for part in marked)))
    return found


def by_threshold(parts: Sequence[Part]) -> list[tuple[float, float, float]]:
    """(threshold, which part of the answers is at least so sure, which part of those is right)."""
    found = []
    for step in range(20):
        sure = [part for part in parts if part.chance >= step / 20]
        if sure:
            found.append((step / 20, len(sure) / len(parts), share(part.right for part in sure)))
    return found

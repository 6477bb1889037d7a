"""Trains all models and writes the tasks: `python -m examples.arxiv.train`.

Three quarters of the documents train the models; the last quarter are the tasks. What the tasks' answers
should be goes into a file of its own, so that no worker ever sees it.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.model_selection import train_test_split

from examples.arxiv import models
from examples.arxiv.classify import text_of
from examples.arxiv.data import WORK, Document, load
from examples.arxiv.topics import TOPICS


def train(
    documents: Sequence[Document], work: Path, *, seed: int = 0, trees: int = models.TREES
) -> tuple[int, int]:
    """Write the models, tasks.csv and truth.csv; returns how many documents train, and how many test."""
    learn, test = split(documents, seed)
    work.mkdir(parents=True, exist_ok=True)
    main = {name: fitted(model, learn, "topic") for name, model in models.main(trees).items()}
    joblib.dump(main, work / "main.joblib")
    for topic in TOPICS:
        joblib.dump(fitted(models.part(), of_topic(learn, topic), "sub_topic"), work / f"{topic}.joblib")
    write_csv(work / "tasks.csv", ("id", "title", "abstract"), test)
    write_csv(work / "truth.csv", ("id", "topic", "sub_topic"), test)
    return len(learn), len(test)


def split(documents: Sequence[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """Three quarters, and one, with the same parts of each topic in both."""
    topics = labels(documents, "topic")
    learn, test = train_test_split(list(documents), test_size=0.25, random_state=seed, stratify=topics)
    return learn, test


def fitted(model: Any, documents: Sequence[Document], label: str) -> Any:
    """The model, which has learned from these documents, but for what too few of them are about.

    Raises ValueError if less than two names are left.
    """
    counts = Counter(document[label] for document in documents)
    known = [document for document in documents if counts[document[label]] >= models.FOLDS]
    if len({document[label] for document in known}) < 2:
        raise ValueError(
            f"of {len(documents)} documents none can be learned: two different {label}s are needed, "
            f"each of {models.FOLDS} documents; there are {dict(counts)}"
        )
    return model.fit(texts(known), labels(known, label))


def of_topic(documents: Sequence[Document], topic: str) -> list[Document]:
    """Those of the topic whose sub-topic is known."""
    return [document for document in documents if document["topic"] == topic and document["sub_topic"]]


def texts(documents: Sequence[Document]) -> list[str]:
    return [text_of(document["title"], document["abstract"]) for document in documents]


def labels(documents: Sequence[Document], label: str) -> Any:
    return np.array([document[label] for document in documents])


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Document]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="JSON Lines, as fetch.py writes them")
    parser.add_argument("--work", type=Path, default=WORK, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.add_argument(
        "--trees", type=int, default=models.TREES, help="of the random forest (default: %(default)s)"
    )
    options = parser.parse_args()
    documents, origin = load(options.data)
    print(f"{len(documents)} documents: {origin}")
    learned, tested = train(documents, options.work, seed=options.seed, trees=options.trees)
    print(f"learned from {learned}; {tested} tasks in {options.work / 'tasks.csv'}")


if __name__ == "__main__":
    main()

"""Trains the classifier and writes the tasks: `python -m examples.arxiv.train`.

Three quarters of the documents train the model; the last quarter are the tasks. What the tasks' answers
should be goes into a file of its own, so that no worker ever sees it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import joblib
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from examples.arxiv.classify import text_of
from examples.arxiv.data import WORK, Document, load


def train(documents: Sequence[Document], work: Path, *, seed: int = 0) -> tuple[int, int]:
    """Write model.joblib, tasks.csv and truth.csv; returns how many documents train, and how many test."""
    topics = [document["topic"] for document in documents]
    if len(set(topics)) < 3:
        raise ValueError("at least three topics are needed")
    learn, test = train_test_split(documents, test_size=0.25, random_state=seed, stratify=topics)
    # Chosen by cross-validation within the three quarters: 0.870, against 0.864 for TfidfVectorizer().
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, stop_words="english"), LinearSVC())
    model.fit(
        [text_of(document["title"], document["abstract"]) for document in learn],
        [document["topic"] for document in learn],
    )
    work.mkdir(parents=True, exist_ok=True)
    joblib.dump(model, work / "model.joblib")
    write_csv(work / "tasks.csv", ("id", "title", "abstract"), test)
    write_csv(work / "truth.csv", ("id", "topic"), test)
    return len(learn), len(test)


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
    options = parser.parse_args()
    documents, origin = load(options.data)
    print(f"{len(documents)} documents: {origin}")
    learned, tested = train(documents, options.work, seed=options.seed)
    print(f"learned from {learned}; {tested} tasks in {options.work / 'tasks.csv'}")


if __name__ == "__main__":
    main()

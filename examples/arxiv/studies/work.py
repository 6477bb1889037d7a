"""What the tasks of both studies call."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import mtask

BARRIER_S = 300.0
"""So long an instance waits for the others to be ready."""


def classify(title: str, abstract: str, least_s: float, real: bool) -> Any:
    """A classification by both models, padded by sleeping: it takes `least_s`, as it did in the literature."""
    over_s = time.monotonic() + least_s
    answer = None
    if real:
        from examples.arxiv.classify import topics_of

        answer = topics_of(title, abstract)
    time.sleep(max(0.0, over_s - time.monotonic()))
    return answer


def get_ready(number: int, of: int, folder: str, real: bool) -> None:
    """Load the models, and wait until all instances have: each runs just one of these tasks then."""
    classify("a title", "an abstract", 0.0, real)
    Path(folder, str(number)).touch()
    until_s = time.monotonic() + BARRIER_S
    while len(list(Path(folder).iterdir())) < of:
        if time.monotonic() > until_s:
            raise TimeoutError(f"{of} instances should be ready; after {BARRIER_S:g} s some are not")
        time.sleep(0.05)


def main_classifier(
    document: str, statements: list[dict[str, str]], load_s: float, statement_s: float
) -> list[str]:
    """Sort the statements of a document by topic, and have each topic's classifier called, side by side.

    To load a model, and to classify a statement, takes its time here, but is slept: two cores would be busy for minutes
    with a hundred models. The answers come along.
    """
    time.sleep(load_s)
    by_topic = defaultdict(list)
    for statement in statements:
        time.sleep(statement_s)
        by_topic[statement["topic"]].append(statement)
    times = {"load_s": load_s, "statement_s": statement_s}
    rows = [
        {"id": f"{document}/{topic}", "statements": of_topic, **times} for topic, of_topic in by_topic.items()
    ]
    mtask.submit(rows, call=topic_classifier, bag=f"document-{document}")
    return list(by_topic)


def topic_classifier(statements: list[dict[str, str]], load_s: float, statement_s: float) -> list[str]:
    """The sub-topic of each statement."""
    time.sleep(load_s + statement_s * len(statements))
    return [statement["sub_topic"] for statement in statements]

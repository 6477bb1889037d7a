"""The task: `mtask run tasks.csv --call examples.arxiv.classify:predict`."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from examples.arxiv.data import WORK


def predict(title: str, abstract: str) -> dict[str, Any]:
    """The topic of a paper, and by how much it won over the second best."""
    model = load_model(os.environ.get("ARXIV_WORK", str(WORK)))
    scores = model.decision_function([text_of(title, abstract)])[0]
    best = scores.argsort()[::-1]
    return {
        "topic": str(model.classes_[best[0]]),
        "margin": round(float(scores[best[0]] - scores[best[1]]), 4),
    }


@functools.cache
def load_model(work: str) -> Any:
    """Once for each process: this takes longer than a thousand predictions.

    Loading a joblib file runs what is in it: only ever load one that your own train.py wrote.
    """
    import joblib

    return joblib.load(Path(work) / "model.joblib")


def text_of(title: str, abstract: str) -> str:
    """What the model reads of a paper."""
    return f"{title}\n{abstract}"

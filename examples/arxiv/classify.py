"""The tasks: what is a paper about, and which part of it?

`main_topic` asks two models. Each topic that they name gets the paper, as a task of a bag of its own: `sub_topic`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mtask
from examples.arxiv.data import WORK

MARKS = ((0.6, ""), (0.4, "?"), (0.0, "???"))
"""What is put behind a sub-topic whose probability is at least so high."""


def main_topic(id: str, title: str, abstract: str, bag: str = "papers") -> dict[str, Any]:
    """Send the paper to one topic, or to two if the models disagree.

    `bag`: the topics' bags are BAG-physics, BAG-math, and so on. Each asks for workers with its topic as a tag.
    """
    answers = topics_of(title, abstract)
    for topic in answers["topics"]:
        row = {"id": id, "topic": topic, "title": title, "abstract": abstract}
        mtask.submit([row], call=sub_topic, bag=f"{bag}-{topic}", tags=(topic,))
    return answers


def sub_topic(topic: str, title: str, abstract: str) -> dict[str, Any]:
    """The part of the topic, with `?` or `???` if the model isn't sure."""
    text = text_of(title, abstract)
    model = models(topic)
    chances = model.predict_proba([text])[0]
    best = chances.argmax()
    name, chance = str(model.classes_[best]), round(float(chances[best]), 3)
    return {"sub_topic": name + mark_of(chance), "chance": chance}


def topics_of(title: str, abstract: str) -> dict[str, Any]:
    """What each of the two models says, and the topics that follow from it."""
    text = text_of(title, abstract)
    answers = {name: str(model.predict([text])[0]) for name, model in models("main").items()}
    return {**answers, "topics": sorted(set(answers.values()))}


def mark_of(chance: float) -> str:
    return next(mark for least, mark in MARKS if chance >= least)


def text_of(title: str, abstract: str) -> str:
    """What the models read of a paper. Raises mtask.Fail: of an empty abstract they would say anything."""
    if not abstract.strip():
        raise mtask.Fail("the abstract is empty: there is nothing to classify")
    return f"{title}\n{abstract}"


@mtask.setup(keep=6)
def models(topic: str) -> Any:
    """A topic's model, or the two of "main", as train.py wrote them; each process loads them once.

    Loading a joblib file runs what is in it: only ever load one that your own train.py wrote.
    """
    import joblib

    path = Path(os.environ.get("ARXIV_WORK", WORK)) / f"{topic}.joblib"
    hint = f"`python -m examples.arxiv.train --work {path.parent}` writes it, and `mtask retry` sends the task again"
    if not path.exists():
        raise FileNotFoundError(f"there is no model of {topic!r}: {path} is missing; {hint}")
    try:
        return joblib.load(path)
    except Exception as error:  # unpickling raises whatever the file makes it raise
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"the model of {topic!r} can't be read: {path} ({said}); {hint}") from error

"""What the models reach over several splits of the data: `python -m examples.arxiv.validate`.

One split says little: of a thousand papers, one more or less in a hundred is chance. The topics are tested on ten
quarters of the papers, drawn anew with the seeds 0 to 9; sub-topics by cross-validation, a quarter at a time, in which
each paper is tested once.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from sklearn.model_selection import StratifiedKFold

import mtask
from examples.arxiv import models
from examples.arxiv.data import WORK, load
from examples.arxiv.topics import TOPICS
from examples.arxiv.train import fitted, labels, of_topic, split, texts

SEEDS, FOLDS = 10, 4


def topics(data: str | None, seed: int, trees: int) -> dict[str, float]:
    """Which part of a quarter of the papers each main model puts into its topic, and of how many they agree."""
    documents, _ = load(Path(data) if data else None)
    learn, test = split(documents, seed)
    true = labels(test, "topic")
    answers = {
        name: fitted(model, learn, "topic").predict(texts(test)) for name, model in models.main(trees).items()
    }
    found = {name: (answer == true).mean() for name, answer in answers.items()}
    found["agreement"] = (answers["rf"] == answers["best"]).mean()
    found["either right"] = ((answers["rf"] == true) | (answers["best"] == true)).mean()
    return {name: round(float(value), 4) for name, value in found.items()}


def sub_topics(data: str | None, topic: str, fold: int) -> float:
    """Which part of a quarter of a topic's papers its model puts into their sub-topic."""
    own = of_topic(load(Path(data) if data else None)[0], topic)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it isn't in every fold
        chosen = list(folds.split(own, labels(own, "sub_topic")))[fold]
    learn, test = ([own[at] for at in indexes] for indexes in chosen)
    right = fitted(models.part(), learn, "sub_topic").predict(texts(test)) == labels(test, "sub_topic")
    return round(float(right.mean()), 4)


def validate(data: str | None, trees: int, *, seeds: int = SEEDS, slots: int | None = None) -> dict[str, Any]:
    rows = [{"data": data, "seed": seed, "trees": trees} for seed in range(seeds)]
    found = list(mtask.map(topics, rows, slots=slots, progress=True))
    parts = [{"data": data, "topic": topic, "fold": fold} for topic in TOPICS for fold in range(FOLDS)]
    answers = list(mtask.map(sub_topics, parts, slots=slots, progress=True))
    return {
        "topics": {name: [each[name] for each in found] for name in found[0]},
        "sub_topics": {
            topic: [answer for part, answer in zip(parts, answers, strict=True) if part["topic"] == topic]
            for topic in TOPICS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="JSON Lines, as fetch.py writes them")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where validated.json goes (default: %(default)s)"
    )
    parser.add_argument(
        "--trees", type=int, default=models.TREES, help="of the random forest (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="how many splits for the topics (default: 10)"
    )
    options = parser.parse_args()
    found = validate(options.data, options.trees, seeds=options.seeds)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "validated.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

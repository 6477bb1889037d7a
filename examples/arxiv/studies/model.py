"""Trains the small models that the throughput study uses: `python -m examples.arxiv.studies.model PAPERS FOLDER`.

The same two models as train.py makes, but of fewer papers and trees: on two cores, 24 of them at once must be done with
their real work well within the time that a classification takes in the study.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib

from examples.arxiv import models
from examples.arxiv.classify import topics_of
from examples.arxiv.train import fitted

TREES = 20


def main() -> None:
    papers, folder = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    made = {name: fitted(model, papers, "topic") for name, model in models.main(TREES).items()}
    joblib.dump(made, folder / "main.joblib")
    topics_of("a title", "an abstract")  # imports what the instances will


if __name__ == "__main__":
    main()

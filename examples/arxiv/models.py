"""The models, from scikit-learn. How they were chosen: docs/examples/arxiv.md."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline


def words(**options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, stop_words="english", **options)


def forest(trees: int = 300) -> Any:
    """`rf` of the main classifier."""
    return make_pipeline(words(min_df=2), RandomForestClassifier(trees, random_state=0))


def vote() -> Any:
    """`best` of the main classifier, and each topic's own: three models, whose probabilities are averaged."""
    return VotingClassifier(
        [
            ("bayes", make_pipeline(words(), ComplementNB(alpha=0.3))),
            ("words", make_pipeline(words(), LogisticRegression(C=10))),
            ("pairs", make_pipeline(words(ngram_range=(1, 2), min_df=2), LogisticRegression(C=20))),
        ],
        voting="soft",
    )

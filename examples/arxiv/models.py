"""The models, from scikit-learn. How they were chosen: docs/examples/arxiv.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

FOLDS = 4
"""So many papers of a name are needed to learn it."""


def main(trees: int = 300) -> dict[str, Any]:
    """The two models of the main classifier."""
    return {"rf": forest(trees), "best": best()}


def forest(trees: int) -> Any:
    return make_pipeline(tfidf(min_df=2, stop_words="english"), RandomForestClassifier(trees, random_state=0))


def best() -> Any:
    """Three models vote by the probabilities that they give, and a fourth has learned what each vote is worth.

    Also each topic's own model.
    """
    return StackingClassifier(
        [
            ("words", make_pipeline(tfidf(token_pattern=r"(?u)\b\w+\b"), SVM())),
            ("bayes", make_pipeline(tfidf(stop_words="english"), ComplementNB(alpha=0.3))),
            ("letters", make_pipeline(tfidf(analyzer="char_wb", ngram_range=(3, 5), min_df=2), SVM())),
        ],
        make_pipeline(
            FunctionTransformer(logarithm), StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)
        ),
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0),
        stack_method="predict_proba",
    )


def tfidf(**options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, **options)


class SVM(LinearSVC):
    """With something like probabilities."""

    def predict_proba(self, papers: Any) -> Any:
        scores = self.decision_function(papers)
        return softmax(3 * (scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)), axis=1)


def logarithm(chances: Any) -> Any:
    return np.log(chances + 1e-4)

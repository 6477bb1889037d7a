"""The models, from scikit-learn. How they were chosen: docs/examples/arxiv.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import ComplementNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

FOLDS = 4
"""So many papers of a name are needed to learn it."""
TREES = 200
"""Of the random forest."""


def main(trees: int = TREES) -> dict[str, Any]:
    """The two models of the main classifier."""
    return {"rf": forest(trees), "best": best()}


def forest(trees: int) -> Any:
    return make_pipeline(tfidf(min_df=2, stop_words="english"), RandomForestClassifier(trees, random_state=0))


def best() -> Any:
    pairs = tfidf(ngram_range=(1, 2), min_df=2, stop_words="english")
    return vote(WeightedSVM(), make_pipeline(pairs, MultinomialNB(alpha=0.03)))


def part() -> Any:
    """A topic's own model. There are fewer papers to learn from, and most are of a few sub-topics: what is used of
    word frequencies is sturdier."""
    return vote(SVM(), make_pipeline(tfidf(stop_words="english"), ComplementNB(alpha=0.3)))


def vote(words: Any, bayes: Any) -> Any:
    """Three models vote by the probabilities that they give, and a fourth has learned what each vote is worth."""
    letters = tfidf(analyzer="char_wb", ngram_range=(3, 5), min_df=2)
    return StackingClassifier(
        [
            ("words", make_pipeline(tfidf(token_pattern=r"(?u)\b\w+\b"), words)),
            ("bayes", bayes),
            ("letters", make_pipeline(letters, SVM())),
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


class WeightedSVM(SVM):
    """Each word counts by how much more frequent it is in one class than in the others (NB-SVM)."""

    def fit(self, papers: Any, names: Any) -> WeightedSVM:
        self.classes_ = np.unique(names)
        self.weights_ = [log_ratio(papers, names == name) for name in self.classes_]
        self.models_ = [
            LinearSVC().fit(papers.multiply(weights).tocsr(), names == name)
            for name, weights in zip(self.classes_, self.weights_, strict=True)
        ]
        return self

    def decision_function(self, papers: Any) -> Any:
        scores = [
            model.decision_function(papers.multiply(weights).tocsr())
            for model, weights in zip(self.models_, self.weights_, strict=True)
        ]
        return np.stack(scores, axis=1)


def log_ratio(papers: Any, inside: Any) -> Any:
    """Of a word's share in these papers to that in the others."""
    shares = [np.asarray(papers[rows].sum(axis=0)).ravel() + 0.1 for rows in (inside, ~inside)]
    return np.log(shares[0] / shares[0].sum()) - np.log(shares[1] / shares[1].sum())


def logarithm(chances: Any) -> Any:
    return np.log(chances + 1e-4)

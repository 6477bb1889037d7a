"""The serverless study: documents of several statements, two levels, and a process for each execution."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mtask
from examples.arxiv.studies.platform import Execution, Platform

LONGEST_S = 300.0
"""Whoever waits for longer has seen on standard error why."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    documents: int = 20
    topics: int = 4
    """Of each document."""
    statements: int = 2
    """Of each topic in a document."""
    load_s: float = 2.0
    """In which an execution would load its model."""
    statement_s: float = 0.45
    """In which it would classify one."""
    at_once: int = 100


class Span(NamedTuple):
    """An execution on the time line, in seconds since the first one's start."""

    document: int
    topic: str
    """Empty: of the main classifier."""
    started_s: float
    """The process."""
    began_s: float
    """The task in it."""
    ended_s: float
    """The task."""
    over_s: float
    """The process."""


class Outcome(NamedTuple):
    spans: list[Span]
    took_s: float
    """From the first start of a process to the last end."""
    alone_s: float
    """The same for one document, one execution at a time."""
    most_at_once: int
    """Processes at the same time."""
    cpu_s: float
    """Of all processes: what starting them costs, for the classification is slept."""

    @property
    def speedup(self) -> float:
        """Over executions one at a time, which take so long on average as those of the one document."""
        of_first = sum(span.document == 0 for span in self.spans)
        return self.alone_s * len(self.spans) / of_first / self.took_s


def study(plan: Plan, papers: Sequence[dict[str, str]], folder: Path) -> Outcome:
    """`papers`: with title, topic and sub_topic; `folder` is for what the study leaves behind."""
    documents = compose(plan, papers)
    alone = _run(replace(plan, at_once=1), documents[:1], folder, folder / "alone")
    before_s = _cpu_of_children_s()
    spans = _run(plan, documents, folder, folder / "serverless")
    cpu_s = _cpu_of_children_s() - before_s
    alone_s, took_s = (max(span.over_s for span in each) for each in (alone, spans))
    return Outcome(spans, took_s, alone_s, most_at_once(spans), cpu_s)


def compose(plan: Plan, papers: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Documents whose statements are papers of several topics. Raises ValueError if there are too few."""
    by_topic = defaultdict(list)
    for paper in papers:
        by_topic[paper["topic"]].append({key: paper[key] for key in ("title", "topic", "sub_topic")})
    topics = sorted(by_topic)
    if (
        min(map(len, by_topic.values()), default=0) < plan.documents * plan.statements
        or len(topics) < plan.topics
    ):
        raise ValueError(
            f"{plan.documents} documents of {plan.topics} topics need more papers than {len(papers)}"
        )
    documents = []
    for number in range(plan.documents):
        chosen = [topics[(number + step) % len(topics)] for step in range(plan.topics)]
        statements = [by_topic[topic].pop() for topic in chosen for _ in range(plan.statements)]
        times = {"load_s": plan.load_s, "statement_s": plan.statement_s}
        documents.append({"id": str(number), "document": str(number), "statements": statements, **times})
    return documents


def _run(plan: Plan, documents: Sequence[dict[str, Any]], folder: Path, place: Path) -> list[Span]:
    place.mkdir(parents=True)
    queue, table = f"sqlite:///{place}/queue.db", f"sqlite:///{place}/table.db"
    with mtask.connect(queue, table) as manager:
        platform = Platform(manager, folder, queue=queue, table=table, at_once=plan.at_once)
        with platform.serving():
            bag = manager.submit(
                documents, call="examples.arxiv.studies.work:main_classifier", bag="documents"
            )
            bag.wait(timeout_s=LONGEST_S)
            bags = [bag, *(manager.bag(f"document-{each['document']}") for each in documents)]
            for bag in bags[1:]:
                bag.seal()
                bag.wait(timeout_s=LONGEST_S)
        results = {(each.bag, each.index): each for bag in bags for each in bag.results()}
    return _spans(platform.executions, results)


def _spans(executions: Sequence[Execution], results: dict[tuple[str, int], mtask.Result]) -> list[Span]:
    if bad := [each for each in results.values() if each.state is not mtask.State.DONE]:
        raise RuntimeError(f"{len(bad)} of {len(results)} executions failed, the first with {bad[0].error}")
    zero_at = min(execution.started_at for execution in executions)
    spans = []
    for execution in executions:
        result = results[execution.bag, execution.task]
        document, _, topic = (result.id or "").partition("/")
        times = (execution.started_at, result.started_at, result.finished_at, execution.ended_at)
        spans.append(Span(int(document), topic, *(round((at or 0.0) - zero_at, 3) for at in times)))
    return sorted(spans, key=lambda span: (span.document, span.topic))


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def most_at_once(spans: Sequence[Span]) -> int:
    """Processes at the same time."""
    events = sorted([(span.started_s, 1) for span in spans] + [(span.over_s, -1) for span in spans])
    there = most = 0
    for _, change in events:
        there += change
        most = max(most, there)
    return most

"""The studies of the arXiv example: what is computed and drawn of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from examples.arxiv import data
from examples.arxiv.studies import page, serverless, throughput, work
from examples.arxiv.studies.pictures import amdahl
from examples.arxiv.studies.serverless import Span
from examples.arxiv.studies.throughput import Plan, Run, Size


def test_the_bounds_are_those_of_the_literature() -> None:
    plan = Plan()
    assert round(plan.bound(24), 1) == 22.2
    assert plan.bound(1) == 1
    assert round(amdahl(plan, 10**6, 0.06), 1) == 8.5
    assert round(amdahl(plan, 10**6, 0.1), 1) == 5.5
    assert amdahl(plan, 24, 0.0) == pytest.approx(24)


def test_few_instances_go_side_by_side_and_many_alone() -> None:
    groups = throughput._groups(Plan())
    assert [sum(size.instances for size in group) for group in groups] == [21, 24, 16, 24, 24]
    assert groups[1] == [Size(1, 8, (table,)) for table in throughput.TABLES_S]
    assert groups[-1] == [Size(3, 8, tuple(throughput.TABLES_S))]


def test_the_speed_up_is_over_one_instance_that_only_classifies() -> None:
    runs = [Run("null", 1, 1, 90.0, 90.1, 200, [90.0]), Run("fast", 1, 24, 4.0, 4.5, 17, [4.0])]
    assert throughput.speedup(Plan(), runs[1]) == pytest.approx(22.5)
    assert throughput.speedup(Plan(), runs[1], until_stored=True) == pytest.approx(20)
    assert throughput._median([runs[0]._replace(took_s=took_s) for took_s in (1.0, 2.0, 4.0)])[3:7] == (
        2.0,
        90.1,
        200,
        [1.0, 2.0, 4.0],
    )


def test_a_document_has_statements_of_several_topics_and_no_statement_is_used_twice() -> None:
    plan = serverless.Plan(documents=8)
    documents = serverless.compose(plan, data.synthetic(100))
    assert len(documents) == 8
    for document in documents:
        topics = [statement["topic"] for statement in document["statements"]]
        assert len(topics) == 8
        assert len(set(topics)) == 4
    titles = [statement["title"] for document in documents for statement in document["statements"]]
    assert len(set(titles)) == 64
    with pytest.raises(ValueError, match="need more papers than 100"):
        serverless.compose(serverless.Plan(documents=11), data.synthetic(100))


def test_how_many_processes_there_were_at_the_same_time() -> None:
    times = [(0, 3), (1, 2), (1, 4), (3, 5), (4, 5)]
    spans = [Span(0, "", start, start, over, over) for start, over in times]
    assert serverless.most_at_once(spans) == 3


def test_a_page_that_is_there_keeps_its_prose(tmp_path: Path) -> None:
    written = tmp_path / "experiment.md"
    written.write_text(
        "# A\n<!-- throughput -->\nold\n<!-- end -->\nb\n<!-- serverless -->\n<!-- end -->\nc\n"
    )
    for _ in range(2):
        page.write(tmp_path, {"a": [1.0, 2.0]}, {"throughput": r"| \1 |", "serverless": "new"})
        assert written.read_text() == (
            "# A\n<!-- throughput -->\n\n| \\1 |\n\n<!-- end -->\nb\n<!-- serverless -->\n\nnew\n\n<!-- end -->\nc\n"
        )
    assert json.loads((tmp_path / "experiment.json").read_text()) == {"a": [1.0, 2.0]}


def test_a_classification_is_a_real_one_and_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    from examples.arxiv.studies import model

    papers = data.synthetic(100)
    file = tmp_path / "papers.json"
    file.write_text(json.dumps(papers[20:]))
    monkeypatch.setenv("ARXIV_WORK", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["model", str(file), str(tmp_path)])
    model.main()
    answers = [work.classify(p["title"], p["abstract"], 0.0, real=True)["best"] for p in papers[:20]]
    assert sum(answer == paper["topic"] for answer, paper in zip(answers, papers, strict=False)) > 15
    waited = []
    monkeypatch.setattr(work.time, "sleep", waited.append)
    assert work.classify("a", "b", 10.0, real=True)["topics"]
    assert 5 < waited[0] < 10

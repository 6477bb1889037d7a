"""The experiments of the literature again, in seconds: the real command, workers, processes and tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.arxiv import data

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("experiment")
    papers = folder / "papers.jsonl"
    papers.write_text("".join(f"{json.dumps(paper | {'category': ''})}\n" for paper in data.synthetic(60)))
    command = [sys.executable, "-m", "examples.arxiv.experiment", "--quick", "--out", str(folder / "out")]
    done = subprocess.run(
        [*command, "--data", str(papers)], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_pictures_page_and_figures_are_written(out: Path) -> None:
    names = {f"experiment-{name}.{kind}" for name in ("speedup", "timeline") for kind in ("svg", "png")}
    assert {path.name for path in out.iterdir()} == names | {"experiment.md", "experiment.json"}
    assert (out / "experiment-speedup.png").read_bytes().startswith(b"\x89PNG")
    assert "Amdahl" in (out / "experiment-speedup.svg").read_text()
    page = (out / "experiment.md").read_text()
    assert "| instances | null | fast | reliable |" in page
    assert "| executions | 6 |" in page


def test_a_slow_table_makes_no_task_slower(out: Path) -> None:
    found = json.loads((out / "experiment.json").read_text())["throughput"]
    runs = {(run["table"], run["instances"]): run for run in found["runs"]}
    assert set(runs) == {(table, count) for table in ("null", "fast", "reliable") for count in (1, 3)}
    for run in runs.values():
        assert run["stored_s"] >= run["took_s"] > 0
        assert 1 <= run["writes"] <= 12
    # Were it waited for after each of the twelve tasks, that would take 1.2 s.
    assert runs["reliable", 1]["took_s"] - runs["null", 1]["took_s"] < 0.8, runs
    assert runs["reliable", 3]["stored_s"] - runs["reliable", 3]["took_s"] > 0.05


def test_each_execution_is_on_the_time_line_in_its_order(out: Path) -> None:
    found = json.loads((out / "experiment.json").read_text())["serverless"]
    spans = [dict(zip(found["span"], span, strict=True)) for span in found["spans"]]
    assert len(spans) == 6
    for span in spans:
        assert span["started_s"] < span["began_s"] < span["ended_s"] < span["over_s"] <= found["took_s"]
    for number in range(2):
        main, *topics = (span for span in spans if span["document"] == number)
        assert main["topic"] == ""
        assert len({span["topic"] for span in topics}) == 2
        assert all(main["began_s"] < span["started_s"] for span in topics)
    assert 2 <= found["most_at_once"] <= 6
    assert found["speedup"] > 0

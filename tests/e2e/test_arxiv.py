"""The arXiv example as its README says it: both levels, feeds, the page, and what a user sees when something is wrong."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

import mtask
from mtask.model import Reason, State
from tests.chaos.harness import wait_for
from tests.e2e.conftest import signals_as_usual
from tests.servers.postgres import Postgres
from tests.servers.process import serving
from tests.servers.rabbitmq import Broker

ROOT = Path(__file__).parents[2]
for _module in ("feedparser", "joblib", "sklearn"):
    try:
        importlib.import_module(_module)
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{error.name} is missing: pip install 'mtask[examples]'", allow_module_level=True)

import joblib  # noqa: E402

from examples.arxiv import all as whole  # noqa: E402 after what they import
from examples.arxiv import data, feed, pipeline, report, scores, validate  # noqa: E402
from examples.arxiv.topics import TOPICS  # noqa: E402
from examples.arxiv.train import train  # noqa: E402

ROLES = ",".join(("main", *TOPICS))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("trained")
    assert train(data.synthetic(160), work, trees=5) == (120, 40)
    return work


@pytest.fixture
def work(command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models that a test may spoil, and where workers look for them."""
    folder = command.folder / "work"
    shutil.copytree(trained, folder)
    monkeypatch.setenv("ARXIV_WORK", str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def keep(path: Path, count: int) -> None:
    """The first rows."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(count + 1), csv.reader(file), strict=False)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@contextmanager
def worker(command, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = command.start("worker", "--roles", ROLES, "-j", "1", *options)
    yield process
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def answers(command, work: Path) -> list[dict[str, str]]:
    """What pipeline.py makes of the first tasks, over whatever MTASK_QUEUE and MTASK_TABLE name."""
    out = command.folder / "answers.csv"
    for name in ("tasks.csv", "truth.csv"):
        keep(work / name, 16)
    with worker(command), mtask.connect() as mt:
        pipeline.classify(mt, work / "tasks.csv", "papers")
        pipeline.write(pipeline.answers(mt, "papers"), out)
    return rows_of(out)


def check(found: list[dict[str, str]], work: Path) -> None:
    """Each paper is answered; it goes to one topic where the models agree, and else to both."""
    truth = {row["id"]: row for row in rows_of(work / "truth.csv")}
    assert {row["id"] for row in found} == set(truth)
    sent = Counter(row["id"] for row in found)
    for row in found:
        assert sent[row["id"]] == len({row["rf"], row["best"]})
        assert row["topic"] in (row["rf"], row["best"])
        assert not row["error"]
        assert re.fullmatch(r"[A-Z][^?]*(\?|\?\?\?)?", row["sub_topic"])
    assert 2 in sent.values()  # five trees are wrong now and then
    assert sum(row["best"] == truth[row["id"]]["topic"] for row in found) > 0.8 * len(found)


def test_the_pipeline_over_a_file_and_a_page_about_it(tmp_path: Path, trained: Path) -> None:
    """As all.py does it, but for what takes long: training at full size, and validation."""
    found = whole.classify(trained, slots=1)
    check(rows_of(trained / "answers.csv"), trained)
    assert scores.accuracy(found.models["best"]) > 0.8
    assert 0 < found.agree < 1
    assert found.reached >= scores.accuracy(found.models["best"])
    assert len(found.parts) > 20

    validated = {"topics": {"best": [0.88, 0.9]}, "sub_topics": {topic: [0.7, 0.75] for topic in TOPICS}}
    page = tmp_path / "arxiv.md"
    page.write_text((ROOT / "docs/examples/arxiv.md").read_text(encoding="utf-8"), encoding="utf-8")
    whole.write(found, validated, tmp_path)
    html = (tmp_path / "arxiv-report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)  # it needs nothing else
    assert html.count("<svg") == len(list(tmp_path.glob("*.svg"))) == 3 + len(TOPICS)
    for text in (html, page.read_text(encoding="utf-8")):
        assert f"{scores.accuracy(found.models['best']):.3f}" in text
    assert "| topics, best | 2 quarters | 0.890 | 0.880 | 0.900 |" in page.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="are missing"):
        whole.put(page, "nothing", report.splits_table(validated))


def test_the_pipeline_over_rabbitmq_and_postgresql(
    command, work: Path, rabbitmq: Broker, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTASK_QUEUE", rabbitmq.url())
    monkeypatch.setenv("MTASK_TABLE", f"{postgres.url}?schema={postgres.schema()}")
    assert command("init").code == 0
    check(answers(command, work), work)


@pytest.mark.usefixtures("moto")
def test_the_pipeline_over_sqs_and_dynamodb(command, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTASK_QUEUE", "sqs://eu-west-1/papers")
    monkeypatch.setenv("MTASK_TABLE", "dynamodb://eu-west-1/papers")
    assert command("init").code == 0
    check(answers(command, work), work)


def test_validation_tests_each_paper_of_a_topic_once(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = data.synthetic(160)
    monkeypatch.setattr(validate, "load", lambda path: (documents, "made up"))
    found = validate.topics(None, 0, trees=5)
    assert found["either right"] >= found["best"] > 0.8
    assert validate.sub_topics(None, "math", 0) > 0.5


# --- bad input ------------------------------------------------------------------------------------------


def one_task(command, **parameters: str) -> mtask.Result:
    """How a paper's first task ends."""
    row = {"id": "one", "title": "On lemmas", "abstract": "theorem proof lemma", **parameters}
    with worker(command), mtask.connect() as mt:
        bag = mt.submit([row], call="examples.arxiv.classify:main_topic", bag="papers", tags="main")
        bag.wait(timeout_s=60)
        return next(bag.results())


def test_an_empty_abstract_fails_at_once_and_goes_to_no_topic(command, work: Path) -> None:
    result = one_task(command, abstract=" \n")
    assert (result.state, result.attempt) == (State.FAILED, 1)
    assert result.error is not None
    assert "the abstract is empty" in result.error.message
    with mtask.connect() as mt:
        assert [each.name for each in mt.bags()] == ["papers"]
        (row,) = pipeline.answers(mt, "papers")
        assert row == {"id": "one", "error": f"{result.error.type}: {result.error.message}"}


@pytest.mark.parametrize("part", [0, 0.5], ids=["empty", "cut"])
def test_a_corrupt_model_is_named(command, work: Path, part: float) -> None:
    path = work / "main.joblib"
    joblib.dump(list(range(10_000)), path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    result = one_task(command)
    assert result.error is not None
    assert result.error.reason is Reason.SETUP
    assert f"the model of 'main' can't be read: {path}" in result.error.message
    assert "examples.arxiv.train" in result.error.message


def test_a_missing_model_of_a_topic_fails_that_topic_alone_and_is_mended_by_retry(
    command, work: Path
) -> None:
    model = (work / "bio.joblib").rename(work / "away")
    keep(work / "tasks.csv", 12)
    with worker(command), mtask.connect() as mt:
        pipeline.classify(mt, work / "tasks.csv", "papers")
        rows = list(pipeline.answers(mt, "papers"))
        wrong = [row for row in rows if "error" in row]
        assert wrong
        assert {row["topic"] for row in wrong} == {"bio"}
        assert all(
            f"there is no model of 'bio': {work / 'bio.joblib'} is missing" in row["error"] for row in wrong
        )
        model.rename(work / "bio.joblib")
        assert command("retry", "papers-bio").code == 0
        mt.bag("papers-bio").wait(timeout_s=60)
        assert not [row for row in pipeline.answers(mt, "papers") if "error" in row]


def test_too_few_documents_of_a_topic_are_said(tmp_path: Path) -> None:
    documents = [
        {**document, "sub_topic": "" if document["topic"] == "bio" else document["sub_topic"]}
        for document in data.synthetic(160)
    ]
    with pytest.raises(ValueError, match="of 0 documents none can be learned: two different sub_topics"):
        train(documents, tmp_path, trees=1)


# --- feeds ----------------------------------------------------------------------------------------------

ARXIV = """<?xml version='1.0' encoding='UTF-8'?>
<rss xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns:dc="http://purl.org/dc/elements/1.1/" version="2.0">
<channel><title>q-bio updates on arXiv.org</title><link>http://rss.arxiv.org/rss/q-bio</link>{}</channel></rss>"""
ARXIV_ENTRY = """<item><title>{title}</title><link>https://arxiv.org/abs/{id}</link>
<description>arXiv:{id}v1 Announce Type: new
Abstract: {abstract}</description><guid isPermaLink="false">oai:arXiv.org:{id}v1</guid>
<category>q-bio.NC</category><dc:creator>A. Nonymous</dc:creator></item>"""
PLOS = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><title>PLOS Computational Biology</title><id>http://localhost</id>{}</feed>"""
PLOS_ENTRY = """<entry><title>{title}</title><link rel="alternate" href="https://dx.plos.org/{id}"/>
<id>{id}</id><updated>2026-11-20T14:00:00Z</updated>
<content type="html">&lt;p&gt;by A. Nonymous&lt;/p&gt; {abstract}</content></entry>"""
NATURE = """<?xml version="1.0" encoding="UTF-8"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/"
 xmlns:content="http://purl.org/rss/1.0/modules/content/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<channel rdf:about="http://feeds.nature.com/nature/rss/current"><title>Nature</title></channel>{}</rdf:RDF>"""
NATURE_ENTRY = """<item rdf:about="https://www.nature.com/articles/{id}"><title><![CDATA[{title}]]></title>
<link>https://www.nature.com/articles/{id}</link><content:encoded><![CDATA[<p>Nature, Published online: 20 November
2026; <a href="https://www.nature.com/articles/{id}">doi:10.1038/{id}</a></p>{abstract}]]></content:encoded></item>"""


def document(shape: str, entry: str, *entries: tuple[str, str, str]) -> bytes:
    made = [
        entry.format(**dict(zip(("id", "title", "abstract"), map(escape, each), strict=True)))
        for each in entries
    ]
    return shape.format("".join(made)).encode()


class Site:
    """Feeds by path; a number is a status."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.feeds: dict[str, bytes | int] = {}


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = served.feeds.get(self.path, 404)
            body = b"" if isinstance(found, int) else found
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Type", "text/html" if body.startswith(b"<html") else "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        served = Site(f"http://{address}")
        yield served


@pytest.fixture
def feeds(site: Site) -> list[str]:
    site.feeds = {
        "/arxiv": document(
            ARXIV,
            ARXIV_ENTRY,
            ("2611.00001", "On $x < y$", "We show that neuron & cortex, with $x < y$."),
            ("2611.00002", "Genes", "Protein folding."),
        ),
        "/plos": document(PLOS, PLOS_ENTRY, ("10.1371/journal.pcbi.1", "Cells", "An epidemic of RNA.")),
        "/nature": document(
            NATURE, NATURE_ENTRY, ("s41586-1", "Photons", "A quantum lattice."), ("d41586-2", "News", "")
        ),
    }
    return [f"{site.url}{path}" for path in site.feeds]


@pytest.fixture
def run_feed(
    command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["feed", *arguments])
        try:
            feed.main()
        except SystemExit as end:
            return int(end.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_feeds_of_all_shapes_become_tasks(command, feeds: list[str], run_feed) -> None:
    code, out, err = run_feed(*feeds)
    assert (code, out, err) == (0, "4 entries, 4 of them new\n", "")
    with mtask.connect() as mt:
        tasks = [dict(task.params) for task in mt.bag("feed").tasks()]
    assert tasks == [
        {"id": "oai:arXiv.org:2611.00001v1", "title": "On $x < y$", "abstract": "We show that neuron & cortex, with $x < y$.", "bag": "feed"},
        {"id": "oai:arXiv.org:2611.00002v1", "title": "Genes", "abstract": "Protein folding.", "bag": "feed"},
        {"id": "10.1371/journal.pcbi.1", "title": "Cells", "abstract": "by A. Nonymous An epidemic of RNA.", "bag": "feed"},
        {"id": "https://www.nature.com/articles/s41586-1", "title": "Photons", "abstract": "A quantum lattice.", "bag": "feed"},
    ]  # fmt: skip


def test_what_is_new_is_submitted_once(command, site: Site, feeds: list[str], run_feed) -> None:
    assert run_feed(*feeds)[1] == "4 entries, 4 of them new\n"
    assert run_feed(*feeds)[1] == "4 entries, 0 of them new\n"
    more = [("2611.00002", "Genes", "Protein folding."), ("2611.00003", "Spins", "A magnetic lattice.")]
    site.feeds["/arxiv"] = site.feeds["/again"] = document(ARXIV, ARXIV_ENTRY, *more)
    assert run_feed(*feeds, f"{site.url}/again")[1] == "6 entries, 1 of them new\n"


def test_a_feed_that_cannot_be_read_is_named_and_the_others_go_on(
    site: Site, feeds: list[str], run_feed
) -> None:
    site.feeds |= {"/down": 503, "/page": b"<html><body>Please log in</body></html>", "/empty": b""}
    bad = [f"{site.url}{path}" for path in ("/down", "/missing", "/page", "/empty")]
    bad += ["http://127.0.0.1:9/none", "no-address"]
    code, out, err = run_feed(bad[0], *feeds, *bad[1:])
    assert (code, out) == (1, "4 entries, 4 of them new\n")
    said = [
        "answers 503",
        "answers 404",
        "neither RSS nor Atom, but begins with b'<html>",
        "neither RSS nor Atom",
        "refused",
        "unknown url type",
        "6 of 9 feeds couldn't be read whole",
    ]
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == bad
    assert all(each in line for each, line in zip(said, lines, strict=True)), err
    assert run_feed(bad[0])[0] == 1


def test_a_feed_that_is_cut_off_gives_what_it_has_and_is_named(
    site: Site, feeds: list[str], run_feed
) -> None:
    whole_feed = site.feeds["/arxiv"]
    assert isinstance(whole_feed, bytes)
    site.feeds["/arxiv"] = whole_feed[: whole_feed.index(b"Genes") + 3]
    code, out, err = run_feed(feeds[0])
    assert (code, out) == (1, "1 entries, 1 of them new\n")
    assert "breaks off" in err


def test_feeds_are_classified_as_they_come(command, work: Path, site: Site, feeds: list[str]) -> None:
    """`--every`, workers, and `mtask results -f` at once, until Ctrl-C."""
    args = [sys.executable, "-m", "examples.arxiv.feed", *feeds, "--every", "0.2"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True, preexec_fn=signals_as_usual) as polling:
        assert polling.stdout is not None
        with worker(command), mtask.connect() as mt:
            assert polling.stdout.readline() == "4 entries, 4 of them new\n"
            following = command.start("results", "-f", "feed", "--format", "jsonl")
            assert following.stdout is not None
            first = [following.stdout.readline() for _ in range(4)]
            new = ("2611.00009", "Options", "Option pricing and hedging of volatility.")
            site.feeds["/arxiv"] = document(ARXIV, ARXIV_ENTRY, new)
            assert '"oai:arXiv.org:2611.00009v1"' in following.stdout.readline()
            assert all('"topics"' in line for line in first)
            wait_for(lambda: len(pipeline.topic_bags(mt, "feed")) > 0, "topics have tasks")
            bags = pipeline.topic_bags(mt, "feed").values()
            wait_for(lambda: all(each.counts().left == 0 for each in bags), "they are done", timeout_s=60)
            assert not [row for row in pipeline.answers(mt, "feed") if "error" in row]
        polling.send_signal(signal.SIGINT)
        assert polling.wait(30) == 130

"""The examples do what their READMEs say, on data that they make up themselves."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from examples.arxiv import data, fetch, scores, topics
from tests.servers.process import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sklearn() -> None:
    """Skip at home, fail in CI."""
    try:
        for module in ("joblib", "matplotlib", "sklearn"):
            importlib.import_module(module)
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{error.name} is missing: pip install 'mtask[examples]'")


# --- arXiv: the API -------------------------------------------------------------------------------------

ENTRY = """
  <entry>
    <id>http://arxiv.org/abs/{id}</id>
    <title>{title}</title>
    <summary>  {abstract}
</summary>
    <author><name>A. Nonymous</name></author>
    <category term="{category}" scheme="http://arxiv.org/schemas/atom"/>
    <arxiv:primary_category xmlns:arxiv="http://arxiv.org/schemas/atom" term="{category}"/>
  </entry>"""


def atom(entries: list[dict[str, str]], total: int) -> bytes:
    body = "".join(ENTRY.format(**{key: escape(text) for key, text in entry.items()}) for entry in entries)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
  <title type="html">ArXiv Query</title>
  <opensearch:totalResults xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">{total}</opensearch:totalResults>
{body}
</feed>""".encode()


def paper(number: int, category: str) -> dict[str, str]:
    return {
        "id": f"2401.{number:05d}v1",
        "title": f"Paper\n  {number}",
        "abstract": "We show.",
        "category": category,
    }


class Arxiv:
    """A small arXiv: answers by archive from `papers`, after what `troubles` says."""

    def __init__(self) -> None:
        self.papers: dict[str, list[dict[str, str]]] = {}
        self.troubles: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.requests: list[dict[str, str]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        words = {key: values[0] for key, values in parse_qs(urlsplit(handler.path).query).items()}
        self.requests.append({**words, "agent": handler.headers["User-Agent"]})
        if self.troubles:
            self.troubles.pop(0)(handler)
            return
        archives = [word.removeprefix("cat:").rstrip("*") for word in words["search_query"].split(" OR ")]
        found = [paper for archive in archives for paper in self.papers.get(archive, [])]
        start, size = int(words["start"]), int(words["max_results"])
        send(handler, 200, atom(found[start : start + size], len(found)))


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def arxiv() -> Iterator[Arxiv]:
    server = Arxiv()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        server.url = f"http://{address}/api/query"
        yield server


def test_atom_is_read_into_the_fields_of_the_data_set() -> None:
    entry = {
        "id": "hep-th/9901001v2",
        "title": "On  $x < y$\n  & more",
        "abstract": 'Let $x < y$,\n"say".',
        "category": "hep-th",
    }
    assert fetch.parse(atom([entry], 17)) == fetch.Page(
        17,
        [
            {
                "id": "hep-th/9901001v2",
                "title": "On $x < y$ & more",
                "abstract": 'Let $x < y$,\n"say".',
                "category": "hep-th",
                "topic": "physics",
                "source": "arxiv-api",
            }
        ],
    )


def test_the_error_that_arxiv_sends_as_an_entry_is_raised() -> None:
    document = atom([paper(1, "cs.AI")], 1).replace(b"/abs/", b"/api/errors#incorrect_id_format/")
    with pytest.raises(ValueError, match="We show"):
        fetch.parse(document)


@pytest.mark.parametrize(
    ("category", "topic"),
    [
        ("q-bio.NC", "bio"),
        ("cs.LG", "compsci"),
        ("stat.ML", "compsci"),
        ("stat.ME", "math"),
        ("math-ph", "physics"),
        ("math.PR", "math"),
        ("astro-ph.CO", "physics"),
        ("q-fin.RM", "finance"),
        ("eess.SP", None),
        ("", None),
    ],
)
def test_a_category_has_a_topic(category: str, topic: str | None) -> None:
    assert topics.topic_of(category) == topic


def test_fetch_turns_pages_and_keeps_each_paper_once_under_its_primary_category(
    arxiv: Arxiv, tmp_path: Path
) -> None:
    arxiv.papers = {
        "q-bio": [paper(1, "q-bio.GN"), paper(2, "cs.LG"), paper(3, "q-bio.NC"), paper(4, "q-bio.PE")],
        "cs": [paper(2, "cs.LG"), paper(2, "cs.LG"), paper(5, "eess.SP")],
        "q-fin": [paper(number, "q-fin.RM") for number in range(10, 20)],
    }
    out = tmp_path / "papers.jsonl"
    count = fetch.fetch(out, fetch.Client(arxiv.url, pause_s=0.001), per_topic=3, size=2)
    papers = [json.loads(line) for line in out.read_text().splitlines()]
    assert count == len(papers) == 7
    assert [paper["id"][5:10] for paper in papers] == [
        "00001",
        "00003",
        "00004",
        "00002",
        "00010",
        "00011",
        "00012",
    ]
    assert Counter(paper["topic"] for paper in papers) == {"bio": 3, "compsci": 1, "finance": 3}
    assert all("mtask" in request["agent"] for request in arxiv.requests)
    assert [paper["title"] for paper in data.read(out)] == [paper["title"] for paper in papers]
    assert list(tmp_path.iterdir()) == [out]


def test_fetch_tries_again_after_passing_trouble_and_never_faster_than_it_may(
    arxiv: Arxiv, monkeypatch: pytest.MonkeyPatch
) -> None:
    arxiv.papers = {"q-bio": [paper(1, "q-bio.GN")]}
    arxiv.troubles = [
        lambda handler: send(handler, 503, b"", Retry_After="30"),
        lambda handler: send(handler, 200, b"<feed>cut sho"),
        lambda handler: send(handler, 200, atom([], 1)),
        lambda handler: None,  # hangs up
    ]
    now = 0.0
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        sleeps.append(seconds)

    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    client = fetch.Client(arxiv.url)
    assert [found["id"] for found in client.papers("bio", 1)] == ["2401.00001v1"]
    assert [found["id"] for found in client.papers("bio", 1)] == ["2401.00001v1"]
    assert sleeps == [0, 30, 12, 24, 48, 3]


def test_fetch_gives_up_and_leaves_no_file_that_looks_complete(arxiv: Arxiv, tmp_path: Path) -> None:
    arxiv.troubles = [lambda handler: send(handler, 500, b"")] * 2
    out = tmp_path / "papers.jsonl"
    with pytest.raises(ConnectionError, match="gave up after 2 tries"):
        fetch.fetch(out, fetch.Client(arxiv.url, pause_s=0.001, tries=2), per_topic=1)
    assert not out.exists()


def test_fetch_does_not_repeat_a_request_that_is_wrong(arxiv: Arxiv) -> None:
    arxiv.troubles = [lambda handler: send(handler, 400, b"")]
    with pytest.raises(HTTPError):
        list(fetch.Client(arxiv.url, pause_s=0.001).papers("bio", 1))
    assert len(arxiv.requests) == 1


# --- arXiv: the classifier ------------------------------------------------------------------------------


def test_made_up_documents_are_the_same_each_time_and_as_awkward_as_real_ones() -> None:
    documents = data.synthetic(100, seed=3)
    assert documents == data.synthetic(100, seed=3) != data.synthetic(100, seed=4)
    assert Counter(document["topic"] for document in documents) == dict.fromkeys(topics.ARCHIVES, 20)
    assert all(set('\n",$\\{') <= set(document["abstract"]) for document in documents)


def test_a_document_without_an_id_gets_one_and_an_id_is_not_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "papers.jsonl"
    path.write_text('{"id": "", "title": "a"}\n{"id": "7", "title": "b"}\n')
    assert [document["id"] for document in data.read(path)] == ["line-1", "7"]
    path.write_text('{"id": "7", "title": "a"}\n{"id": "7", "title": "b"}\n')
    with pytest.raises(ValueError, match=r"papers.jsonl:2: 7 is on line 1 already"):
        data.read(path)


def test_answers_are_compared_with_what_is_true(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text(
        "id,topic,sub_topic\n1,bio,Neuro\n2,bio,\n3,math,Algebra\n4,math,Algebra\n"
    )
    (tmp_path / "answers.csv").write_text(
        "id,rf,best,topic,sub_topic,chance,error\n"
        "1,bio,math,bio,Neuro?,0.5,\n"
        "1,bio,math,math,Other,0.9,\n"
        "2,bio,bio,bio,Neuro,0.7,\n"
        "3,math,math,math,Topology???,0.2,\n"
        "4,,,,,,Fail: the abstract is empty\n"
    )
    found = scores.compare(tmp_path / "answers.csv", tmp_path / "truth.csv")
    assert scores.accuracy(found.models["rf"]) == 0.75
    assert found.models["best"] == {
        ("bio", "math"): 1,
        ("bio", "bio"): 1,
        ("math", "math"): 1,
        ("math", scores.NONE): 1,
    }
    assert (found.agree, found.reached) == (2 / 3, 0.75)
    assert [(part.true, part.answer, part.right) for part in found.parts] == [
        ("Neuro", "Neuro", True),
        ("Algebra", "Topology", False),
    ]
    assert scores.by_mark(found.parts) == [("", 0, 0), ("?", 0.5, 1), ("???", 0.5, 0)]
    assert scores.by_threshold(found.parts)[-1] == (0.5, 0.5, 1)
    assert scores.names(found.models["best"]) == (["bio", "math"], ["bio", "math", "(none)"])


def test_the_sub_topics_are_those_of_the_topics() -> None:
    for topic, groups in topics.SUB_TOPICS.items():
        categories = " ".join(groups.values()).split()
        assert len(categories) == len(set(categories))
        assert {topics.topic_of(category) for category in categories} == {topic}
    assert topics.sub_topic_of("gr-qc") == "General Relativity"
    assert topics.sub_topic_of("q-bio") is None


@pytest.mark.usefixtures("sklearn")
def test_the_split_depends_on_the_seed_alone() -> None:
    from examples.arxiv.train import split

    documents = data.synthetic(100)
    (learn, test), again, other = (split(documents, seed) for seed in (0, 0, 1))
    assert (learn, test) == again != other
    assert (len(learn), len(test)) == (75, 25)
    assert {document["id"] for document in (*learn, *test)} == {document["id"] for document in documents}
    assert Counter(document["topic"] for document in test) == dict.fromkeys(topics.TOPICS, 5)


@pytest.mark.parametrize("module", ["arxiv.fetch", "arxiv.experiment", "arxiv.report"])
def test_every_script_says_what_it_does(module: str) -> None:
    command = [sys.executable, "-m", f"examples.{module}", "--help"]
    assert "usage:" in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

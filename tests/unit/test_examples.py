"""The examples do what their READMEs say, on data that they make up themselves."""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from examples.arxiv import classify, data, evaluate, fetch, topics
from examples.genomics import align, check, prepare
from examples.genomics.fasta import read_fasta, reverse_complement, write_fasta

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

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/api/query"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        http.shutdown()
        thread.join()


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
                "topic": "Physics",
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
        ("math-ph", "Physics"),
        ("math.PR", "math"),
        ("astro-ph.CO", "Physics"),
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
    assert data.read(out) == papers
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


@pytest.mark.usefixtures("sklearn")
def test_train_classify_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.arxiv.train import train

    documents = data.synthetic(400)
    assert train(documents, tmp_path) == (300, 100)
    with (tmp_path / "tasks.csv").open(newline="") as file:
        tasks = list(csv.DictReader(file))
    known = {document["id"]: document for document in documents}
    assert list(tasks[0]) == ["id", "title", "abstract"]
    assert all(task["abstract"] == known[task["id"]]["abstract"] for task in tasks)

    monkeypatch.setenv("ARXIV_WORK", str(tmp_path))
    results = tmp_path / "results.csv"
    with results.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "state", "topic", "margin"))
        for task in tasks[1:]:
            value = classify.predict(task["title"], task["abstract"])
            json.dumps(value)
            writer.writerow((task["id"], "done", value["topic"], value["margin"]))
        writer.writerow((tasks[0]["id"], "failed", "", ""))

    pairs = evaluate.confusion(results, tmp_path / "truth.csv")
    assert pairs.total() == 100
    assert pairs[known[tasks[0]["id"]]["topic"], evaluate.NONE] == 1
    assert evaluate.accuracy(pairs) > 0.9

    monkeypatch.setattr(sys, "argv", ["evaluate", str(results), "--work", str(tmp_path)])
    evaluate.main()
    assert f"accuracy {evaluate.accuracy(pairs):.3f} of 100 papers" in capsys.readouterr().out
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("sklearn")
def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    from examples.arxiv.train import train

    documents = data.synthetic(100)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(documents, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "tasks.csv").read_text() for name in "abc")
    assert a == b != c


def test_the_confusion_matrix_as_text() -> None:
    pairs = Counter({("bio", "bio"): 3, ("bio", "math"): 1, ("math", "math"): 12, ("math", evaluate.NONE): 2})
    assert evaluate.accuracy(pairs) == 15 / 18
    assert evaluate.as_text(pairs).split() == [
        *("bio", "math", "(none)"),
        *("bio", "3", "1", "0"),
        *("math", "0", "12", "2"),
    ]


# --- genomics -------------------------------------------------------------------------------------------


def results_of(tasks: Path, results: Path) -> None:
    """What `mtask run --call align:align` and `mtask results` do, in a few lines."""
    with tasks.open(newline="") as source, results.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("id", "reads", "db", "state", "total", "mapped", "positions"))
        for row in csv.DictReader(source):
            value = align.align(row["reads"], row["db"])
            writer.writerow(
                (*row.values(), "done", value["total"], value["mapped"], json.dumps(value["positions"]))
            )


def test_fasta_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_text(">one of them\nACgt\nNN\n\n>empty\n>two\nA")
    records = [("one", "ACGTNN"), ("empty", ""), ("two", "A")]
    assert list(read_fasta(path)) == records
    write_fasta(path, records)
    assert list(read_fasta(path)) == records
    assert reverse_complement("AACGTN") == "NACGTT"
    path.write_text("ACGT\n")
    with pytest.raises(ValueError, match=r"a.fa:1: sequence before"):
        list(read_fasta(path))


def test_prepare_writes_what_the_readme_says_and_replaces_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genome = prepare.random_genome(2_000)
    reads = prepare.simulate(genome, 10)
    assert prepare.prepare(Path("work"), genome, reads, chunk=2) == 5
    assert prepare.prepare(Path("work"), genome, reads, chunk=4) == 3
    with (tmp_path / "work/tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    work = tmp_path.resolve() / "work"
    assert rows == [
        {"id": f"chunk-{n:04d}", "reads": f"{work}/reads/chunk-{n:04d}.fa", "db": f"{work}/genome.fa"}
        for n in range(3)
    ]
    assert [read for row in rows for read in read_fasta(row["reads"])] == reads
    assert sorted(path.name for path in (work / "reads").iterdir()) == [f"{row['id']}.fa" for row in rows]
    assert list(read_fasta(work / "genome.fa")) == [("genome", genome)]


def test_prepare_refuses_reads_of_the_same_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same name"):
        prepare.prepare(tmp_path, "ACGT", [("one", "ACGT"), ("one", "TTTT")])


def test_align_finds_the_true_place_of_more_than_95_percent(tmp_path: Path) -> None:
    genome = prepare.random_genome()
    prepare.prepare(tmp_path, genome, prepare.simulate(genome, 300))
    results_of(tmp_path / "tasks.csv", tmp_path / "results.csv")
    reads = {name: read for path in (tmp_path / "reads").glob("*.fa") for name, read in read_fasta(path)}
    true = check.truth(reads)
    assert {strand for _, strand in true.values()} == {"+", "-"}
    same, _, _ = check.agreement(true, check.from_results(tmp_path / "results.csv"))
    assert same / len(true) > 0.95


def test_align_places_nothing_that_is_not_there(tmp_path: Path) -> None:
    rng = random.Random(1)
    write_fasta(tmp_path / "genome.fa", [("genome", prepare.random_genome())])
    reads = {f"r{n}": "".join(rng.choices("ACGT", k=300)) for n in range(100)}
    write_fasta(
        tmp_path / "reads.fa", [*reads.items(), ("short", "ACG"), ("empty", ""), ("unread", "N" * 100)]
    )
    value = align.align(str(tmp_path / "reads.fa"), str(tmp_path / "genome.fa"))
    assert value == {"total": 103, "mapped": 0, "positions": {}}


def test_a_read_may_hang_over_either_end_of_the_genome() -> None:
    genome = prepare.random_genome(1_000)
    index = {genome[at : at + align.WORD]: [at] for at in range(len(genome) - align.WORD + 1)}
    assert align.place("N" * 10 + genome[:50], genome, index) == (-9, "+", 50)
    assert align.place(reverse_complement(genome[-50:] + "N" * 10), genome, index) == (951, "-", 50)


def test_align_refuses_a_genome_of_several_sequences(tmp_path: Path) -> None:
    write_fasta(tmp_path / "genome.fa", [("one", "ACGT"), ("two", "ACGT")])
    with pytest.raises(ValueError, match="one sequence is needed, there are 2"):
        align.align(str(tmp_path / "genome.fa"), str(tmp_path / "genome.fa"))


def test_agreement_counts_the_same_place_on_the_same_strand() -> None:
    ours = {"a": (100, "+"), "b": (100, "+"), "c": (100, "-"), "d": (5, "+")}
    theirs = {"a": (110, "+"), "b": (111, "+"), "c": (100, "+"), "e": (5, "+")}
    assert check.agreement(ours, theirs, within=10) == (1, 3, 2)


def test_blastn_tables_are_read_as_places_of_whole_reads(tmp_path: Path) -> None:
    rest = "\t99.0\t90\t1\t0\t"
    (tmp_path / "chunk-0000.fa.tsv").write_text(
        f"ahead\tgenome{rest}11\t100\t510\t599\t1e-40\t150\n"
        f"ahead\tgenome{rest}1\t30\t9001\t9030\t1e-9\t50.1\n"
        f"back\tgenome{rest}11\t90\t580\t501\t1e-40\t150\n"
    )
    reads = {"ahead": "N" * 100, "back": "N" * 100}
    assert check.from_blast(tmp_path, reads) == {"ahead": (500, "+"), "back": (491, "-")}


@pytest.mark.skipif(shutil.which("blastn") is None, reason="no blastn: apt-get install ncbi-blast+")
def test_blastn_and_align_agree(tmp_path: Path) -> None:
    genome = prepare.random_genome()
    prepare.prepare(tmp_path, genome, prepare.simulate(genome, 100), chunk=50)
    with (tmp_path / "tasks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            command = "blastn -query {reads} -db {db} -outfmt 6 -out {reads}.tsv"
            subprocess.run([word.format(**row) for word in command.split()], check=True)
    results_of(tmp_path / "tasks.csv", tmp_path / "results.csv")
    script = [
        sys.executable,
        "-m",
        "examples.genomics.check",
        str(tmp_path / "results.csv"),
        "--work",
        str(tmp_path),
    ]
    printed = subprocess.run(script, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    shares = {
        line.split(":")[0]: float(line.split("(")[1][:5]) for line in printed.splitlines() if "(" in line
    }
    assert set(shares) == {"truth and align", "truth and blastn", "align and blastn"}
    assert min(shares.values()) > 0.95


@pytest.mark.parametrize("module", ["arxiv.fetch", "arxiv.evaluate", "genomics.prepare", "genomics.check"])
def test_every_script_says_what_it_does(module: str) -> None:
    command = [sys.executable, "-m", f"examples.{module}", "--help"]
    assert "usage:" in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

"""The genomics example as its README runs it: on files, on S3 and on Azure, and with input that is of no use."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.genomics import all as all_
from examples.genomics import fasta, prepare
from mtask.model import Result
from tests.e2e.conftest import Command, Outcome
from tests.servers.process import missing

ROOT = Path(__file__).parents[2]
READS = 240

Example = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def blast() -> None:
    if shutil.which("blastn") is None:
        missing("blastn", "`make servers` does it, or `apt-get install ncbi-blast+`")


@pytest.fixture(params=["path", "s3", "az"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base URL: the only thing that differs."""
    name = f"g{uuid.uuid4().hex}"
    if request.param == "path":
        return "data"
    if request.param == "s3":
        pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
        request.getfixturevalue("moto")
        import boto3

        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}/data"
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install adlfs")
    from azure.storage.blob import ContainerClient

    with ContainerClient.from_connection_string(request.getfixturevalue("blobs"), name) as container:
        container.create_container()
    return f"az://{name}/data"


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Example:
    """`example("check", …)` is `python -m examples.genomics.check …`, in this process."""

    def call(module: str, *args: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [module, *args])
        code: object = 0
        try:
            importlib.import_module(f"examples.genomics.{module}").main()
        except SystemExit as left:
            code = left.code or 0
        out, err = capsys.readouterr()
        return Outcome(code, out, err) if isinstance(code, int) else Outcome(1, out, str(code))

    return call


@pytest.fixture
def apart(command: Command) -> Example:
    """The same in processes of their own: clients of stores leave threads behind."""

    def call(module: str, *args: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", f"examples.genomics.{module}", *args],
            cwd=command.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


def made_up(command: Command) -> tuple[str, ...]:
    """Options of `prepare`: a genome of 5,000 bases, and reads of a sample with five others."""
    genome = prepare.random_genome(5_000)
    reads = prepare.simulate(genome, prepare.random_variants(genome), READS)
    command.write("genome.fa", fasta.fasta([("genome", genome)]))
    command.write("reads.fa", fasta.fasta(reads))
    return "--genome", "genome.fa", "--simulate", str(READS), "--portion", "60"


def run(command: Command, place: str, how: str = "blast", *more: str) -> Outcome:
    return command(
        *("run", "tasks.csv", "--bag", "reads", "-j", "2", "--retries", "0"),
        *("--call", f"examples.genomics.{how}:search", "--then", "examples.genomics.variants:call"),
        *("--in", f"db={place}/db/", "--in", f"reads={place}/reads/{{id}}.fa"),
        *("--out", f"hits={place}/hits/{{id}}.tsv", *more),
    )


def failures(command: Command) -> list[Result]:
    return [result for result in command.results("reads") if result.error is not None]


def test_the_hits_are_those_of_one_big_blastn_wherever_the_files_are(
    command: Command, apart: Example, blast: None, place: str
) -> None:
    prepared = apart("prepare", place, *made_up(command))
    assert (prepared.code, "240 reads, made up; 4 tasks in tasks.csv" in prepared.out) == (0, True), prepared
    for _ in range(1 + (place == "data")):  # the second time nothing is done, and nothing called, twice
        assert run(command, place).code == 0
    (then,) = command.results("reads.then")
    assert (then.attempt, then.value["reads"], then.value["genome_length"]) == (1, READS, 5_000)

    checked = apart("check", "reads", place, "--same")
    assert checked.code == 0, checked
    assert "they are the same, row by row" in checked.out
    assert "of 5 that were put in, 5 are called; 0 others" in checked.out

    # The database came to this host once, if it wasn't there already.
    copies = {path.stat().st_ino for path in command.folder.glob("cache/**/genome.fa.nsq")}
    assert len(copies) == (place != "data")

    if place == "data":
        assert apart("join", "reads", place, "-o", "hits.csv").code == 0
        with (command.folder / "hits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert (
            len(rows)
            == sum(result.value["hits"] for result in command.results("reads"))
            == then.value["hits"]
        )
        assert [row["task"] for row in rows] == sorted(row["task"] for row in rows)
        assert rows[0]["genome"] == "genome"

        # A row that is lost is told.
        path = command.folder / "data/hits/portion-0002.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        checked = apart("check", "reads", place, "--same")
        assert (checked.code, "they differ:\n  row " in checked.out) == (1, True), checked


def test_without_blast(command: Command, example: Example) -> None:
    example("prepare", "data", *made_up(command))
    assert run(command, "data", "align").code == 0
    checked = example("check", "reads", "data")
    assert checked.code == 0, checked
    assert "of 5 that were put in, 5 are called; 0 others" in checked.out


def test_what_is_missing_is_named_and_when_it_is_there_all_goes_on(
    command: Command, example: Example
) -> None:
    example("prepare", "data", *made_up(command))
    lost = command.folder / "data/reads/portion-0001.fa"
    lost.rename(command.folder / "elsewhere")
    stopped = run(command, "data", "align")
    assert (stopped.code, "variants:call was not called" in stopped.err) == (1, True), stopped
    (failed,) = failures(command)
    assert failed.error is not None
    assert failed.error.message == f"input 'reads': {lost}: No such file or directory"
    early = example("join", "reads", "data")
    assert (early.code, "1 of 4 tasks of reads are not done" in early.err) == (1, True), early

    (command.folder / "elsewhere").rename(lost)
    assert run(command, "data", "align", "--retry-failed").code == 0
    assert example("check", "reads", "data").code == 0
    assert [then.value["reads"] for then in command.results("reads.then")] == [READS]


def test_a_database_that_is_not_there(command: Command, example: Example, blast: None) -> None:
    example("prepare", "data", *made_up(command))
    for path in (command.folder / "data/db").glob("genome.fa.*"):
        path.unlink()
    (command.folder / "data/db").rename(command.folder / "db")
    assert run(command, "data").code == 1
    url = f"{command.folder}/data/db/"
    assert {str(each.error and each.error.message) for each in failures(command)} == {
        f"input 'db': {url}: No such file or directory"
    }
    (command.folder / "db").rename(command.folder / "data/db")
    assert run(command, "data", "blast", "--retry-failed").code == 1
    assert {str(each.error and each.error.message) for each in failures(command)} == {
        f"db: there is no BLAST database in {url.rstrip('/')}: `prepare` makes one where makeblastdb is installed "
        "(apt-get install ncbi-blast+); then `mtask retry`"
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "reads.fa: no sequence in it"),
        (">r1\nACGT\n>r2\n", "reads.fa:3: 'r2' has no sequence"),
        (">r1\nACGT\n>r1\nACGT\n", "two reads have the same name"),
        (None, "No such file or directory: 'reads.fa'"),
    ],
)
def test_a_fasta_without_a_sequence_makes_no_tasks(
    command: Command, example: Example, content: str | None, said: str
) -> None:
    made_up(command)
    if content is None:
        (command.folder / "reads.fa").unlink()
    else:
        command.write("reads.fa", content)
    refused = example("prepare", "data", "--genome", "genome.fa", "--reads", "reads.fa")
    assert (refused.code, said in refused.err) == (1, True), refused
    assert not (command.folder / "tasks.csv").exists()
    assert not (command.folder / "data").exists()


def test_the_page_is_made_from_what_comes_out(
    tmp_path: Path, blast: None, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "fsspec"):
        if importlib.util.find_spec(module) is None:
            missing(module, "pip install 'mtask[examples,urls]'")
    page = tmp_path / "genomics.md"
    page.write_text(f"before\n{all_.BEGIN}\nold\n{all_.END}\nafter\n")
    made = example("all", "--out", str(tmp_path), "--simulate", "40", "--portions", "20")
    assert made.code == 0, made
    text = page.read_text()
    assert (text.split("\n")[0], "old" in text, text.split("\n")[-2]) == ("before", False, "after")
    assert "| blastn, 20 reads a task | 2 |" in text
    assert "| all rows are the same |" in text
    assert (tmp_path / "genomics-coverage.svg").stat().st_size > 5_000
    assert (tmp_path / "genomics-coverage.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"genomics.md: there should be"):
        page.write_text("no marks")
        all_.write_between_marks(page, "text")

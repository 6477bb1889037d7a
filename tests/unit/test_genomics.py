"""The parts of the genomics example, on data that it makes up itself."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from pathlib import Path

import pytest

import mtask
from examples.genomics import align, check, fasta, hits, prepare, variants

ROOT = Path(__file__).parents[2]
HIT = dict.fromkeys(hits.COLUMNS, "0") | {"read": "r", "genome": "g", "genome_length": "100", "bits": "50"}


def result_of(index: int, value: dict[str, object]) -> mtask.Result:
    return mtask.Result.done("b", index, value=value)


@pytest.mark.parametrize("name", ["a.fa", "a.fa.gz"])
def test_fasta_there_and_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    opened = gzip.open if name.endswith("gz") else open
    with opened(path, "wt") as file:
        file.write("\n>one of them\nACgt\nNN\n\n>two\nA")
    records = [("one", "ACGTNN"), ("two", "A")]
    assert list(fasta.read_fasta(path)) == records
    assert fasta.fasta(records) == b">one\nACGTNN\n>two\nA\n"
    assert fasta.reverse_complement("AACGTN") == "NACGTT"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.fa: no sequence in it"),
        (b"\n\n", "a.fa: no sequence in it"),
        (b">one\n", "a.fa:1: 'one' has no sequence"),
        (b">one\nA\n>two\n\n>three\nC\n", "a.fa:3: 'two' has no sequence"),
        (b"ACGT\n", "a.fa:1: not FASTA"),
        (b"\x89PNG\xff\n", "a.fa:1: not FASTA"),
    ],
)
def test_what_is_no_fasta_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(fasta.read_fasta(path))


def test_prepare_writes_what_the_readme_says(tmp_path: Path) -> None:
    genome = prepare.random_genome(2_000)
    differs = prepare.random_variants(genome)
    reads = prepare.simulate(genome, differs, 10)
    for at in (str(tmp_path / "a"), f"file://{tmp_path}/b"):
        tasks = prepare.prepare(at, genome, reads, portion=4, variants=differs)
        assert tasks.split() == ["id", "portion-0000", "portion-0001", "portion-0002"]
    assert {each.name for each in (tmp_path / "a/reads").iterdir()} == {
        f"portion-000{number}.fa" for number in range(3)
    }
    paths = sorted((tmp_path / "b/reads").iterdir())
    assert [read for path in paths for read in fasta.read_fasta(path)] == reads
    assert list(fasta.read_fasta(tmp_path / "a/db/genome.fa")) == [("genome", genome)]
    known = (tmp_path / "a/variants.csv").read_text().split()
    assert known[1:] == [f"{at},{genome[at - 1]},{base}" for at, base in differs.items()]
    assert len(differs) == 2
    assert all(genome[at - 1] != base for at, base in differs.items())


def test_prepare_refuses_reads_of_the_same_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same name"):
        prepare.prepare(str(tmp_path), "ACGT", [("one", "ACGT"), ("one", "TTTT")], variants={})


@pytest.fixture
def genome(tmp_path: Path) -> str:
    (tmp_path / "db").mkdir()
    made = prepare.random_genome()
    (tmp_path / "db/genome.fa").write_bytes(fasta.fasta([("genome", made)]))
    return made


def search(folder: Path, reads: list[tuple[str, str]]) -> tuple[dict[str, object], list[hits.Hit]]:
    (folder / "reads.fa").write_bytes(fasta.fasta(reads))
    value = align.search(folder / "reads.fa", folder / "db", folder / "hits.tsv")
    return value, hits.read_hits(folder / "hits.tsv")


def test_align_finds_the_true_place_and_the_true_variants(tmp_path: Path, genome: str) -> None:
    differs = prepare.random_variants(genome)
    reads = prepare.simulate(genome, differs, 1000)
    values = [search(tmp_path, reads[start : start + 500]) for start in (0, 500)]
    found = [hit for _, portion in values for hit in portion]
    true = check.truth(dict(reads))
    assert {strand for _, strand in true.values()} == {"+", "-"}
    same, _, _ = check.agreement(true, check.places(found, dict(reads)))
    assert same / len(true) > 0.95
    for hit in found:
        start, end = sorted((int(hit["start"]), int(hit["end"])))
        theirs = hit["genome_bases"]
        if hit["start"] != str(start):
            theirs = fasta.reverse_complement(theirs)
        assert theirs == genome[start - 1 : end]
        assert (
            hit["read_bases"] == dict(reads)[hit["read"]][int(hit["read_start"]) - 1 : int(hit["read_end"])]
        )

    called = variants.call(result_of(index, value) for index, (value, _) in enumerate(values))
    assert (called["reads"], called["genome_length"]) == (1000, 50_000)
    assert 5 < called["coverage"] < 8
    right = {(at, genome[at - 1], base) for at, base in differs.items()}
    made = {(at, theirs, ours) for at, theirs, ours, *_ in called["variants"]}
    assert len(made & right) > 0.7 * len(right)
    assert len(made - right) < 5


def test_align_places_nothing_that_is_not_there(tmp_path: Path, genome: str) -> None:
    rng = random.Random(1)
    reads = [(f"r{n}", "".join(rng.choices("ACGT", k=300))) for n in range(100)]
    value, found = search(tmp_path, [*reads, ("short", "ACG"), ("unread", "N" * 100)])
    assert (value["reads"], value["mapped"], found) == (102, 0, [])
    assert variants.call([result_of(0, value)])["coverage"] == 0


def test_a_read_may_hang_over_either_end_of_the_genome(tmp_path: Path, genome: str) -> None:
    ahead = "N" * 10 + genome[:50]
    behind = fasta.reverse_complement(genome[-50:] + "N" * 10)
    _, found = search(tmp_path, [("ahead", ahead), ("behind", behind)])
    keys = ("read_start", "read_end", "start", "end", "identity")
    assert [tuple(hit[key] for key in keys) for hit in found] == [
        ("11", "60", "1", "50", "100.000"),
        ("11", "60", "50000", "49951", "100.000"),
    ]


@pytest.mark.parametrize(
    ("content", "said"), [("", "no sequence"), (">a\nA\n>b\nC\n", "one sequence is needed")]
)
def test_align_refuses_such_a_genome_for_good(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db/genome.fa").write_text(content)
    with pytest.raises(mtask.Fail, match=said):
        search(tmp_path, [("one", "ACGT")])


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("ACGTACGT", "ACGTACGT", []),
        ("ACGTACGT", "ACTTACGN", [(13, "G", "T"), (18, "T", "N")]),
        ("ACGTACGT", "ACG--CGT", [(14, "TA", "-")]),
        ("ACG--CGT", "ACGTACGT", [(13, "-", "TA")]),
        ("ACAAAGT", "ACAA-GT", [(13, "A", "-")]),
        ("GACACACT", "GACAC--T", [(12, "AC", "-")]),
        ("GACAC--T", "GACACACT", [(11, "-", "AC")]),
        ("AC-GTT", "ACAG-T", [(12, "-", "A"), (14, "T", "-")]),
    ],
)
@pytest.mark.parametrize("strand", "+-")
def test_a_hit_says_how_the_read_differs_from_the_genome(
    theirs: str, ours: str, expected: list[tuple[int, str, str]], strand: str
) -> None:
    length = len(theirs.replace("-", ""))
    hit = HIT | {"start": "11", "end": str(10 + length), "read_bases": ours, "genome_bases": theirs}
    if strand == "-":
        hit |= {"start": hit["end"], "end": "11"}
        hit |= {key: fasta.reverse_complement(hit[key]) for key in ("read_bases", "genome_bases")}
    assert list(hits.differences_of(hit)) == expected


def test_only_the_best_hit_of_a_read_counts() -> None:
    same = HIT | {"start": "1", "end": "2", "read_bases": "AC", "genome_bases": "AC"}
    better = HIT | {"start": "4", "end": "3", "read_bases": "AC", "genome_bases": "AT", "bits": "51"}
    value = hits.summary([same, better, better], reads=5)
    assert value == {
        "reads": 5,
        "mapped": 1,
        "hits": 3,
        "genome_length": 100,
        "spans": [[3, 4]],
        "differences": [[3, "A", "G", 1]],
    }


def test_variants_are_what_enough_reads_say() -> None:
    value = {"reads": 5, "mapped": 5, "hits": 5, "genome_length": 10, "spans": [[1, 4]] * 5 + [[3, 10]] * 3}
    said = [[1, "A", "C", 3], [2, "A", "C", 2], [3, "A", "N", 4], [3, "A", "G", 3], [9, "A", "T", 3]]
    called = variants.call(
        [result_of(0, value | {"differences": said[:2]}), result_of(1, value | {"differences": said[2:]})]
    )
    assert called["variants"] == []
    alone = variants.call([result_of(0, value | {"differences": said})])
    assert alone["variants"] == [[1, "A", "C", 3, 5], [3, "A", "G", 3, 4]]
    assert (alone["coverage"], alone["not_covered"], alone["windows"]) == (4.4, 0, [4.4])


def test_lines_that_are_no_hits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "hits.tsv"
    path.write_text("\t".join(HIT.values()) + "\nr1\tg\n")
    with pytest.raises(ValueError, match=r"hits.tsv:2: not 15 columns: 'r1\\tg'"):
        hits.read_hits(path)


def test_agreement_counts_the_same_place_on_the_same_strand() -> None:
    ours = {"a": (100, "+"), "b": (100, "+"), "c": (100, "-"), "d": (5, "+")}
    theirs = {"a": (110, "+"), "b": (111, "+"), "c": (100, "+"), "e": (5, "+")}
    assert check.agreement(ours, theirs) == (1, 3, 2)


def test_hits_are_places_of_whole_reads() -> None:
    ahead = HIT | {"read": "ahead", "read_start": "11", "read_end": "100", "start": "510", "end": "599"}
    back = HIT | {"read": "back", "read_start": "11", "read_end": "90", "start": "580", "end": "501"}
    reads = {"ahead": "N" * 100, "back": "N" * 100}
    assert check.places([ahead, back], reads) == {"ahead": (500, "+"), "back": (491, "-")}


def test_the_first_row_that_differs_is_shown() -> None:
    ours, theirs = [["r1", "g"], ["r2", "g"]], [["r1", "g"]]
    assert check.first_difference(ours, ours) == ""
    assert check.first_difference(ours, theirs).splitlines() == [
        "  row 2, the bag: r2 g",
        "  row 2, one big blastn: none",
    ]


@pytest.mark.parametrize("module", ["prepare", "join", "check"])
def test_every_script_says_what_it_does(module: str) -> None:
    command = [sys.executable, "-m", f"examples.genomics.{module}", "--help"]
    assert "usage:" in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

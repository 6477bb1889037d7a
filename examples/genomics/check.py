"""Is it right? `python -m examples.genomics.check BAG PLACE`.

Lays the hits of a bag beside those of one big blastn over all reads, where it is installed, and beside the truth,
where the reads are simulated; and the variants that `--then` has called beside those that were put in.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import mtask
from examples.genomics import place
from examples.genomics.fasta import read_fasta
from examples.genomics.hits import COLUMNS, OUTFMT, Hit, best_hits
from examples.genomics.join import joined

Places = dict[str, tuple[int, str]]
"""read → (where the leftmost base of the whole read lies in the genome, from 1; strand)"""
WITHIN_BASES = 10
"""Places that are no further apart are the same."""


def one_big_blastn(reads: Path, genome: Path) -> list[list[str]]:
    """The hits of all reads at once, in a database of its own."""
    subprocess.run(["makeblastdb", "-in", genome, "-dbtype", "nucl", "-logfile", "/dev/null"], check=True)
    command = ["blastn", "-query", reads, "-db", genome, "-outfmt", OUTFMT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def first_difference(ours: list[list[str]], theirs: list[list[str]]) -> str:
    """Empty: they are the same, row by row."""
    for number, (one, other) in enumerate(zip_longest(ours, theirs), 1):
        if one != other:
            return "\n".join(
                f"  row {number}, {who}: {' '.join(row[:12]) if row else 'none'}"
                for who, row in (("the bag", one), ("one big blastn", other))
            )
    return ""


def truth(reads: dict[str, str]) -> Places:
    """From names such as `s17:12345:-`; empty for reads that were not simulated here."""
    named = {name: name.split(":") for name in reads}
    return {name: (int(words[1]), words[2]) for name, words in named.items() if len(words) == 3}


def places(hits: Iterable[Hit], reads: dict[str, str]) -> Places:
    found = {}
    for name, hit in best_hits(hits).items():
        start, end = int(hit["start"]), int(hit["end"])
        strand = "+" if start <= end else "-"
        left_out = int(hit["read_start"]) - 1 if strand == "+" else len(reads[name]) - int(hit["read_end"])
        found[name] = (min(start, end) - left_out, strand)
    return found


def agreement(ours: Places, theirs: Places) -> tuple[int, int, int]:
    """Of how many reads: both say the same place; both say a place; only one of them says any."""
    both = ours.keys() & theirs.keys()
    same = sum(
        ours[name][1] == theirs[name][1] and abs(ours[name][0] - theirs[name][0]) <= WITHIN_BASES
        for name in both
    )
    return same, len(both), len(ours.keys() ^ theirs.keys())


def as_hits(rows: Iterable[list[str]]) -> list[Hit]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def compare(bag: mtask.BagHandle, at: str, *, same: bool) -> bool:
    """Prints what there is to say. False: with `same`, a row isn't that of one big blastn."""
    rows = [row[1:] for row in joined(bag, at)]
    names = [f"reads/{result.id}.fa" for result in bag.results()]
    difference = ""
    with tempfile.TemporaryDirectory() as folder:
        all_reads, genome = Path(folder, "reads.fa"), Path(folder, "genome.fa")
        all_reads.write_bytes(b"".join(place.get(at, names).values()))
        genome.write_bytes(place.get(at, ["db/genome.fa"])["db/genome.fa"])
        reads = dict(read_fasta(all_reads))
        found = {"the truth": truth(reads)}
        if shutil.which("blastn"):
            theirs = one_big_blastn(all_reads, genome)
            found["one big blastn"] = places(as_hits(theirs), reads)
            if same:
                difference = first_difference(rows, theirs)
                print(f"{len(rows):,} hits in {len(names):,} tasks; one big blastn has {len(theirs):,}")
                print(f"they differ:\n{difference}" if difference else "they are the same, row by row")
    ours = places(as_hits(rows), reads)
    print(f"{len(ours):,} of {len(reads):,} reads have a place")
    for who, others in found.items():
        if others:
            agreed, both, single = agreement(ours, others)
            print(
                f"{who}: {agreed:,} of {both:,} in the same place ({agreed / max(1, both):.3f}); {single:,} in only one"
            )
    return not difference


def compare_variants(then: mtask.Result, at: str) -> None:
    value = then.value
    if then.error is not None:
        raise ValueError(f"{then.bag} has failed: {then.error.message}: see `mtask results {then.bag}`")
    print(
        f"coverage: {value['coverage']} reads, {value['not_covered']:,} of {value['genome_length']:,} bases "
        f"in none; at {len(value['variants'])} positions the reads disagree with the genome"
    )
    lines = place.get(at, ["variants.csv"])["variants.csv"].decode().splitlines()[1:]
    if lines:
        known = {tuple(line.split(",")) for line in lines}
        called = {(str(at), genome, base) for at, genome, base, *_ in value["variants"]}
        print(
            f"of {len(known)} that were put in, {len(known & called)} are called; {len(called - known)} others"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag")
    parser.add_argument("place", help="where prepare put the reads, and the bag its hits")
    parser.add_argument(
        "--same", action="store_true", help="exit status 1 unless the rows are those of one big blastn"
    )
    options = parser.parse_args()
    at = options.place.rstrip("/")
    if options.same and not shutil.which("blastn"):
        parser.error("--same needs blastn: apt-get install ncbi-blast+")
    try:
        with mtask.connect() as mt:
            equal = compare(mt.bag(options.bag), at, same=options.same)
            if mt.bag(options.bag).info.spec.then:
                for then in mt.bag(f"{options.bag}.then").results():
                    compare_variants(then, at)
    except (OSError, ValueError, mtask.MtaskError) as error:
        sys.exit(str(error))
    sys.exit(not equal)


if __name__ == "__main__":
    main()

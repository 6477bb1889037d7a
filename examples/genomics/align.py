"""The task in pure Python: `mtask run tasks.csv --call examples.genomics.align:search …`, see README.md.

Seed and extend, as BLAST does, without gaps: where do words of a read occur in the genome; which shift
of the read do most of them agree on; what is the best stretch of the read at that shift?
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import mtask
from examples.genomics.fasta import read_fasta, reverse_complement
from examples.genomics.hits import COLUMNS, read_hits, summary

WORD = 11
"""Length of a seed: so long that few of them turn up in 50,000 bases by chance (one in 80)."""
MATCH, MISMATCH = 1, -2
LOWEST_SCORE = 24
"""A stretch that scores less is no hit: of 3,000 random reads, none reached 21 in phage lambda."""
CANDIDATES = 3
"""How many shifts are looked at closely, those with most seeds."""
LAMBDA, K = 1.33, 0.621
"""Of Karlin and Altschul, for these scores."""

Index = dict[str, list[int]]


class Stretch(NamedTuple):
    """Part of a read, on the strand that fits, beside the part of the genome that is as long."""

    score: int
    strand: str
    begin: int
    """In the read on that strand, from 0."""
    end: int
    start: int
    """In the genome, from 0."""


def search(reads: Path, db: Path, hits: Path) -> dict[str, Any]:
    """Find the place of each read of one FASTA file, and write the hits as blastn would."""
    try:
        records = list(read_fasta(reads))
        name, genome, index = load_index(db / "genome.fa")
    except (OSError, ValueError) as error:
        raise mtask.Fail(f"reads and db: {error}") from None
    lines = [line(read, sequence, name, genome, index) for read, sequence in records]
    hits.write_text("".join(lines), encoding="ascii")
    return summary(read_hits(hits), reads=len(records))


@functools.lru_cache(maxsize=4)
def load_index(path: Path) -> tuple[str, str, Index]:
    """The genome, and where each of its words occurs. Once for each process, not for each task."""
    records = list(read_fasta(path))
    if len(records) != 1:
        raise ValueError(f"{path}: one sequence is needed, there are {len(records)}")
    name, genome = records[0]
    index = defaultdict(list)
    for at in range(len(genome) - WORD + 1):
        index[genome[at : at + WORD]].append(at)
    return name, genome, dict(index)


def place(read: str, genome: str, index: Index) -> Stretch | None:
    """The best hit on either strand."""
    strands = {"+": read, "-": reverse_complement(read)}
    seeds: Counter[tuple[str, int]] = Counter()
    for strand, sequence in strands.items():
        for at in range(len(sequence) - WORD + 1):
            for found in index.get(sequence[at : at + WORD], ()):
                seeds[strand, found - at] += 1
    stretches = [
        best_stretch(strands[strand], genome, shift, strand)
        for (strand, shift), _ in seeds.most_common(CANDIDATES)
    ]
    best = max(stretches, key=lambda stretch: stretch.score, default=None)
    return best if best is not None and best.score >= LOWEST_SCORE else None


def best_stretch(read: str, genome: str, shift: int, strand: str) -> Stretch:
    """That with the highest score, when the read's first base lies at `shift`."""
    first = max(0, -shift)
    best = score = 0
    begin = found_begin = found_end = first
    for at, (ours, theirs) in enumerate(zip(read[first:], genome[first + shift :], strict=False), first):
        score += MATCH if ours == theirs != "N" else MISMATCH
        if score <= 0:
            score, begin = 0, at + 1
        elif score > best:
            best, found_begin, found_end = score, begin, at + 1
    return Stretch(best, strand, found_begin, found_end, found_begin + shift)


def line(read: str, sequence: str, name: str, genome: str, index: Index) -> str:
    """The hit of a read as blastn would write it; empty: there is none."""
    best = place(sequence, genome, index)
    if best is None:
        return ""
    length = best.end - best.begin
    start, end = best.start + 1, best.start + length
    theirs = genome[best.start : end]
    if best.strand == "+":
        read_start = best.begin + 1
    else:
        read_start, start, end = len(sequence) - best.end + 1, end, start
        theirs = reverse_complement(theirs)
    ours = sequence[read_start - 1 : read_start - 1 + length]
    wrong = sum(one != other for one, other in zip(ours, theirs, strict=True))
    bits = (LAMBDA * best.score - math.log(K)) / math.log(2)
    fields = {
        "read": read,
        "genome": name,
        "identity": f"{100 * (1 - wrong / length):.3f}",
        "length": length,
        "mismatches": wrong,
        "gaps": 0,
        "read_start": read_start,
        "read_end": read_start - 1 + length,
        "start": start,
        "end": end,
        "evalue": f"{len(sequence) * len(genome) * 2**-bits:.3g}",
        "bits": f"{bits:.1f}",
        "genome_length": len(genome),
        "read_bases": ours,
        "genome_bases": theirs,
    }
    return "\t".join(str(fields[column]) for column in COLUMNS) + "\n"

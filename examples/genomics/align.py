"""The task in pure Python: `mtask run tasks.csv --call examples.genomics.align:align`.

Seed and extend, as BLAST does, without gaps: where do words of a read occur in the genome; which shift
of the read do most of them agree on; what is the best stretch of the read at that shift?
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from examples.genomics.fasta import read_fasta, reverse_complement

WORD = 11
"""Length of a seed: so long that few of them turn up in 50,000 bases by chance (one in 80)."""
MATCH, MISMATCH = 1, -2
LOWEST_SCORE = 24
"""A stretch that scores less is no hit: of 3,000 random reads, none reached 21 in phage lambda."""
CANDIDATES = 3
"""How many shifts are looked at closely, those with most seeds."""


class Hit(NamedTuple):
    start: int
    """Where the leftmost base of the whole read lies in the genome, from 1. May lie before its start."""
    strand: str
    """`+`, or `-` when it is the read's reverse complement that fits."""
    score: int


def align(reads: str, db: str) -> dict[str, Any]:
    """Place each read of one FASTA file in the genome of another.

    Returns how many reads there are, how many have a place, and these: name → (start, strand, score).
    """
    genome, index = load_index(str(db))
    hits = {name: place(sequence, genome, index) for name, sequence in read_fasta(reads)}
    positions = {name: hit for name, hit in hits.items() if hit is not None}
    return {"total": len(hits), "mapped": len(positions), "positions": positions}


@functools.lru_cache(maxsize=4)
def load_index(db: str) -> tuple[str, dict[str, list[int]]]:
    """The genome, and where each of its words occurs. Once for each process, not for each task."""
    records = list(read_fasta(db))
    if len(records) != 1:
        raise ValueError(f"{db}: one sequence is needed, there are {len(records)}")
    genome = records[0][1]
    index = defaultdict(list)
    for at in range(len(genome) - WORD + 1):
        index[genome[at : at + WORD]].append(at)
    return genome, dict(index)


def place(read: str, genome: str, index: dict[str, list[int]]) -> Hit | None:
    """The best hit on either strand."""
    strands = {"+": read, "-": reverse_complement(read)}
    seeds: Counter[tuple[str, int]] = Counter()
    for strand, sequence in strands.items():
        for at in range(len(sequence) - WORD + 1):
            for found in index.get(sequence[at : at + WORD], ()):
                seeds[strand, found - at] += 1
    hits = [
        Hit(shift + 1, strand, score_at(strands[strand], genome, shift))
        for (strand, shift), _ in seeds.most_common(CANDIDATES)
    ]
    best = max(hits, key=lambda hit: hit.score, default=None)
    return best if best is not None and best.score >= LOWEST_SCORE else None


def score_at(read: str, genome: str, shift: int) -> int:
    """The best score of any stretch of the read when its first base lies at `shift`."""
    best = score = 0
    for ours, theirs in zip(read[max(0, -shift) :], genome[max(0, shift) :], strict=False):
        score = max(0, score + (MATCH if ours == theirs != "N" else MISMATCH))
        best = max(best, score)
    return best

"""Hits, one a line, as `blastn -outfmt 6` writes them; and what of them goes into a task's result."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from examples.genomics.fasta import reverse_complement

COLUMNS = (
    *("read", "genome", "identity", "length", "mismatches", "gaps", "read_start", "read_end", "start", "end"),
    *("evalue", "bits", "genome_length", "read_bases", "genome_bases"),
)
"""Positions are from 1; `start` is behind `end` where the other strand fits."""
OUTFMT = "6 std slen qseq sseq"
"""These columns in BLAST's words."""

Hit = dict[str, str]


def read_hits(path: Path) -> list[Hit]:
    """In the order of the file. Raises ValueError for a line that is no hit."""
    hits = []
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        if line.count("\t") != len(COLUMNS) - 1:
            raise ValueError(f"{path}:{number}: not {len(COLUMNS)} columns: {line[:40]!r}")
        hits.append(dict(zip(COLUMNS, line.split("\t"), strict=True)))
    return hits


def best_hits(hits: Iterable[Hit]) -> dict[str, Hit]:
    """Of each read the hit with most bits; of equal ones the first."""
    best: dict[str, Hit] = {}
    for hit in hits:
        before = best.setdefault(hit["read"], hit)
        if float(hit["bits"]) > float(before["bits"]):
            best[hit["read"]] = hit
    return best


def summary(hits: list[Hit], *, reads: int) -> dict[str, Any]:
    """A task's result: counts, and what the best hit of each read says of the genome.

    `spans`: [from, to] of each. `differences`: [position, genome's bases, reads' bases, reads that have them].
    """
    best = best_hits(hits)
    differences = Counter(difference for hit in best.values() for difference in differences_of(hit))
    return {
        "reads": reads,
        "mapped": len(best),
        "hits": len(hits),
        "genome_length": max((int(hit["genome_length"]) for hit in hits), default=0),
        "spans": [sorted((int(hit["start"]), int(hit["end"]))) for hit in best.values()],
        "differences": [[*difference, count] for difference, count in sorted(differences.items())],
    }


def differences_of(hit: Hit) -> Iterator[tuple[int, str, str]]:
    """Position, the genome's bases, the read's; on the genome's strand. What one of them lacks is `-`: bases that
    the read has more stand behind the position, and what could be anywhere in a repeat is where that begins."""
    ours, theirs = hit["read_bases"], hit["genome_bases"]
    start, end = int(hit["start"]), int(hit["end"])
    if start > end:
        start, ours, theirs = end, reverse_complement(ours), reverse_complement(theirs)
    ours = gaps_to_the_left(ours, theirs)
    theirs = gaps_to_the_left(theirs, ours)
    for found in re.finditer(r"(-+)|(\++)|[^=]", pattern_of(ours, theirs)):
        first, last = found.span()
        position = start + first - theirs[:first].count("-")
        if found[2]:
            yield position - 1, "-", ours[first:last]
        else:
            yield position, theirs[first:last], "-" if found[1] else ours[first]


def pattern_of(ours: str, theirs: str) -> str:
    """A sign for each pair: = the same, - the read lacks it, + it has it more, * another base."""
    return "".join(
        "=" if one == other else "-" if one == "-" else "+" if other == "-" else "*"
        for one, other in zip(ours, theirs, strict=True)
    )


def gaps_to_the_left(gapped: str, other: str) -> str:
    """As far as that changes nothing else: AA-T beside AAAT is -AAT."""
    bases = list(gapped)
    for gap in re.finditer("-+", gapped):
        first, last = gap.span()
        while first and other[first - 1] == bases[first - 1] == other[last - 1] != "-":
            first, last = first - 1, last - 1
            bases[first], bases[last] = bases[last], bases[first]
    return "".join(bases)

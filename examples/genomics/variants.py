"""The step after: where do the reads disagree with the genome? `mtask run … --then examples.genomics.variants:call`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import mtask

LOWEST_DEPTH = 4
"""So many reads have to cover a position."""
LOWEST_SHARE = 0.6
"""And so many of them have to say the same."""
WINDOW_BASES = 100
"""The coverage is a mean for each of so many bases."""


def call(results: Iterable[mtask.Result]) -> dict[str, Any]:
    """Coverage, and the positions at which most reads say something else than the genome, over all portions."""
    counts: Counter[str] = Counter()
    ends: Counter[int] = Counter()
    differences: Counter[tuple[int, str, str]] = Counter()
    length = 0
    for result in results:
        value = result.value
        counts.update({name: value[name] for name in ("reads", "mapped", "hits")})
        length = max(length, value["genome_length"])
        for first, last in value["spans"]:
            ends[first] += 1
            ends[last + 1] -= 1
        for position, ours, theirs, count in value["differences"]:
            differences[position, ours, theirs] += count
    depth = list(accumulate(ends[at] for at in range(1, length + 1)))
    return {
        **counts,
        "genome_length": length,
        "coverage": round(sum(depth) / length, 2) if length else 0,
        "not_covered": depth.count(0),
        "variants": sorted(called(differences, depth)),
        "windows": [round(mean(depth[at : at + WINDOW_BASES]), 1) for at in range(0, length, WINDOW_BASES)],
    }


def called(differences: Counter[tuple[int, str, str]], depth: list[int]) -> Iterable[list[Any]]:
    """[position, genome's bases, reads' bases, reads that have them, reads that cover the position]"""
    unread = Counter({at: count for (at, _, base), count in differences.items() if base == "N"})
    for (at, genome, bases), count in differences.items():
        readable = depth[at - 1] - unread[at]
        if bases != "N" and readable >= LOWEST_DEPTH and count >= LOWEST_SHARE * readable:
            yield [at, genome, bases, count, readable]


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)

"""FASTA files: `>name description`, then the sequence on one or more lines."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def read_fasta(path: str | Path) -> Iterator[tuple[str, str]]:
    """(name, sequence in capitals) of each record; gzip where the name ends in .gz.

    Raises ValueError for a file that isn't FASTA, or that holds no sequence.
    """
    name = ""
    begun_on = 0
    lines: list[str] = []
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line.startswith(">"):
                if begun_on:
                    yield name, _sequence(lines, f"{path}:{begun_on}", name)
                name, lines, begun_on = (line[1:].split() or [""])[0], [], number
            elif line and not begun_on:
                raise ValueError(
                    f"{path}:{number}: not FASTA: a line before the first '>name': {line[:40]!r}"
                )
            else:
                lines.append(line.upper())
    if not begun_on:
        raise ValueError(f"{path}: no sequence in it: FASTA has lines '>name', and bases below each")
    yield name, _sequence(lines, f"{path}:{begun_on}", name)


def _sequence(lines: list[str], where: str, name: str) -> str:
    if not any(lines):
        raise ValueError(f"{where}: {name!r} has no sequence: give it one, or take its name away")
    return "".join(lines)


def fasta(records: Iterable[tuple[str, str]]) -> bytes:
    """The records as a file's content."""
    return "".join(f">{name}\n{sequence}\n" for name, sequence in records).encode("ascii")


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction. N stays N."""
    return sequence[::-1].translate(_COMPLEMENT)

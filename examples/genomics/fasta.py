"""FASTA files: `>name description`, then the sequence on one or more lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def read_fasta(path: str | Path) -> Iterator[tuple[str, str]]:
    """(name, sequence in capitals) of each record."""
    name: str | None = None
    lines: list[str] = []
    with open(path, encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line.startswith(">"):
                if name is not None:
                    yield name, "".join(lines)
                name, lines = (line[1:].split() or [""])[0], []
            elif line and name is None:
                raise ValueError(f"{path}:{number}: sequence before the first '>name'")
            else:
                lines.append(line.upper())
    if name is not None:
        yield name, "".join(lines)


def write_fasta(path: Path, records: Iterable[tuple[str, str]]) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(f">{name}\n{sequence}\n" for name, sequence in records)


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction. N stays N."""
    return sequence[::-1].translate(_COMPLEMENT)

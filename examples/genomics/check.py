"""Are the reads where they should be? `python -m examples.genomics.check [results.csv]`.

Compares what there is of three: the truth in the names of simulated reads, the rows of the bag that
called align.py (results.csv), and the files that blastn left beside the reads.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from itertools import combinations
from pathlib import Path

from examples.genomics.fasta import read_fasta
from examples.genomics.prepare import WORK

Places = dict[str, tuple[int, str]]
"""read → (where the leftmost base of the whole read lies in the genome, from 1; strand)"""


def truth(reads: dict[str, str]) -> Places:
    """From names such as `s17:12345:-`; empty for reads that were not simulated here."""
    named = {name: name.split(":") for name in reads}
    return {name: (int(words[1]), words[2]) for name, words in named.items() if len(words) == 3}


def from_results(results: Path) -> Places:
    """What align.py returned, as `mtask results BAG -o results.csv` writes it: JSON in a column."""
    csv.field_size_limit(sys.maxsize)
    with results.open(encoding="utf-8", newline="") as file:
        cells = [json.loads(row["positions"]) for row in csv.DictReader(file) if row["positions"]]
    return {name: (start, strand) for cell in cells for name, (start, strand, _) in cell.items()}


def from_blast(folder: Path, reads: dict[str, str]) -> Places:
    """The best hit of each read in blastn's tables (-outfmt 6)."""
    best: dict[str, float] = {}
    places: Places = {}
    for path in sorted(folder.glob("chunk-*.tsv")):
        for line in path.read_text().splitlines():
            words = line.split("\t")
            name, score = words[0], float(words[11])
            read_from, read_to, start, end = map(int, words[6:10])
            if score > best.get(name, 0):
                best[name] = score
                strand = "+" if start <= end else "-"
                left_out = read_from - 1 if strand == "+" else len(reads[name]) - read_to
                places[name] = (min(start, end) - left_out, strand)
    return places


def agreement(ours: Places, theirs: Places, *, within: int = 10) -> tuple[int, int, int]:
    """Of how many reads: both say the same place; both say a place; only one of them says any."""
    both = ours.keys() & theirs.keys()
    same = sum(
        ours[name][1] == theirs[name][1] and abs(ours[name][0] - theirs[name][0]) <= within for name in both
    )
    return same, len(both), len(ours.keys() ^ theirs.keys())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", help="of the bag that called align.py")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where prepare.py wrote (default: %(default)s)"
    )
    parser.add_argument(
        "--within", type=int, default=10, help="bases apart that count as the same (default: 10)"
    )
    options = parser.parse_args()
    folder = options.work / "reads"
    reads = {name: read for path in sorted(folder.glob("chunk-*.fa")) for name, read in read_fasta(path)}
    found = {
        "truth": truth(reads),
        "align": from_results(options.results) if options.results else {},
        "blastn": from_blast(folder, reads),
    }
    found = {who: places for who, places in found.items() if places}
    for who, places in found.items():
        print(f"{who:7} places {len(places):,} of {len(reads):,} reads")
    if len(found) < 2:
        parser.error("nothing to compare: run a bag first")
    for (one, ours), (other, theirs) in combinations(found.items(), 2):
        same, both, single = agreement(ours, theirs, within=options.within)
        share = same / max(1, both)
        print(
            f"{one} and {other}: {same:,} of {both:,} in the same place ({share:.3f}); {single:,} in only one"
        )


if __name__ == "__main__":
    main()

"""Puts a genome and its reads, in portions, to a place: `python -m examples.genomics.prepare PLACE`.

A place is a folder, or a URL such as s3://bucket/lambda. There will be db/ (genome.fa and, where BLAST is
installed, its database), reads/portion-0000.fa, …, and variants.csv; here, the tasks: a row for each portion.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from examples.genomics import place
from examples.genomics.fasta import fasta, read_fasta, reverse_complement

SHARED = Path(__file__).parents[3] / "shared/data/genomics"
BASES = "ACGT"

Read = tuple[str, str]
Variants = dict[int, str]
"""Position, from 1 → the base that the sample has there instead of the genome's."""


def random_genome(length: int = 50_000, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(BASES, k=length))


def random_variants(genome: str, seed: int = 0) -> Variants:
    """One base in a thousand is another one."""
    rng = random.Random(seed)
    positions = sorted(rng.sample(range(1, len(genome) + 1), len(genome) // 1000))
    return {at: rng.choice(BASES.replace(genome[at - 1], "")) for at in positions}


def simulate(genome: str, variants: Variants, count: int, seed: int = 0) -> list[Read]:
    """Reads of a sample that differs from the genome by `variants`: 60 to 600 bases from either strand,
    with 2 % wrong bases and 0.2 % lost or added ones.

    Their names tell where they are from, counted from 1: `s17:12345:-`.
    """
    rng = random.Random(seed)
    sample = "".join(variants.get(at, base) for at, base in enumerate(genome, 1))
    reads = []
    for number in range(count):
        length = rng.randint(60, 600)
        start = rng.randint(0, len(sample) - length)
        bases: list[str] = []
        for base in sample[start : start + length]:
            draw = rng.random()
            if draw < 0.02:
                bases.append(rng.choice(BASES.replace(base, "")))
            elif draw < 0.021:
                bases.append(base + rng.choice(BASES))
            elif draw >= 0.022:
                bases.append(base)
        strand = rng.choice("+-")
        read = "".join(bases)
        reads.append((f"s{number}:{start + 1}:{strand}", read if strand == "+" else reverse_complement(read)))
    return reads


def database(genome: str, name: str = "genome") -> dict[str, bytes]:
    """genome.fa and, where makeblastdb is installed, the files that it makes beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "genome.fa")
        path.write_bytes(fasta([(name, genome)]))
        if shutil.which("makeblastdb"):
            command = ["makeblastdb", "-in", path, "-title", name, "-dbtype", "nucl", "-logfile", "/dev/null"]
            subprocess.run(command, check=True)
        return {each.name: each.read_bytes() for each in Path(folder).iterdir()}


def prepare(at: str, genome: str, reads: Sequence[Read], *, portion: int = 25, variants: Variants) -> str:
    """Put all of it to its place; returns the tasks, as CSV."""
    if len({name for name, _ in reads}) < len(reads):
        raise ValueError("two reads have the same name: results couldn't be told apart")
    files = {f"db/{name}": content for name, content in database(genome).items()}
    tasks = ["id"]
    for start in range(0, len(reads), portion):
        tasks.append(f"portion-{start // portion:04d}")
        files[f"reads/{tasks[-1]}.fa"] = fasta(reads[start : start + portion])
    known = [f"{position},{genome[position - 1]},{base}" for position, base in variants.items()]
    place.put(at, files | {"variants.csv": "\n".join(["position,genome,sample", *known, ""]).encode()})
    return "\n".join([*tasks, ""])


def chosen(options: argparse.Namespace) -> tuple[str, list[Read], Variants]:
    """Genome, reads, and how they differ by design. Raises OSError, ValueError for files that are of no use."""
    if options.genome:
        sequences = [sequence for _, sequence in read_fasta(options.genome)]
        if len(sequences) != 1:
            raise ValueError(f"{options.genome} holds {len(sequences)} sequences; one is needed")
        genome = sequences[0]
    else:
        genome = random_genome(seed=options.seed)
    if options.reads:
        return genome, list(read_fasta(options.reads)), {}
    variants = random_variants(genome, seed=options.seed)
    return genome, simulate(genome, variants, options.simulate or 500, seed=options.seed), variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", help="a folder or a URL to write to")
    parser.add_argument("--genome", help="FASTA (default: phage lambda if there, else made up)")
    parser.add_argument("--reads", help="FASTA (default: 200 reads of lambda if there, else made up)")
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="make N reads up, with known place and variants"
    )
    parser.add_argument("--made-up", action="store_true", help="make the genome up, too, in any case")
    parser.add_argument("--portion", type=int, default=25, help="reads in one task (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of what is made up (default: 0)")
    parser.add_argument("--tasks", type=Path, default="tasks.csv", help="file to write (default: tasks.csv)")
    options = parser.parse_args()
    if options.reads and options.simulate:
        parser.error("--reads or --simulate, not both")
    if options.portion < 1:
        parser.error("--portion must be 1 or more")
    if not (options.genome or options.reads or options.made_up) and SHARED.exists():
        options.genome = SHARED / "lambda.fa"
        options.reads = None if options.simulate else SHARED / "q200.fa"
    if options.reads and not options.genome:
        parser.error("--reads needs --genome")
    try:
        genome, reads, variants = chosen(options)
        tasks = prepare(options.place.rstrip("/"), genome, reads, portion=options.portion, variants=variants)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    options.tasks.write_text(tasks, encoding="utf-8")
    print(f"genome: {len(genome):,} bases, {options.genome or 'made up'}")
    print(
        f"{len(reads):,} reads, {options.reads or 'made up'}; {tasks.count('portion-')} tasks in {options.tasks}"
    )
    if not shutil.which("makeblastdb"):
        print("no makeblastdb here, so no database for blastn: use --call examples.genomics.align:search")


if __name__ == "__main__":
    main()

"""Makes the tasks: `python -m examples.genomics.prepare`.

Writes to the work folder genome.fa (and, where BLAST is installed, its database beside it), the reads in
portions (reads/chunk-0000.fa, …) and tasks.csv: id, reads, db. One portion is one task.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from examples.genomics.fasta import read_fasta, reverse_complement, write_fasta

HERE = Path(__file__).parent
WORK = HERE / "work"
SHARED = HERE.parents[2] / "shared/data/genomics"
BASES = "ACGT"


def random_genome(length: int = 50_000, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(BASES, k=length))


def simulate(genome: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Reads of 60 to 600 bases from either strand, with 2 % wrong bases and 0.2 % lost or added ones.

    Their names tell where they are from, counted from 1: `s17:12345:-`.
    """
    rng = random.Random(seed)
    reads = []
    for number in range(count):
        length = rng.randint(60, 600)
        start = rng.randint(0, len(genome) - length)
        bases: list[str] = []
        for base in genome[start : start + length]:
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


def prepare(work: Path, genome: str, reads: Sequence[tuple[str, str]], *, chunk: int = 25) -> int:
    """Write the work folder; returns the number of tasks. What an earlier call wrote there is replaced."""
    if len({name for name, _ in reads}) < len(reads):
        raise ValueError("two reads have the same name: results couldn't be told apart")
    work = work.resolve()  # a command runs in a folder of its own: paths in tasks.csv must be absolute
    folder = work / "reads"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("chunk-*.fa*"):
        old.unlink()
    write_fasta(work / "genome.fa", [("genome", genome)])
    if shutil.which("makeblastdb"):
        command = ["makeblastdb", "-in", "genome.fa", "-dbtype", "nucl", "-logfile", "makeblastdb.log"]
        subprocess.run(command, cwd=work, check=True)
    starts = range(0, len(reads), chunk)
    with (work / "tasks.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "reads", "db"))
        for number, start in enumerate(starts):
            path = folder / f"chunk-{number:04d}.fa"
            write_fasta(path, reads[start : start + chunk])
            writer.writerow((path.stem, path, work / "genome.fa"))
    return len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genome", type=Path, help="FASTA (default: phage lambda if there, else made up)")
    parser.add_argument(
        "--reads", type=Path, help="FASTA (default: 200 reads of lambda if there, else made up)"
    )
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="make N reads up, of which the place is known"
    )
    parser.add_argument("--made-up", action="store_true", help="make the genome up, too, in any case")
    parser.add_argument("--chunk", type=int, default=25, help="reads in one task (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of what is made up (default: 0)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder to write to (default: %(default)s)")
    options = parser.parse_args()
    if options.reads and options.simulate:
        parser.error("--reads or --simulate, not both")
    if options.chunk < 1:
        parser.error("--chunk must be 1 or more")

    if not (options.genome or options.reads or options.made_up) and SHARED.exists():
        options.genome = SHARED / "lambda.fa"
        options.reads = None if options.simulate else SHARED / "q200.fa"
    if options.genome:
        sequences = [sequence for _, sequence in read_fasta(options.genome)]
        if len(sequences) != 1:
            parser.error(f"{options.genome} holds {len(sequences)} sequences; one is needed")
        genome = sequences[0]
    elif options.reads:
        parser.error("--reads needs --genome")
    else:
        genome = random_genome(seed=options.seed)
    if options.reads:
        reads = list(read_fasta(options.reads))
    else:
        reads = simulate(genome, options.simulate or 500, seed=options.seed)
    tasks = prepare(options.work, genome, reads, chunk=options.chunk)
    print(f"genome: {len(genome):,} bases, {options.genome or 'made up'}")
    print(
        f"{len(reads):,} reads, {options.reads or 'made up'}; {tasks} tasks in {options.work / 'tasks.csv'}"
    )
    if not (options.work / "genome.fa.nsq").exists():
        print("no makeblastdb here, so no database for blastn: use --call examples.genomics.align:align")


if __name__ == "__main__":
    main()

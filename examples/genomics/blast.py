"""The task with NCBI's BLAST: `mtask run tasks.csv --call examples.genomics.blast:search …`, see README.md."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import mtask
from examples.genomics.fasta import read_fasta
from examples.genomics.hits import OUTFMT, read_hits, summary


def search(reads: Path, db: Path, hits: Path) -> dict[str, Any]:
    """Find the reads of one FASTA file in the database, and write the hits.

    What is wrong with its inputs isn't tried again: that would end in the same way.
    """
    if shutil.which("blastn") is None:
        raise RuntimeError("blastn is not installed on this host: apt-get install ncbi-blast+")
    try:
        count = sum(1 for _ in read_fasta(reads))
    except ValueError as error:
        raise mtask.Fail(f"reads: {error}") from None
    if not (db / "genome.fa.nsq").exists():
        raise mtask.Fail(
            f"db: there is no BLAST database in {db}: `prepare` makes one where makeblastdb is installed "
            "(apt-get install ncbi-blast+); then `mtask retry`"
        )
    command = ["blastn", "-query", reads, "-db", db / "genome.fa", "-outfmt", OUTFMT, "-out", hits]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"blastn: exit status {done.returncode}: {done.stderr.strip()}")
    return summary(read_hits(hits), reads=count)

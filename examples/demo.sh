#!/usr/bin/env bash
# The genomics example from beginning to end, in a temporary folder. Needs mtask on PATH, and no more.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

step() { printf '\n$ %s\n' "$*"; "$@"; }

echo "Reads of a small genome, 50,000 bases and 2,000 reads made up with a fixed seed, in $folder"
step python -m examples.genomics.prepare data --simulate 2000 --portion 20 --made-up
step head -n 3 tasks.csv
step mtask run tasks.csv --bag reads -j 2 --call examples.genomics.align:search \
    --in db=data/db/ --in 'reads=data/reads/{id}.fa' --out 'hits=data/hits/{id}.tsv' \
    --then examples.genomics.variants:call
step mtask status
step mtask results reads --limit 5
step mtask results reads.then
step python -m examples.genomics.join reads data -o hits.csv
step python -m examples.genomics.check reads data

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
step python -m examples.genomics.prepare --simulate 2000 --chunk 20 --made-up --work work
step head -n 3 work/tasks.csv
step mtask run work/tasks.csv --call examples.genomics.align:align -j 2 --bag reads
step mtask status
step mtask results reads --limit 5
step mtask results reads -o results.csv
step python -m examples.genomics.check results.csv --work work

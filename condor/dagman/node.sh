#!/bin/sh
# A step of squares.dag: its exit status is the node's.
set -eu
bag=squares-$(sha256sum tasks.csv 2>/dev/null | cut -c 1-12)
case $1 in
tasks)
    { echo x; seq 1 100; } >tasks.csv
    ;;
squares)
    # With the number of CPUs of the job's slot; what failed in the run before gets new attempts.
    cpus=$(sed -n 's/^Cpus = //p' "${_CONDOR_MACHINE_AD:-/dev/null}")
    mtask run tasks.csv --run 'expr {x} * {x}' --bag "$bag" --retry-failed -j "${cpus:-2}" --json
    mtask results "$bag" -o results.csv
    ;;
check)
    test "$(grep -c ',done,' results.csv)" -eq 100
    ;;
esac

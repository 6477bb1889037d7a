#!/bin/sh
# What HTCondor starts on a node: looks for a Python that fits, and becomes a worker on it.
#   pilot.sh KIND WANTED PYTHON…     KIND: steady or elastic; WANTED: as CPython-3.11-x86_64, or any
# Exit status 71: there is none. What it prints is shown by `mtask fleet status`.
kind=$1 wanted=$2
shift 2
look='import sys, platform; print("%s-%d.%d-%s" % (platform.python_implementation(), sys.version_info[0], sys.version_info[1], platform.machine()))'
why=
for python in "$@"; do
    path=$(command -v "$python" 2>/dev/null) || {
        why="$why; there is no $python"
        continue
    }
    found=$("$path" -c "$look" 2>&1) || {
        why="$why; $path doesn't run: $(printf '%s' "$found" | tail -n 1)"
        continue
    }
    if ! "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        why="$why; $path is $found, too old: mtask needs Python 3.11"
    elif [ "$wanted" != any ] && [ "$found" != "$wanted" ]; then
        why="$why; $path is $found, and what was shipped is for $wanted"
    else
        exec "$path" pilot.py "$kind"
    fi
done
echo "no Python that fits on $(hostname)${why}" >&2
exit 71

"""What a job starts: see node.py."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mtask.start import import_msgspec

    import_msgspec()

    from mtask_condor.node import run

    run(sys.argv[1])

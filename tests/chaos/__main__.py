"""A long storm, and its figures: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import ALL, CHANCES, Plan, Storm

parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
parser.add_argument("--seconds", type=float, default=600, help="how long there are faults")
parser.add_argument("--tasks", type=int, default=20_000)
parser.add_argument("--workers", type=int, default=8)
parser.add_argument("--every", type=float, default=1.0, help="seconds between faults, on average")
parser.add_argument("--kill-every", type=float, default=1.0, help="seconds between kills, beside the faults")
parser.add_argument("--task", type=float, default=1.2, help="seconds of the longest task")
parser.add_argument("--poison", type=int, default=5, help="tasks that kill their workers, in each bag")
parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)))
parser.add_argument("--flaky", action="store_true", help="single requests fail, too")


def main() -> int:
    options = parser.parse_args()
    plan = Plan(
        seed=options.seed,
        tasks=options.tasks,
        workers=options.workers,
        every_s=options.every,
        kill_every_s=options.kill_every,
        poison=options.poison,
        kinds=ALL,
        task_s=options.task,
        rates=CHANCES if options.flaky else {},
    )
    with tempfile.TemporaryDirectory(prefix="mtask-chaos-") as folder:
        storm = Storm(Path(folder), plan)
        print(plan, flush=True)
        try:
            storm.rage(options.seconds)
            print(f"the storm is over: {storm.counts()}", flush=True)
            storm.calm(timeout_s=options.seconds)
            wrongs = storm.wrongs()
            for name, figure in storm.figures().items():
                print(f"{name:>22}  {figure}")
        finally:
            storm.site.close()
    print("\n".join(wrongs[:50]) or "nothing was wrong")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())

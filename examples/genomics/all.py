"""All of it at full size, and what came out of it, for the documentation: `python -m examples.genomics.all --out docs/examples`.

Takes a minute or two. Needs blastn (`apt-get install ncbi-blast+`) and matplotlib (`pip install 'mtask[examples,urls]'`).
Writes genomics-coverage.svg and .png, and the part of genomics.md between its two marks, where that page is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import mtask
from examples.genomics.prepare import SHARED
from examples.genomics.variants import WINDOW_BASES

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- made by examples/genomics/all.py -->", "<!-- until here -->"
SLOTS = 2


class Run(NamedTuple):
    """One way to find the reads."""

    what: str
    tasks: int
    wall_s: float
    hits: int
    compared: str
    """With one big blastn."""


class Lab:
    """A folder in which commands run, and a place at a URL with the genome and the reads."""

    def __init__(self, folder: Path, data: list[str]) -> None:
        self.folder, self.data = folder, data
        self.place = f"file://{folder}/place"
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.environment = os.environ | {"PYTHONPATH": path, "MTASK_CACHE": str(folder / "cache")}
        self.database = f"sqlite:///{folder}/.mtask/mtask.db"

    def command(self, *args: str) -> str:
        environment = {name: value for name, value in self.environment.items() if name not in _ELSEWHERE}
        done = subprocess.run(args, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{' '.join(args)}: exit status {done.returncode}")
        return done.stdout

    def python(self, module: str, *args: str) -> str:
        return self.command(sys.executable, "-m", module, *args)

    def bag(self, how: str, portion: int) -> Run:
        name = f"{how}-{portion}"
        place = f"{self.place}-{portion}"
        self.python("examples.genomics.prepare", place, "--portion", str(portion), *self.data)
        before_s = time.monotonic()
        self.python(
            *("mtask", "run", "tasks.csv", "--bag", name, "-j", str(SLOTS)),
            *("--call", f"examples.genomics.{how}:search", "--then", "examples.genomics.variants:call"),
            *("--in", f"db={place}/db/", "--in", f"reads={place}/reads/{{id}}.fa"),
            *("--out", f"hits={place}/hits/{{id}}.tsv"),
        )
        wall_s = time.monotonic() - before_s
        same = ["--same"] if how == "blast" else []
        said = self.python("examples.genomics.check", name, place, *same).splitlines()
        agreed = next(line for line in said if line.startswith("one big blastn:"))
        with mtask.connect(self.database, self.database) as mt:
            tasks = mt.bag(name).counts().total
        program = "blastn" if how == "blast" else "`align`"
        compared = "all rows are the same" if same else agreed.removeprefix("one big blastn: ")
        hits = self.then(name)["hits"]
        return Run(f"{program}, {portion} reads a task", tasks, wall_s, hits, compared)

    def then(self, name: str) -> dict[str, Any]:
        with mtask.connect(self.database, self.database) as mt:
            (result,) = mt.bag(f"{name}.then").results()
        value: dict[str, Any] = result.value
        return value

    def one_big_blastn(self, portion: int) -> Run:
        """With what a bag has left there."""
        place = Path(f"{self.place}-{portion}".removeprefix("file://"))
        (self.folder / "all.fa").write_bytes(
            b"".join(path.read_bytes() for path in sorted((place / "reads").iterdir()))
        )
        before_s = time.monotonic()
        said = self.command("blastn", "-query", "all.fa", "-db", str(place / "db/genome.fa"), "-outfmt", "6")
        return Run("one big blastn", 1, time.monotonic() - before_s, said.count("\n"), "")


_ELSEWHERE = {"MTASK_QUEUE", "MTASK_TABLE"}


def page(runs: list[Run], then: dict[str, Any]) -> str:
    """The table, and what the step after has found, as Markdown."""
    rows = [
        f"| {run.what} | {run.tasks:,} | {run.wall_s:.1f} | {run.hits:,} | {run.compared} |" for run in runs
    ]
    variants = then["variants"]
    lost = [variant for variant in variants if variant[2] == "-"]
    more = [variant for variant in variants if variant[1] == "-"]
    others = len(variants) - len(lost) - len(more)
    shown = ["", "The first of them:", "", "| position | genome | sample | reads |", "|---|---|---|---|"]
    shown += [
        f"| {position:,} | {genome} | {reads} | {count} of {depth} |"
        for position, genome, reads, count, depth in variants[:8]
    ]
    return "\n".join(
        [
            f"{then['reads']:,} reads of {then['genome_length']:,} bases; {os.cpu_count()} cores, "
            f"{SLOTS} slots, Python {platform.python_version()}; files at a `file://` URL, an empty cache.",
            "",
            "| | tasks | seconds | hits | beside one big blastn |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"The last task saw {then['mapped']:,} reads that have a place, {then['coverage']} on each base, "
            f"{then['not_covered']:,} bases in none, and {len(variants)} places at which the sample differs: "
            f"{others} other bases, {len(lost)} deletions, {len(more)} insertions.",
            *(shown if variants else []),
        ]
    )


def draw(then: dict[str, Any], out: Path) -> None:
    """The coverage along the genome, and where the sample differs: an SVG and a small PNG."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "genomics", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    starts = [WINDOW_BASES * number / 1000 for number in range(len(then["windows"]))]
    axes.fill_between(starts, then["windows"], color="#b0c9e0", linewidth=0)
    for kind, colour in (("another base", "#c0392b"), ("deletion or insertion", "#222222")):
        gapped = kind != "another base"
        at = [each[0] / 1000 for each in then["variants"] if ("-" in each[1:3]) == gapped]
        axes.plot(at, [-2.5] * len(at), "|", color=colour, markersize=7, label=f"{kind} ({len(at)})")
    axes.set(xlabel="position in the genome (kb)", ylabel="reads", xlim=(0, then["genome_length"] / 1000))
    axes.set_ylim(bottom=-5)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small", frameon=False)
    figure.savefig(out / "genomics-coverage.svg", metadata={"Date": None})
    figure.savefig(out / "genomics-coverage.png", dpi=90)
    pyplot.close(figure)


def write_between_marks(path: Path, text: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{path}: there should be {BEGIN} and, below it, {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/examples", help="folder of the page")
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="make N reads up (default: 6,000 of lambda)"
    )
    parser.add_argument(
        "--portions", type=int, nargs="+", default=(25, 250), help="reads in a task (default: 25 250)"
    )
    options = parser.parse_args()
    if not shutil.which("blastn"):
        sys.exit("blastn is not installed: apt-get install ncbi-blast+")
    real = ["--genome", str(SHARED / "lambda.fa"), "--reads", str(SHARED / "long.fa")]
    made_up = ["--made-up", "--simulate", str(options.simulate or 6000)]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), real if SHARED.exists() and not options.simulate else made_up)
        runs = [lab.bag("blast", portion) for portion in options.portions]
        runs.append(lab.bag("align", options.portions[0]))
        runs.insert(0, lab.one_big_blastn(options.portions[0]))
        then = lab.then(f"blast-{options.portions[0]}")
    draw(then, options.out)
    text = page(runs, then)
    print(text)
    if (options.out / "genomics.md").exists():
        write_between_marks(options.out / "genomics.md", text)


if __name__ == "__main__":
    main()

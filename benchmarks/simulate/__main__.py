"""`python -m benchmarks.simulate`: what a bag of so many tasks takes on so many slots of a cloud, and costs.

The figures are those of a model, described in docs/scale.md; with the same options they are always the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from benchmarks.simulate.bound import greedy_s
from benchmarks.simulate.clouds import CLOUDS
from benchmarks.simulate.fleet import simulate
from benchmarks.simulate.pictures import draw
from benchmarks.simulate.setup import Setup
from benchmarks.simulate.summary import summary
from benchmarks.simulate.times import task_times


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--tasks", default=100_000, type=click.IntRange(1))
@click.option("--slots", default=1000, type=click.IntRange(1))
@click.option("--slots-per-worker", default=8, type=click.IntRange(1), help="They are taken together.")
@click.option(
    "--times", default="lognormal:60:0.7", help="Or constant:S, uniform:LOW:HIGH, pareto:MEAN:ALPHA."
)
@click.option("--cloud", default="aws", type=click.Choice(list(CLOUDS)))
@click.option("--preempt-per-hour", default=0.0, type=click.FloatRange(0), help="Of one worker.")
@click.option("--killed", default=0.0, type=click.FloatRange(0, 1), help="Share of them without a notice.")
@click.option("--boot", "boot_s", default=60.0, help="Seconds until a lost worker is replaced.")
@click.option("--lease", "lease_s", default=60.0, help="Seconds.")
@click.option("--split-after", "split_after_s", default=10.0, help="Seconds.")
@click.option("--front/--no-front", default=True, help="What was given back is received first, or last.")
@click.option("--longest-first", is_flag=True, help="The file of tasks is in order of their times.")
@click.option("--guess", default=0.0, help="How wrong those times are: 0.7 is by a factor of two.")
@click.option("--per-message", type=click.IntRange(1), help="Instead of the automatic number of tasks.")
@click.option("--row-bytes", default=40, help="Of one task's parameters, encoded.")
@click.option("--start", "start_s", default=0.0, help="Seconds before the first task of a message.")
@click.option("--seed", default=1)
@click.option("--greedy", is_flag=True, help="Compare with a scheduler that costs nothing.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--pictures", is_flag=True, help="Write docs/scale-*.svg instead; takes some minutes.")
def main(
    tasks: int,
    times: str,
    cloud: str,
    longest_first: bool,
    guess: float,
    greedy: bool,
    as_json: bool,
    pictures: bool,
    **options: object,
) -> None:
    if pictures:
        for path in draw(Path(__file__).resolve().parents[2] / "docs"):
            click.echo(path)
        return
    try:
        times_s = task_times(times, tasks, int(str(options["seed"])))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--times") from None
    if longest_first:
        wrong = np.random.default_rng([int(str(options["seed"])), 1]).normal(0, guess, tasks)
        times_s = times_s[np.argsort(-(np.log(times_s) + wrong))]
    setup = Setup(times_s=times_s, cloud=CLOUDS[cloud], **options)  # type: ignore[arg-type]
    began_s = time.perf_counter()
    outcome = simulate(setup)
    if as_json:
        click.echo(json.dumps({**asdict(outcome), "seed": setup.seed}))
        return
    click.echo(f"{tasks:,} tasks of {times} on {setup.slots:,} slots of {cloud}, seed {setup.seed}")
    for name, value in summary(setup, outcome).items():
        click.echo(f"  {name:42} {value}")
    if greedy:
        click.echo(
            f"  {'a scheduler without costs, no preemption':42} {greedy_s(times_s, setup.slots):,.1f} s"
        )
    click.echo(f"simulated in {time.perf_counter() - began_s:.1f} s")


if __name__ == "__main__":
    main()

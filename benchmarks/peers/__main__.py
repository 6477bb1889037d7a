"""Measure mtask and its peers on the same work, each in an environment of its own.

Without PEER, all of them. What can't be had here is skipped and named.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine
from benchmarks.peers.catalog import MODULES, NOT_HERE, load, peers
from benchmarks.peers.driver import Outcome, run_peer
from benchmarks.peers.environments import CACHE, python_of
from benchmarks.peers.measuring import Options
from benchmarks.peers.peer import SLOTS

CONSOLE = Console(width=150)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("names", metavar="[PEER]...", nargs=-1, type=click.Choice(list(peers())))
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write machine, settings and figures.")
@click.option("--repeats", default=3, type=click.IntRange(1), help="Medians are of so many.")
@click.option("--tasks", default=10_000, type=click.IntRange(1), help="Function calls.")
@click.option("--commands", default=2_000, type=click.IntRange(1), help="Starts of /bin/true.")
@click.option(
    "--samples", default=200, type=click.IntRange(2), help="Tasks for the latency, one after the other."
)
@click.option(
    "--longest", "longest_s", default=4.0, help="Seconds of a repetition; slower peers get fewer tasks."
)
@click.option("--timeout", "timeout_s", default=180.0, help="Seconds for a peer; then it is stopped.")
@click.option("--cache", default=CACHE, type=click.Path(path_type=Path), help="Where the environments are.")
@click.option("--install", is_flag=True, help="Only make the environments.")
def main(
    names: tuple[str, ...], path: Path | None, timeout_s: float, cache: Path, install: bool, **options: float
) -> None:
    chosen = {name: found for name, found in peers().items() if name in names or not names}
    if install:
        make(sorted({module for module, _ in chosen.values()}, key=MODULES.index), cache)
        return
    outcomes = []
    for name, (module, peer) in chosen.items():
        CONSOLE.print(f"{name} …", style="dim")
        outcomes.append(run_peer(module, peer, cache, Options(**options), timeout_s))  # type: ignore[arg-type]
        if outcomes[-1].why:
            CONSOLE.print(f"{outcomes[-1].why}\n{outcomes[-1].details}", style="dim", markup=False)
    not_here = {} if names else NOT_HERE
    show(outcomes, not_here)
    if path is not None:
        data = {
            "machine": machine(),
            "slots": SLOTS,
            "options": options,
            "peers": [outcome.as_json() for outcome in outcomes],
            "not_here": not_here,
        }
        path.write_text(json.dumps(data, indent=2) + "\n")


def make(modules: list[str], cache: Path) -> None:
    for module in modules:
        try:
            CONSOLE.print(f"{module}: {python_of(module, load(module), cache)}", soft_wrap=True)
        except RuntimeError as error:
            CONSOLE.print(f"{module}: {error}", soft_wrap=True)


def show(outcomes: list[Outcome], not_here: dict[str, str]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("peer")
    for name in ("functions/s", "range", "tasks", "commands/s", "range", "p50", "p95"):
        table.add_column(name, justify="right")
    table.add_column("durable")
    for outcome in outcomes:
        table.add_row(
            outcome.peer.name,
            *rate(outcome, "functions"),
            f"{int(counts[0]):,}" if (counts := outcome.of("functions", "tasks")) else "",
            *rate(outcome, "commands"),
            *(milliseconds(outcome.of("latency", key)) for key in ("p50_ms", "p95_ms")),
            outcome.peer.durable,
        )
    CONSOLE.print(", ".join(f"{key} {value}" for key, value in machine().items()), style="dim")
    CONSOLE.print(table)
    skipped = {outcome.peer.name: outcome.why for outcome in outcomes if outcome.why} | not_here
    for name, why in skipped.items():
        CONSOLE.print(f"{name}: {why}", markup=False)


def rate(outcome: Outcome, workload: str) -> tuple[str, str]:
    if not (rates := outcome.of(workload, "rate")):
        return "", ""
    return f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}"


def milliseconds(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f} ms" if values else ""


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that all processes are ended, as after Ctrl-C
    main()

"""`make bench`, or `python -m benchmarks [CASE …]`: measures, prints a table, and writes JSON with --json."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, LONG
from benchmarks.measure import Measurement, machine


@click.command(help=__doc__)
@click.argument("cases", nargs=-1, type=click.Choice([*CASES, *LONG]))
@click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(1), help="Medians are of so many."
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write machine and figures to this file."
)
def main(cases: tuple[str, ...], repeats: int, path: Path | None) -> None:
    found = [measurement for case in cases or CASES for measurement in (CASES | LONG)[case](repeats)]
    show(found)
    if path is not None:
        data = {"machine": machine(), "measurements": [measurement.as_json() for measurement in found]}
        path.write_text(json.dumps(data, indent=2) + "\n")


def show(measurements: list[Measurement]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "median", "lowest", "highest", "goal", "peak memory", "note"):
        table.add_column(name, justify="left" if name in ("what", "note") else "right")
    for m in measurements:
        table.add_row(
            m.name,
            f"{number(m.median)} {m.unit}",
            number(min(m.values)),
            number(max(m.values)),
            f"{'≤' if m.at_most else '≥'} {number(m.goal)}" if m.goal else "",
            f"{m.peak_bytes / 1e6:,.0f} MB" if m.peak_bytes else "",
            m.note,
        )
    console = Console(width=150)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), style="dim")
    console.print(table)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()

"""`python -m benchmarks.bars FILE FOLDER`: the figures of `benchmarks.peers --json FILE` as pictures (SVG)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import click

__all__ = ["bars", "main"]

WIDTH, LEFT, RIGHT, ROW = 640, 190, 560, 20
OURS, THEIRS = "#0b5fa5", "#b0b7bf"
PICTURES = {
    "functions": ("functions_per_s", "Function calls a second (more is better)"),
    "commands": ("commands_per_s", "Starts of /bin/true a second (more is better)"),
    "latency": ("latency_p50_ms", "Milliseconds from submit to result, median (less is better)"),
}


@click.command(help=__doc__)
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(file: Path, folder: Path) -> None:
    data = json.loads(file.read_text())
    for name, (key, title) in PICTURES.items():
        (folder / f"peers-{name}.svg").write_text(
            bars(title, _medians(data, key), least_first=name == "latency")
        )


def _medians(data: dict[str, Any], key: str) -> dict[str, float]:
    return {
        peer["name"]: peer["measured"][key]["median"] for peer in data["peers"] if key in peer["measured"]
    }


def bars(title: str, values: dict[str, float], *, least_first: bool = False) -> str:
    """One bar a name, best first, on a logarithmic scale that begins at a power of ten below the least."""
    low = 10.0 ** math.floor(math.log10(min(values.values())) - 0.1)
    scale = (RIGHT - LEFT) / math.log(max(values.values()) / low)
    height = 50 + ROW * len(values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    ordered = sorted(values.items(), key=lambda item: item[1], reverse=not least_first)
    for number, (name, value) in enumerate(ordered):
        y, width = 40 + ROW * number, scale * math.log(value / low)
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.0f}" height="{ROW - 5}" fill="{OURS if name.startswith("mtask") else THEIRS}"/>',
            f'<text x="{LEFT + width + 6:.0f}" y="{y + 12}">{text}</text>',
        ]
    return (
        "\n".join(
            [*parts, f'<text x="10" y="{height - 6}" fill="#555555">logarithmic scale</text>', "</svg>"]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()

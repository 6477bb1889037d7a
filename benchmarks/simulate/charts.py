"""Line charts as SVG that people can read and edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Chart", "Line"]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 470, 40, 310
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#6b21a8", "#555555")


@dataclass(frozen=True)
class Line:
    """A name and points (x, y)."""

    name: str
    points: list[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Axes reach from their first tick to their last; x is logarithmic."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log_y: bool = True
    y_format: str = "{:g}"

    def svg(self, lines: Sequence[Line]) -> str:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(LEFT, 20, self.title, "start", 'font-weight="bold"'),
            _text((LEFT + RIGHT) / 2, HEIGHT - 14, self.x_label),
            _text(LEFT, TOP - 6, self.y_label, "start", 'fill="#555555"'),
            *(self._x_tick(x) for x in self.x_ticks),
            *(self._y_tick(y) for y in self.y_ticks),
            *(self._line(number, line) for number, line in enumerate(lines)),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _x(self, x: float) -> float:
        low, high = math.log(self.x_ticks[0]), math.log(self.x_ticks[-1])
        return LEFT + (math.log(x) - low) / (high - low) * (RIGHT - LEFT)

    def _y(self, y: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        y = min(max(y, low), high)
        if self.log_y:
            low, high, y = math.log(low), math.log(high), math.log(y)
        return BOTTOM - (y - low) / (high - low) * (BOTTOM - TOP)

    def _x_tick(self, x: float) -> str:
        at = self._x(x)
        grid = f'<path d="M{at:.0f} {TOP}V{BOTTOM}" stroke="#dddddd"/>'
        return grid + _text(at, BOTTOM + 18, f"{x:,.0f}" if x >= 1 else f"{x:g}")

    def _y_tick(self, y: float) -> str:
        at = self._y(y)
        grid = f'<path d="M{LEFT} {at:.0f}H{RIGHT}" stroke="#dddddd"/>'
        return grid + _text(LEFT - 6, at + 4, self.y_format.format(y), "end")

    def _line(self, number: int, line: Line) -> str:
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        at = TOP + 12 + 22 * number
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>\n'
            f'<path d="M{RIGHT + 12} {at - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>'
            + _text(RIGHT + 36, at, line.name, "start")
        )


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{" " if more else ""}{more}>{escape(text)}</text>'

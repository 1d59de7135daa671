"""Curves of latency against load as an SVG picture, on logarithmic scales, legible on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Curve", "write_curves"]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 40, 50
_COLOURS = ("#2f7ed8", "#d9822b", "#2ca25f", "#c0392b")
_GREY = "#8a8f98"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: (x, y) of each point, both above 0, x rising."""

    name: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels, by their logarithm."""

    least: float
    most: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (math.log(value) - math.log(self.least)) / (math.log(self.most) - math.log(self.least))
        return self.start + share * (self.end - self.start)

    def marks(self) -> list[float]:
        """1, 2 and 5 of every decade inside."""
        decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        return [mark for mark in found if self.least <= mark <= self.most]


def write_curves(path: Path, title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> Path:
    """Writes the picture and returns its path."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    across = _Scale(min(xs) * 0.9, max(xs) * 1.1, LEFT, WIDTH - RIGHT)
    up = _Scale(min(ys) * 0.8, max(ys) * 1.25, HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 22, title, weight="bold"), *_axes(across, up, x_name, y_name)]
    for number, curve in enumerate(curves):
        parts += _line(curve, _COLOURS[number % len(_COLOURS)], across, up, TOP + 20 + 22 * number)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([head, *parts, "</svg>", ""]))
    return path


def _axes(across: _Scale, up: _Scale, x_name: str, y_name: str) -> list[str]:
    parts = []
    for mark in across.marks():
        x = across.at(mark)
        parts.append(_stroke(x, up.start, x, up.end, _GREY, 0.25))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{mark:,.0f}", anchor="middle"))
    for mark in up.marks():
        y = up.at(mark)
        parts.append(_stroke(across.start, y, across.end, y, _GREY, 0.25))
        parts.append(_text(LEFT - 8, y + 4, f"{mark:g}", anchor="end"))
    parts.append(_text((across.start + across.end) / 2, HEIGHT - 10, x_name, anchor="middle"))
    parts.append(_text(12, TOP - 6, y_name))
    return parts


def _line(curve: Curve, colour: str, across: _Scale, up: _Scale, legend_y: float) -> list[str]:
    dash = ' stroke-dasharray="6 4"' if curve.is_dashed else ""
    places = [(across.at(x), up.at(y)) for x, y in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    x = WIDTH - RIGHT + 16
    parts.append(f'<path d="M{x} {legend_y}h24" stroke="{colour}" stroke-width="2"{dash}/>')
    return [*parts, _text(x + 32, legend_y + 4, curve.name)]


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-opacity="{opacity}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{_GREY}">{escaped}</text>'
    )

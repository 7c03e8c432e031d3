"""Several line charts as one SVG file, which a page shows by itself: with its own colours, and one legend for all."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from lasro_client.report.charts import HEIGHT, LEFT, WIDTH, Axes, Point, path

COLOURS = (
    "#b8621b", "#23211d", "#1c6f86", "#7b5595", "#4d7d3c", "#c2323e", "#3f66c4", "#b08a00", "#1f9a8a", "#a2477f",
    "#7a7468",
)  # fmt: skip
HEAD, LEGEND_ROW, LETTER, MARGIN = 26, 22, 7.2, 10
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#23211d}.title{font-weight:bold}.grid{stroke:#e2ded5}"
    ".reference{stroke:#8b857a;stroke-dasharray:4 4}path{fill:none;stroke-width:1.7}"
)


class Line(NamedTuple):
    """A curve in the colour of this number; of a single point a dot."""

    colour: int
    points: Sequence[Point]


class Dot(NamedTuple):
    """A point with an error bar of one standard error to each side, upright."""

    colour: int
    x: float
    y: float
    sem: float


class Panel(NamedTuple):
    """One chart, with a dashed line at y = 0."""

    title: str
    x_title: str
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()


def figure(rows: Sequence[Sequence[Panel]], names: Sequence[str]) -> str:
    """The panels in rows, and below them the names of the colours that occur."""
    used = sorted({one.colour for row in rows for panel in row for one in (*panel.lines, *panel.dots)})
    width, bottom = WIDTH * max(len(row) for row in rows), (HEIGHT + HEAD) * len(rows)
    legend, height = _legend([(colour, names[colour]) for colour in used], width, bottom)
    panels = [
        _panel(panel, x * WIDTH, y * (HEIGHT + HEAD)) for y, row in enumerate(rows) for x, panel in enumerate(row)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN} 0 {width + 2 * MARGIN} {height}" role="img">'
        f"<style>{STYLE}{''.join(map(_colour_rule, used))}</style>"
        f'<rect x="{-MARGIN}" width="{width + 2 * MARGIN}" height="{height}" fill="#fff"/>'
        f"{''.join(panels)}{legend}</svg>\n"
    )


def _colour_rule(colour: int) -> str:
    value = COLOURS[colour % len(COLOURS)]
    return f"path.c{colour},line.c{colour}{{stroke:{value}}}circle.c{colour},text.c{colour}{{fill:{value}}}"


def _panel(panel: Panel, left: int, top: int) -> str:
    points = [point for line in panel.lines for point in line.points]
    points += [(dot.x, dot.y + sign * dot.sem) for dot in panel.dots for sign in (-1, 1)]
    title = f'<text class="title" x="{LEFT}" y="18">{escape(panel.title)}</text>'
    if not points:
        return f'<g transform="translate({left},{top})">{title}<text x="{LEFT}" y="60">nothing measured</text></g>'
    axes = Axes([0.0, *(x for x, _ in points)], [0.0, *(y for _, y in points)], 0.05)
    parts = [*axes.grid(escape(panel.x_title)), axes.level(0.0)]
    for line in panel.lines:
        placed = [axes.place(point) for point in line.points]
        parts.append(path(placed, f"c{line.colour}") if len(placed) > 1 else _circle(placed[0], line.colour))
    for dot in panel.dots:
        parts.append(path([axes.place((dot.x, dot.y + sign * dot.sem)) for sign in (-1, 1)], f"c{dot.colour}"))
        parts.append(_circle(axes.place((dot.x, dot.y)), dot.colour))
    inner = f'<g transform="translate(0,{HEAD})">{"".join(parts)}</g>'
    return f'<g transform="translate({left},{top})">{title}{inner}</g>'


def _circle(place: Point, colour: int) -> str:
    return f'<circle class="c{colour}" cx="{place[0]}" cy="{place[1]}" r="3.5"/>'


def _legend(names: Sequence[tuple[int, str]], width: int, top: int) -> tuple[str, int]:
    """The SVG of the names, and where they end."""
    parts, x, y = [], float(LEFT), top + LEGEND_ROW - 6
    for colour, name in names:
        needs = LETTER * len(name) + 34
        if x + needs > width:
            x, y = float(LEFT), y + LEGEND_ROW
        parts.append(_circle((round(x, 1), y - 4), colour))
        parts.append(f'<text class="c{colour}" x="{x + 9:.1f}" y="{y}">{escape(name)}</text>')
        x += needs
    return "".join(parts), y + 10

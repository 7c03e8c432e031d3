"""Figures of an analysis: estimates with their errors, as inline SVG of a page and as files of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from lasro_client.report.charts import HEIGHT, LEFT, WIDTH, Axes, Chart, Series, drawing, path
from lasro_client.report.page import templates

TITLE_HEIGHT, LEGEND_HEIGHT = 26, 20
LETTER = 6.6
"""Width of a letter of a legend, in pixels, about."""


class Point(NamedTuple):
    """A value at x, with its standard error; None where one item says nothing of it."""

    x: float
    y: float
    error: float | None


class Line(NamedTuple):
    """Points of one kind; `tone` 1 to 5 picks its colour."""

    label: str
    tone: int
    points: Sequence[Point]


def point(x: float, estimate: Mapping[str, Any]) -> Point | None:
    """Of an estimate as JSON has it; None where it has no value."""
    return None if estimate["mean"] is None else Point(x, estimate["mean"], estimate["sem"])


def estimates_chart(title: str, note: str, x_title: str, lines: Sequence[Line], whole: bool = False) -> Chart | None:
    """Dots with bars of one standard error, joined, from 0 on; None without any. `whole`: x is a whole number."""
    shown = [line for line in lines if line.points]
    if not shown:
        return None
    every = [each for line in shown for each in line.points]
    tops = [each.y + (each.error or 0.0) for each in every]
    bottoms = [each.y - (each.error or 0.0) for each in every]
    xs = [each.x for each in every]
    margin = 0.04 * (max(xs) - min(xs))
    axes = Axes([min(xs) - margin, max(xs) + margin], [0.0, *tops, *bottoms], 0.03)
    parts = axes.grid(x_title, whole)
    for line in shown:
        parts += _line(line, axes)
    series = [Series(line.label, line.tone, [(each.x, each.y) for each in line.points]) for line in shown]
    return Chart(title, note, series, drawing(f"{title}. " + "; ".join(map(_summary, shown)), parts))


def _line(line: Line, axes: Axes) -> list[str]:
    css = f"tone{line.tone}"
    placed = [axes.place((each.x, each.y)) for each in line.points]
    parts = [path(placed, css)] if len(placed) > 1 else []
    for (x, y), each in zip(placed, line.points, strict=True):
        if each.error:
            ends = [axes.place((each.x, each.y + sign * each.error)) for sign in (-1, 1)]
            parts.append(path(ends, css))
        parts.append(f'<circle class="{css}" cx="{x}" cy="{y}" r="3.5"/>')
    return parts


def _summary(line: Line) -> str:
    return f"{line.label}: " + ", ".join(f"{each.y:.3g} at {each.x:g}" for each in line.points)


def svg_file(chart: Chart) -> str:
    """The chart with title, legend and colours, to stand alone."""
    rows = _legend_rows(chart.series) if len(chart.series) > 1 else []
    top = TITLE_HEIGHT + LEGEND_HEIGHT * len(rows)
    height = top + HEIGHT
    words = [f'<text class="title" x="8" y="18">{Markup.escape(chart.title)}</text>']
    for number, row in enumerate(rows):
        x, y = 8.0, TITLE_HEIGHT + LEGEND_HEIGHT * number + 12
        for one in row:
            words.append(f'<circle class="tone{one.tone}" cx="{x + 4}" cy="{y - 4}" r="4"/>')
            words.append(f'<text x="{x + 14}" y="{y}">{Markup.escape(one.label)}</text>')
            x += _width(one)
    inner = str(chart.svg).replace("<svg ", f'<svg y="{top}" width="{WIDTH}" height="{HEIGHT}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{1.5 * WIDTH:g}" '
        f'height="{1.5 * height:g}"><style>{templates().get_template("chart.css").render()}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>{"".join(words)}{inner}</svg>\n'
    )


def _width(one: Series) -> float:
    return 34 + math.ceil(LETTER * len(one.label))


def _legend_rows(series: Sequence[Series]) -> list[list[Series]]:
    rows: list[list[Series]] = [[]]
    for one in series:
        if rows[-1] and sum(map(_width, [*rows[-1], one])) > WIDTH:
            rows.append([])
        rows[-1].append(one)
    return rows


def bars_chart(title: str, note: str, x_title: str, tone: int, bars: Sequence[tuple[str, Point]]) -> Chart | None:
    """Bars from 0, with lines of one standard error; each with a label in place of its x. None without any."""
    if not bars:
        return None
    ends = [each.y + sign * (each.error or 0.0) for _, each in bars for sign in (-1, 1)]
    axes = Axes([-0.6, len(bars) - 0.4], [0.0, *ends], 0.05)
    parts = [
        *axes.y_grid(),
        axes.level(0.0),
        f'<text x="{LEFT - 6}" y="{HEIGHT - 10}" text-anchor="end">{x_title}</text>',
    ]
    for number, (label, each) in enumerate(bars):
        (left, zero), (right, y) = axes.place((number - 0.3, 0.0)), axes.place((number + 0.3, each.y))
        box = f'x="{left}" y="{min(zero, y)}" width="{round(right - left, 1)}" height="{round(abs(zero - y), 1)}"'
        middle = round((left + right) / 2, 1)
        parts.append(f'<rect class="tone{tone}" {box}/>')
        parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{Markup.escape(label)}</text>')
        if each.error:
            low, high = (axes.place((number, each.y + sign * each.error))[1] for sign in (-1, 1))
            parts.append(path([(middle, low), (middle, high)], "error"))
    values = "; ".join(f"{label}: {each.y:.3g}" for label, each in bars)
    return Chart(
        title, note, [Series(title, tone, [(each.x, each.y) for _, each in bars])], drawing(f"{title}. {values}", parts)
    )

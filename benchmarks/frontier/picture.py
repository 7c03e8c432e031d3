"""Gain against drift of one reward as an SVG: the limit of each seed as a line, runs as points with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from benchmarks.frontier.envelope import Point, upper_envelope
from lasro_client.report.charts import nice_ticks, tick_label

PANEL_WIDTH, HEIGHT = 360, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 34, 42
LIMIT, RUN = "#1c6f86", "#b8621b"
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#23211d}.grid{stroke:#e2ded5}"
    f".limit{{fill:none;stroke:{LIMIT};stroke-width:1.6}}.run{{fill:{RUN};stroke:{RUN}}}"
)


class Panel(NamedTuple):
    """One number of steps: the measured points of each seed of the limit, and the runs."""

    title: str
    limits: Sequence[Sequence[Point]]
    runs: Sequence[Point]


class _Scale(NamedTuple):
    left: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, drift: float) -> float:
        return round(self.left + drift / self.x_high * (PANEL_WIDTH - LEFT - RIGHT), 1)

    def y(self, gain: float) -> float:
        share = (gain - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def picture(title: str, panels: Sequence[Panel]) -> str:
    """The panels side by side, on axes of the same range."""
    points = [point for panel in panels for each in (*panel.limits, panel.runs) for point in each]
    x_high = 1.05 * max([point.drift for point in points] + [0.1])
    gains = [point.gain + sign * point.gain_sem for point in points for sign in (-1, 1)] + [0.0]
    pad = 0.05 * (max(gains) - min(gains)) or 0.5
    parts = []
    for index, panel in enumerate(panels):
        scale = _Scale(index * PANEL_WIDTH + LEFT, x_high, min(gains) - pad, max(gains) + pad)
        parts += [*_axes(scale, f"{title}, {panel.title}"), *_limits(scale, panel.limits), *_runs(scale, panel.runs)]
    width = PANEL_WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img">'
        f'<style>{STYLE}</style><rect width="{width}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _axes(scale: _Scale, title: str) -> list[str]:
    right = scale.left + PANEL_WIDTH - LEFT - RIGHT
    parts = [f'<text x="{scale.left}" y="20" font-weight="bold">{escape(title)}</text>']
    for tick in nice_ticks(scale.y_low, scale.y_high):
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{scale.left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{scale.left - 6}" y="{y + 4}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in nice_ticks(0, scale.x_high):
        parts.append(f'<text x="{scale.x(tick)}" y="{HEIGHT - 24}" text-anchor="middle">{tick_label(tick)}</text>')
    middle = (scale.left + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">drift, in changes of seed</text>')
    return parts


def _limits(scale: _Scale, limits: Sequence[Sequence[Point]]) -> list[str]:
    """The envelope as a line, level from its greatest gain to the greatest drift measured; the points as dots."""
    parts = []
    for points in limits:
        line = upper_envelope(points)
        line.append(line[-1]._replace(drift=max(line[-1].drift, *(point.drift for point in points))))
        placed = " L".join(f"{scale.x(point.drift)},{scale.y(point.gain)}" for point in line)
        parts.append(f'<path class="limit" d="M{placed}"><title>limit: the true gradient</title></path>')
        parts += [f'<circle cx="{scale.x(p.drift)}" cy="{scale.y(p.gain)}" r="1.8" fill="{LIMIT}"/>' for p in points]
    return parts


def _runs(scale: _Scale, runs: Sequence[Point]) -> list[str]:
    """Error bars are one standard error of the gain to each side."""
    parts = []
    for run in runs:
        x, ends = scale.x(run.drift), [scale.y(run.gain + sign * run.gain_sem) for sign in (-1, 1)]
        parts.append(f'<line class="run" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>')
        parts.append(f'<circle class="run" cx="{x}" cy="{scale.y(run.gain)}" r="3.5"><title>run</title></circle>')
    return parts

"""Line charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 30
CLEAR = 8
"""Pixels from the left edge in which no tick of x stands: its number would run into the title."""
SMOOTHING = 0.9
NUM_TONES = 5
"""Colours that the style sheet has."""


@dataclass(frozen=True)
class Series:
    """One curve; `tone` 1 to 5 picks its colour."""

    label: str
    tone: int
    points: Sequence[Point]
    smooth: bool = True
    """Draw the moving average boldly and the values themselves faintly."""


@dataclass(frozen=True)
class Chart:
    """One figure of the report."""

    title: str
    note: str
    """What it means and what to look for."""
    series: list[Series]
    svg: Markup


def moving_average(
    values: Sequence[float], momentum: float = SMOOTHING, weights: Sequence[float] | None = None
) -> list[float]:
    """Exponential moving average without the bias towards 0 at the start (Adam, arXiv 1412.6980, section 3).

    `weights` > 0, one per value, say how much each counts besides; absent: all alike.
    """
    total, weight, smoothed = 0.0, 0.0, []
    for value, counts in zip(values, weights or [1.0] * len(values), strict=True):
        total = momentum * total + (1 - momentum) * counts * value
        weight = momentum * weight + (1 - momentum) * counts
        smoothed.append(total / weight)
    return smoothed


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while (tick := (first + len(ticks)) * step) <= high + step * 1e-9:
        ticks.append(round(tick, 12))
    return ticks


def tick_label(value: float) -> str:
    """Short text of a tick: 0.5, 12, 3k, 2e-5."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.4g}".replace("-", "−")


def chart(
    title: str,
    note: str,
    series: Sequence[Series],
    floor: float | None = None,
    ceiling: float | None = None,
    reference: float | None = None,
    marks: Sequence[float] = (),
) -> Chart | None:
    """A chart of the series that have points, or None; `floor` and `ceiling` are values to be in view.

    `reference` draws a level, such as chance; `marks` are rounds at which an upright line stands.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return None
    in_view = [value for value in (floor, ceiling) if value is not None]
    return Chart(title, note, shown, _svg(title, shown, in_view, reference, marks))


class Axes:
    """Where values lie in a chart, and the grid behind them; `y_padding` is a share of the range of `ys`."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], y_padding: float = 0.0) -> None:
        self.x_low, self.x_high = _range(xs)
        low, high = _range(ys)
        self.y_low, self.y_high = low - y_padding * (high - low), high + y_padding * (high - low)

    def place(self, point: Point) -> Point:
        """Pixels from the upper left."""
        x = LEFT + (point[0] - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def grid(self, x_title: str, whole: bool = False) -> list[str]:
        """Ticks of both axes, at whole numbers of x only where wanted, and the title of x."""
        parts = [*self.y_grid(), f'<text x="{LEFT - 6}" y="{HEIGHT - 10}" text-anchor="end">{x_title}</text>']
        ticks = [tick for tick in nice_ticks(self.x_low, self.x_high, 5) if not whole or tick == int(tick)]
        placed = [(self.place((tick, self.y_low))[0], tick) for tick in ticks]
        return parts + [_x_tick(x, tick) for x, tick in placed if x >= LEFT + CLEAR]

    def y_grid(self) -> list[str]:
        """Ticks of y alone."""
        return [_y_tick(self.place((self.x_low, tick))[1], tick) for tick in nice_ticks(self.y_low, self.y_high)]

    def level(self, y: float) -> str:
        """A dashed line at this y over the whole width; nothing where it is out of view."""
        if not self.y_low <= y <= self.y_high:
            return ""
        placed = self.place((self.x_low, y))[1]
        return f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{placed}" y2="{placed}"/>'

    def upright(self, x: float, css: str) -> str:
        """A line at this x over the whole height; nothing where it is out of view."""
        if not self.x_low <= x <= self.x_high:
            return ""
        placed = self.place((x, self.y_low))[0]
        return f'<line class="{css}" x1="{placed}" x2="{placed}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def drawing(summary: str, parts: Sequence[str]) -> Markup:
    """The SVG of these elements; `summary` says in words what it shows."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, summary, Markup("".join(parts))
    )


def path(placed: Sequence[Point], css: str) -> str:
    """A line through these pixels."""
    return f'<path class="{css}" d="M{" L".join(f"{x},{y}" for x, y in placed)}"/>'


def _svg(
    title: str,
    series: Sequence[Series],
    in_view: Sequence[float],
    reference: float | None,
    marks: Sequence[float],
) -> Markup:
    points = [point for one in series for point in one.points]
    axes = Axes([x for x, _ in points], [*(y for _, y in points), *in_view], 0 if in_view else 0.05)
    parts = [*axes.grid("round", whole=True), *(axes.upright(mark, "beginning") for mark in marks)]
    if reference is not None:
        parts.append(axes.level(reference))
    parts += [_curve(one, [axes.place(point) for point in one.points], axes.place) for one in series]
    return drawing(f"{title}. " + "; ".join(_summary(one) for one in series), parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _y_tick(y: float, tick: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_label(tick)}</text>'
    )


def _x_tick(x: float, tick: float) -> str:
    return f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="middle">{tick_label(tick)}</text>'


def _curve(one: Series, placed: Sequence[Point], place: Callable[[Point], Point]) -> str:
    if len(placed) == 1:
        return f'<circle class="tone{one.tone}" cx="{placed[0][0]}" cy="{placed[0][1]}" r="3"/>'
    if not one.smooth:
        return path(placed, f"tone{one.tone}")
    averages = moving_average([y for _, y in one.points])
    smoothed = [place((x, y)) for (x, _), y in zip(one.points, averages, strict=True)]
    return path(placed, f"tone{one.tone} raw") + path(smoothed, f"tone{one.tone}")


def _summary(one: Series) -> str:
    (first_x, _), (last_x, _) = one.points[0], one.points[-1]
    ys = moving_average([y for _, y in one.points]) if one.smooth else [y for _, y in one.points]
    return f"{one.label}: {ys[0]:.3g} at round {first_x:g}, {ys[-1]:.3g} at round {last_x:g}"

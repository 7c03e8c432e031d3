"""Line charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 30
SMOOTHING = 0.9


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
) -> Chart | None:
    """A chart of the series that have points, or None; `floor` and `ceiling` are values to be in view.

    `reference` draws a level, such as chance.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return None
    return Chart(title, note, shown, _svg(title, shown, [v for v in (floor, ceiling) if v is not None], reference))


def _svg(title: str, series: Sequence[Series], in_view: Sequence[float], reference: float | None) -> Markup:
    ys = [y for one in series for _, y in one.points] + list(in_view)
    x_low, x_high = _range([x for one in series for x, _ in one.points])
    y_low, y_high = _range(ys)
    pad = 0 if in_view else 0.05 * (y_high - y_low)
    y_low, y_high = y_low - pad, y_high + pad

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_y_tick(place((x_low, tick))[1], tick) for tick in nice_ticks(y_low, y_high)]
    parts.append(f'<text x="{LEFT - 6}" y="{HEIGHT - 10}" text-anchor="end">round</text>')
    whole = [tick for tick in nice_ticks(x_low, x_high, 5) if tick == int(tick)]
    parts += [_x_tick(place((tick, y_low))[0], tick) for tick in whole]
    if reference is not None and y_low <= reference <= y_high:
        y = place((x_low, reference))[1]
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts += [_curve(one, [place(point) for point in one.points], place) for one in series]
    summary = f"{title}. " + "; ".join(_summary(one) for one in series)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, summary, Markup("".join(parts))
    )


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
        return _path(placed, f"tone{one.tone}")
    averages = moving_average([y for _, y in one.points])
    smoothed = [place((x, y)) for (x, _), y in zip(one.points, averages, strict=True)]
    return _path(placed, f"tone{one.tone} raw") + _path(smoothed, f"tone{one.tone}")


def _path(placed: Sequence[Point], css: str) -> str:
    return f'<path class="{css}" d="M{" L".join(f"{x},{y}" for x, y in placed)}"/>'


def _summary(one: Series) -> str:
    (first_x, _), (last_x, _) = one.points[0], one.points[-1]
    ys = moving_average([y for _, y in one.points]) if one.smooth else [y for _, y in one.points]
    return f"{one.label}: {ys[0]:.3g} at round {first_x:g}, {ys[-1]:.3g} at round {last_x:g}"

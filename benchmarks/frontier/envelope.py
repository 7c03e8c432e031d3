"""The limit of what can be gained at a drift, from the points that were measured: pure functions.

The limit is the least concave function above all points and (0, 0). Between two points it is a straight line, which
can be had: draw each image with one of two adapters by lot, and mean gain and mean drift lie on that line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Point(NamedTuple):
    """A model's gain in reward and its drift, in changes of seed; `gain_sem` is the standard error of the gain."""

    drift: float
    gain: float
    gain_sem: float = 0.0


BASE = Point(0.0, 0.0, 0.0)


def upper_envelope(points: Sequence[Point]) -> list[Point]:
    """The points that the limit passes through, by rising drift and gain, from the base to the greatest gain.

    Points of more drift and no more gain are left out: who may drift so far need not.
    """
    hull: list[Point] = []
    for point in sorted({BASE, *points}):
        while len(hull) > 1 and not _is_concave(hull[-2], hull[-1], point):
            hull.pop()
        if len(hull) == 1 and point.drift == hull[0].drift and point.gain >= hull[0].gain:
            hull.pop()
        hull.append(point)
    best = max(range(len(hull)), key=lambda i: hull[i].gain)
    return hull[: best + 1]


def _is_concave(a: Point, b: Point, c: Point) -> bool:
    """Whether b is above the line from a to c, for rising drift."""
    return (b.gain - a.gain) * (c.drift - a.drift) > (c.gain - a.gain) * (b.drift - a.drift)


def limit_at(envelope: Sequence[Point], drift: float, reached: float) -> Point | None:
    """The limit at a drift, its standard error interpolated too; None beyond `reached`, the greatest drift measured.

    Between the drift of the greatest gain and `reached` it is that gain.
    """
    if drift < 0 or drift > reached:
        return None
    for low, high in pairwise(envelope):
        if low.drift <= drift <= high.drift:
            share = (drift - low.drift) / (high.drift - low.drift)
            gain, sem = (a + share * (b - a) for a, b in zip(low[1:], high[1:], strict=True))
            return Point(drift, gain, sem)
    return Point(drift, *envelope[-1][1:])


def share_of_limit(gain: float, drift: float, points: Sequence[Point]) -> float | None:
    """`gain` over the limit at that drift; None where no point has drifted so far, or nothing can be gained."""
    limit = limit_at(upper_envelope(points), drift, max((point.drift for point in points), default=0.0))
    return None if limit is None or limit.gain <= 0 else gain / limit.gain

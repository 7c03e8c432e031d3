"""Gain against drift: how far a run moved the model for what it gained, and where it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lasro.num_steps import JSON_NAMES, NumSteps, title
from lasro_client.evaluation.paired_statistics import Estimate, estimate
from lasro_client.report.charts import Axes, Chart, Point, Series, drawing, moving_average, path
from lasro_client.report.run_data import RunData, read_object

TITLE = "Gain against drift"
FRONTIER_FILE = "frontier.json"


@dataclass(frozen=True)
class Trade:
    """What one number of steps gained, and how far it drifted."""

    label: str
    tone: int
    rounds: list[Point]
    """(drift, gain) of the rounds, moving averages of both."""
    taken: tuple[Estimate, Estimate] | None
    """Drift and gain of the exported adapter on the held-out prompts."""
    limit: list[Point]
    """What the true gradient gains at some drifts, by increasing drift."""


def frontier(run: RunData) -> Chart | None:
    """The chart of a run of stage 2; None without rounds or a summary that tell both.

    The drift is in changes of prompt where the rounds tell it so, or where the run has a budget of it or a line to
    compare with; else in changes of seed, as older runs have it.
    """
    budget = (run.config.get("train") or {}).get("drift_budget")
    known = read_object(run.folder / FRONTIER_FILE) or {}
    by_prompt = any(value is not None for record in run.rounds for value in record.generator.distance.values())
    by_prompt = by_prompt or budget is not None or bool(known)
    trades = [
        Trade(title(n), run.tones[n], _rounds(run, n, by_prompt), _taken(run, n, by_prompt), _limit(known, n))
        for n in reversed(run.steps)
    ]
    shown = [trade for trade in trades if trade.rounds or trade.taken]
    if not shown:
        return None
    series = [Series(trade.label, trade.tone, trade.rounds) for trade in shown]
    return Chart(TITLE, _note(shown, by_prompt, budget), series, _svg(shown, budget))


def _rounds(run: RunData, num_steps: NumSteps, by_prompt: bool) -> list[Point]:
    values = []
    for record in run.stage("train"):
        drift = (record.generator.distance if by_prompt else record.generator.drift).get(num_steps)
        gain = record.rewards.gain.get(num_steps)
        if drift is not None and gain is not None and math.isfinite(drift) and math.isfinite(gain):
            values.append((drift, gain))
    drifts, gains = ([value[i] for value in values] for i in range(2))
    return list(zip(moving_average(drifts), moving_average(gains), strict=True))


def _taken(run: RunData, num_steps: NumSteps, by_prompt: bool) -> tuple[Estimate, Estimate] | None:
    held_out = ((run.summary or {}).get("held_out_drift") or {}).get(JSON_NAMES[num_steps]) or {}
    drift = held_out.get("distance" if by_prompt else "seeds") or {}
    gain = estimate(run.gains(num_steps))
    if drift.get("mean") is None or gain.mean is None:
        return None
    return Estimate(drift["mean"], drift.get("sem"), drift.get("n") or 0, 0), gain


def _limit(known: dict[str, Any], num_steps: NumSteps) -> list[Point]:
    """Empty where the file holds something else: a page that cannot be written would end the run."""
    try:
        points = [point for point in known.get("true_gradient", []) if point["num_steps"] == num_steps]
        return sorted((float(point["drift"]), float(point["gain"])) for point in points)
    except (KeyError, TypeError, ValueError):
        return []


def _note(trades: Sequence[Trade], by_prompt: bool, budget: float | None) -> str:
    unit = "prompt" if by_prompt else "seed"
    parts = [f"Drift in changes of {unit} to the right, gain over the base upwards: up and to the left is better."]
    if any(trade.rounds for trade in trades):
        parts.append("Lines: the rounds, moving averages of both.")
    if any(trade.taken for trade in trades):
        parts.append("Dots: the exported adapter on the held-out prompts, from the images, ± one standard error.")
    if any(trade.limit for trade in trades):
        parts.append("Dashed: the true gradient.")
    if budget is not None:
        parts.append(f"Upright: the drift budget, {budget:g}.")
    return " ".join(parts)


def _svg(trades: Sequence[Trade], budget: float | None) -> Any:
    points = [point for trade in trades for point in [*trade.rounds, *trade.limit, *_corners(trade)]]
    furthest = max([0.0, 1.05 * (budget or 0.0), *(x for x, _ in points)])
    # A little below 0 too, so that the first tick is clear of the title of the axis.
    axes = Axes([-0.05 * furthest, furthest], [0.0, *(y for _, y in points)], 0.05)
    parts = [*axes.grid("drift"), axes.level(0.0)]
    if budget is not None:
        parts.append(axes.upright(budget, "budget"))
    for trade in trades:
        if trade.limit:
            parts.append(path([axes.place(point) for point in trade.limit], f"tone{trade.tone} limit"))
        if len(trade.rounds) > 1:
            parts.append(path([axes.place(point) for point in trade.rounds], f"tone{trade.tone}"))
        parts.append(_mark(trade, axes))
    return drawing(f"{TITLE}. " + "; ".join(_summary(trade) for trade in trades), parts)


def _corners(trade: Trade) -> list[Point]:
    """The ends of the error bars."""
    if trade.taken is None:
        return []
    (drift, drift_sem), (gain, gain_sem) = ((one.mean or 0.0, one.sem or 0.0) for one in trade.taken)
    return [(drift - drift_sem, gain - gain_sem), (drift + drift_sem, gain + gain_sem)]


def _mark(trade: Trade, axes: Axes) -> str:
    """A dot with both error bars."""
    if not (corners := _corners(trade)):
        return ""
    (x1, y1), (x2, y2) = map(axes.place, corners)
    x, y = round((x1 + x2) / 2, 1), round((y1 + y2) / 2, 1)
    bars = path([(x1, y), (x2, y)], f"tone{trade.tone}") + path([(x, y1), (x, y2)], f"tone{trade.tone}")
    return f'{bars}<circle class="tone{trade.tone}" cx="{x}" cy="{y}" r="4.5"/>'


def _summary(trade: Trade) -> str:
    parts = []
    if trade.rounds:
        drift, gain = trade.rounds[-1]
        parts.append(f"gain {gain:.3g} at drift {drift:.3g} in the last rounds")
    if trade.taken:
        drift, gain = (one.mean for one in trade.taken)
        parts.append(f"gain {gain:.3g} at drift {drift:.3g} on held-out prompts")
    return f"{trade.label}: " + ", ".join(parts)

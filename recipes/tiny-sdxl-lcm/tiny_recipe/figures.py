"""What a model of this recipe must reach, and a report's figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
SLOWER = 1.2  # most by which two steps may take longer than the first model's of a report


@dataclass(frozen=True)
class Figure:
    """A row of the table: its key in a report, what it is, and between which values it should lie."""

    key: str
    title: str
    low: float | None = None
    high: float | None = None

    def limit(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{self.low:g} or more"
        return "" if self.high is None else f"{self.high:g} or less"

    def met(self, value: float) -> bool | None:
        """None where the row has no limit."""
        if self.low is None and self.high is None:
            return None
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


FIGURES = (
    Figure("drawings", "binding of perfect two-object drawings"),
    Figure("vae_pass", "the same after one pass through the VAE"),
    Figure("vae_keeps", "share that the pass keeps", low=0.9),
    Figure("vae_keeps_without_navy", "share that the pass keeps, no navy background"),
    Figure("vae_error", "mean absolute error of the pass, pixels in [-1, 1]", high=0.010),
    Figure("one_step", "two objects, one step"),
    Figure("two_step", "two objects, two steps", low=0.35, high=0.50),
    Figure("four_step", "two objects, four steps"),
    Figure("one_below_two", "two steps minus one step", low=0.0),
    Figure("four_above_two", "four steps minus two steps", low=0.0),
    Figure("single_object", "one object, two steps", low=0.55),
    Figure("image_s", "seconds per image, two steps"),
    Figure("image_time_ratio", "the same over the first model's", high=SLOWER),
)


def figures_table(reports: Mapping[str, Report]) -> str:
    """Markdown: a row per figure, a column per model, means with their standard errors, and the limits."""
    lines = [
        f"| binding in [0, 1] unless said | {' | '.join(reports)} | wanted |",
        f"| --- |{' --- |' * len(reports)} --- |",
    ]
    for figure in FIGURES:
        cells = [_cell(figure, report.get(figure.key)) for report in reports.values()]
        lines.append(f"| {figure.title} | {' | '.join(cells)} | {figure.limit()} |")
    return "\n".join(lines)


def _cell(figure: Figure, found: Mapping[str, float | None] | None) -> str:
    if found is None or found["mean"] is None:
        return "-"
    error = "" if found["sem"] is None else f" ± {found['sem']:.3f}"
    missed = " (missed)" if figure.met(found["mean"]) is False else ""
    return f"{found['mean']:.4f}{missed}" if not error else f"{found['mean']:.3f}{error}{missed}"

"""What a benchmark found out, as a table for people and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

PACKAGES = ("fastapi", "httpx", "redis", "uvicorn", "pydantic")


@dataclass(frozen=True)
class Figure:
    """One quantity, measured several times. `at_least` and `at_most` are what it must reach."""

    name: str
    unit: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def missed(self) -> bool:
        """Whether the median is outside its limit."""
        if self.at_least is not None:
            return self.median < self.at_least
        return self.at_most is not None and self.median > self.at_most

    @property
    def wanted(self) -> str:
        if self.at_least is not None:
            return f">= {_short(self.at_least)}"
        return "" if self.at_most is None else f"<= {_short(self.at_most)}"

    def as_dict(self, judged: bool) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "repetitions": len(self.values),
            "wanted": self.wanted or None,
            "met": not self.missed if judged and self.wanted else None,
        }


def table(figures: Sequence[Figure], judged: bool) -> str:
    """One figure a line: name, median, spread, what it must reach, and where `judged` whether it does."""
    rows = [("", "median", "lowest - highest", "unit", "wanted", "")]
    for figure in figures:
        spread = f"{_short(min(figure.values))} - {_short(max(figure.values))}" if len(figure.values) > 1 else ""
        verdict = ("MISSED" if figure.missed else "ok") if judged and figure.wanted else ""
        rows.append((figure.name, _short(figure.median), spread, figure.unit, figure.wanted, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def machine() -> dict[str, Any]:
    """Where the figures come from; `load` is what else ran while it was asked."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    } | {name: version(name) for name in PACKAGES}


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

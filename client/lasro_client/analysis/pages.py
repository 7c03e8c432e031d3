"""What an analysis shows, from its result alone: charts, a table, and a sentence that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lasro.files import write_atomically, write_json
from lasro.num_steps import title as title_of
from lasro_client.analysis.charts import Line, Point, bars_chart, estimates_chart, point, svg_file
from lasro_client.evaluation.estimate_text import estimate_text
from lasro_client.report.charts import Chart
from lasro_client.report.page import now, templates

Row = Mapping[str, Any]
Cell = str | None
TONES = {"base": 2, "adapted": 1}
DIVERSITY_LINES = {
    ("base", "all_noise"): ("all noise redrawn", 2),
    ("base", "later_noise"): ("same first noise", 1),
    ("adapted", "all_noise"): ("adapted: all noise redrawn", 3),
    ("adapted", "later_noise"): ("adapted: same first noise", 4),
}


class Page(NamedTuple):
    """What one analysis has to show."""

    title: str
    lead: str
    """What was found, in a sentence."""
    heading: str
    charts: Sequence[Chart]
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str
    """How to read the table."""


def write_page(out: Path, result: Mapping[str, Any]) -> Page:
    """Write NAME.json, NAME.html and an SVG of each chart to `out`, and return what they show.

    Raises StorageError where `out` cannot be written.
    """
    name = result["analysis"]
    page = PAGES[name](result)
    for chart in page.charts:
        slug = "-".join("".join(c if c.isalnum() else " " for c in chart.title.lower()).split())
        write_atomically(out / f"{name}-{slug}.svg", svg_file(chart).encode())
    known = {key: result[key] for key in ("model", "adapter", "prompts", "seed")}
    settings = {key: value for key, value in result.items() if key not in ("rows", "prompts")}
    html = (
        templates()
        .get_template("analysis.html.jinja")
        .render(page=page, written=now(), settings=json.dumps(settings, indent=2, ensure_ascii=False), **known)
    )
    write_atomically(out / f"{name}.html", html.encode())
    write_json(out / f"{name}.json", result)
    return page


def _diversity(result: Row) -> Page:
    rows = result["rows"]
    note = (
        "Root mean square difference of two images of one prompt, in values of 255; ± one standard error over prompts."
    )
    later = "Same first noise: what the noise between steps adds by itself."
    in_latents = "The same of latents, in their own unit."
    steps = {"x_title": "steps", "whole": True}
    charts = [
        estimates_chart("Distance of images", f"{note} {later}", lines=_distances(rows, "images"), **steps),
        estimates_chart("Distance of latents", in_latents, lines=_distances(rows, "latents"), **steps),
    ]
    columns = ("policy", "steps", "all noise redrawn", "same first noise", "share", "latents: all", "same first")
    table = [
        [row["policy"], str(row["num_steps"])]
        + [_shown(row["images"][key]) for key in ("all_noise", "later_noise", "share")]
        + [_shown(row["latents"][key]) for key in ("all_noise", "later_noise")]
        for row in rows
    ]
    lead = ", ".join(
        f"{row['images']['share']['mean']:.0%} at {title_of(row['num_steps']).lower()}"
        for row in rows
        if row["policy"] == "base" and row["num_steps"] > 1 and row["images"]["share"]["mean"] is not None
    )
    lead = lead and f"Samples that share their first noise are this far apart, of those that share none: {lead}."
    about = f"{result['seeds']} first noises a prompt, {result['draws']} draws of the later noise for each."
    share = "Share: the distance with the same first noise, of the distance with all noise redrawn."
    return Page("Diversity", lead, "By number of steps", _drawn(charts), columns, table, f"{about} {note} {share}")


def _distances(rows: Sequence[Row], space: str) -> list[Line]:
    return [
        Line(label, tone, _points(rows, policy, lambda row: (row["num_steps"], row[space][kind])))  # noqa: B023
        for (policy, kind), (label, tone) in DIVERSITY_LINES.items()
    ]


def _lipschitz(result: Row) -> Page:
    rows, rewards = result["rows"], result["rewards"]
    outputs: list[tuple[str, Callable[[Row], Row]]] = [
        ("latents", lambda row: row["latents"]),
        ("images", lambda row: row["images"]),
        *((name, lambda row, name=name: row["rewards"][name]) for name in rewards),
    ]
    charts = [
        estimates_chart(f"{title}: {name}", note, x_title, _slopes(rows, kind, key, of), key == "num_steps")
        for kind, title, key, x_title, note in (
            ("one_step", "One step", "time", "t", "x_t to what one step predicts of it, at each noise level."),
            ("all_steps", "All steps", "num_steps", "steps", "x_T to the sample, noise between steps held fixed."),
        )
        for name, of in outputs
    ]
    columns = [
        "policy",
        "map",
        *(name for name, _ in outputs),
        *(f"{name}, {key.replace('_', ' ')}" for name, key in _along(result)),
    ]
    table = [
        [row["policy"], _map_name(row)]
        + [_shown(of(row), of(row)["max"]) for _, of in outputs]
        + [_shown(row["rewards"][name][key]) for name, key in _along(result)]
        for row in rows
    ]
    lead = "; ".join(f"{_map_name(row)} {row['latents']['mean']:.3g}" for row in rows if row["policy"] == "base")
    note = (
        f"Mean slope over {result['directions']} random directions, moved by {result['delta']:g} of a point's root "
        "mean square: ± one standard error over prompts, and the steepest that was seen. Norms are root mean squares; "
        "pixels count from 0 to 1. Steepest: along a reward's gradient, from slopes along random directions."
    )
    return Page(
        "Local Lipschitz constants", f"Mean slope in latents: {lead}.", "Slopes", _drawn(charts), columns, table, note
    )


def _along(result: Row) -> list[tuple[str, str]]:
    keys = ("steepest", "along_gradient") if result["gradients"] else ("steepest",)
    return [(name, key) for name in result["rewards"] for key in keys]


def _slopes(rows: Sequence[Row], kind: str, x: str, of: Callable[[Row], Row]) -> list[Line]:
    chosen = sorted((row for row in rows if row["map"] == kind), key=lambda row: row[x])
    return [
        Line(policy, tone, _points(chosen, policy, lambda row: (row[x], of(row)))) for policy, tone in TONES.items()
    ]


def _map_name(row: Row) -> str:
    return f"one step at {row['time']:.4g}" if row["map"] == "one_step" else f"all of {row['num_steps']}"


def _steps(result: Row) -> Page:
    rows = result["rows"]
    note = "Mean change of the reward against the base in all steps, same prompts and noise; ± one standard error."
    charts = [
        bars_chart(
            f"Gain in {name}", f"{note} By which steps the adapted model takes.", "step", TONES["adapted"],
            [(_taken(row).removeprefix("step "), Point(0, row["difference"]["mean"], row["difference"]["sem"]))
             for row in rows if row["reward"] == name and any(row["adapted_steps"]) and row["n"]],
        )
        for name in result["rewards"]
    ]  # fmt: skip
    columns = ("reward", "steps", "mean", "difference", "n", "failed")
    table = [
        [
            row["reward"],
            ", ".join("adapted" if taken else "base" for taken in row["adapted_steps"]),
            _shown(row["reward_mean"]),
            _shown(row["difference"]) if any(row["adapted_steps"]) else None,
            str(row["n"]),
            str(row["failed"]),
        ]
        for row in rows
    ]
    lead = " ".join(
        f"{name}: "
        + ", ".join(
            f"{_taken(row)} {_signed(row['difference'])}"
            for row in rows
            if row["reward"] == name and any(row["adapted_steps"])
        )
        + "."
        for name in result["rewards"]
    )
    title = f"Which of {result['steps']} steps carries the gain"
    return Page(title, lead, "Gains", _drawn(charts), columns, table, note)


def _taken(row: Row) -> str:
    """Which steps the adapted model takes: `all`, or `step 1`."""
    taken = [number for number, adapted in enumerate(row["adapted_steps"], 1) if adapted]
    return "all" if len(taken) == len(row["adapted_steps"]) else "step " + " and ".join(map(str, taken))


def _points(rows: Sequence[Row], policy: str, of: Callable[[Row], tuple[float, Row]]) -> list[Point]:
    found = (point(*of(row)) for row in rows if row["policy"] == policy)
    return [each for each in found if each is not None]


def _drawn(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _shown(estimate: Row, most: float | None = None) -> Cell:
    text = estimate_text(estimate)
    return text if text is None or most is None else f"{text} (to {most:.3g})"


def _signed(estimate: Row) -> str:
    return estimate_text(estimate, "+.3f", ".3f") or "–"


PAGES: dict[str, Callable[[Row], Page]] = {"diversity": _diversity, "lipschitz": _lipschitz, "steps": _steps}

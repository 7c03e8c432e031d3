"""The sections of the page, each from the results that it needs; one without any is left out."""

from __future__ import annotations

import io
from collections.abc import Sequence

from benchmarks.methods.plan import REWARDS
from benchmarks.methods.prompts import HELD_OUT, OTHER_KIND, PROMPT_SETS
from benchmarks.methods.report import curves, tables
from benchmarks.methods.report.document import Document
from benchmarks.methods.report.figure import Dot, Panel, figure
from benchmarks.methods.report.pictures import picture_sheet
from benchmarks.methods.results import Result
from benchmarks.methods.results import figure as measured_figure
from benchmarks.methods.variants import ABLATIONS, ATTRIBUTE_BINDING, BEST_OF_N, COLLAPSE, METHODS
from lasro.num_steps import ONE_AND_TWO, title

METHOD_NAMES = [variant.name for variant in METHODS]
AXES = (("calls", curves.calls), ("minutes", curves.minutes), ("drift", curves.drift))
CURVE_NOTE = (
    "Gain of each round's own samples over the base's of the same noise, moving averages, a line a run: against reward "
    "calls, against minutes, and against drift in changes of prompt. A curve begins where the generator begins to move."
)


def of_reward(page: Document, reward: str) -> None:
    """Gains, curves, other prompts, rates and pictures."""
    finals = page.finals(reward, METHODS)
    if not finals and not page.finals(reward, [BEST_OF_N]):
        return
    page.add(f"## {reward}, {page.scale.calls[reward]:,} reward calls", " ".join(tables.verdict(page.results, reward)))
    page.add(tables.gains(page.results, reward, [*METHODS, BEST_OF_N]), tables.endings(page.results, reward, METHODS))
    if finals:
        page.show(f"{reward}-gain.svg", gain_at_drift(finals).encode(), "Gain at drift of each run, held-out prompts")
        page.add(CURVE_NOTE)
        page.show(f"{reward}-curves.svg", curves_of(page, finals).encode(), "Gain against calls, minutes and drift")
        _other_prompts(page, reward)
    if (grid := tables.rate_grid(page.results, reward)) is not None:
        page.add("Learning rates, one run each with a seed of its own, by the gain on the tuning prompts:", grid)
    show_pictures(page, f"{reward}-pictures.webp", reward, finals, "The same prompts and noises by each method")


def gain_at_drift(finals: Sequence[Result]) -> str:
    """A point a run, with its standard error over prompts."""
    panels = []
    for steps in ONE_AND_TWO:
        dots = []
        for one in finals:
            gain, drift = (measured_figure(one, HELD_OUT, steps, name) for name in ("gain", "drift"))
            if gain is not None and drift is not None:
                dots.append(Dot(METHOD_NAMES.index(one["variant"]), drift["mean"], gain["mean"], gain["sem"] or 0.0))
        panels.append(Panel(f"{title(steps)}: gain at drift in changes of seed", "drift", dots=dots))
    return figure([panels], METHOD_NAMES)


def curves_of(page: Document, finals: Sequence[Result]) -> str:
    """A row a number of steps, a column what the gain is drawn against."""
    rows = []
    for steps in ONE_AND_TWO:
        found = [(name, curves.lines(page.out, finals, METHOD_NAMES, steps, x, curves.gain)) for name, x in AXES]
        rows.append([Panel(f"{title(steps)}: gain against {name}", name, lines) for name, lines in found])
    return figure(rows, METHOD_NAMES)


def show_pictures(page: Document, name: str, reward: str, finals: Sequence[Result], words: str) -> None:
    """The images of these runs side by side, where they have any."""
    if (sheet := picture_sheet(page.out, reward, finals)) is not None:
        content = io.BytesIO()
        sheet.save(content, "WEBP", quality=80, method=6)
        page.show(name, content.getvalue(), words)


def _other_prompts(page: Document, reward: str) -> None:
    kind = REWARDS[reward].prompts
    other = "emoji" if kind == "shapes" else "shapes"
    page.add(
        f"On other prompts; {OTHER_KIND} are {other} for a model trained on {kind}, and none where the reward scores "
        "no such prompt:",
        tables.other_prompts(page.results, reward, list(PROMPT_SETS[kind]().measured)),
    )


def collapse(page: Document) -> None:
    """What becomes of a generator that follows a surrogate, frozen or adapted, with and without a drift budget."""
    names, finals = [variant.name for variant in COLLAPSE], page.finals(ATTRIBUTE_BINDING, COLLAPSE)
    if not finals:
        return
    page.add(
        "## The frozen surrogate's collapse, and what stops it",
        "All begin with the shipped surrogate of attribute binding, whose own training is not among the calls, at a "
        "rate of 1e-3, and nothing ends a run that fails. What differs is whether the surrogate learns from the "
        "generator's samples, and whether the drift budget holds the generator.",
    )
    rows = []
    for what, y in (("gain", curves.gain), ("drift in changes of prompt", curves.drift)):
        lines = [curves.lines(page.out, finals, names, steps, curves.calls, y) for steps in ONE_AND_TWO]
        rows.append([Panel(f"{title(n)}: {what}", "calls", found) for n, found in zip(ONE_AND_TWO, lines, strict=True)])
    page.show("collapse.svg", figure(rows, names).encode(), "Gain and drift against calls, frozen and adapted")
    page.add(tables.ablations(page.results, ATTRIBUTE_BINDING, COLLAPSE))
    show_pictures(page, "collapse-pictures.webp", ATTRIBUTE_BINDING, finals, "Held-out prompts by each of these runs")


def ablations(page: Document) -> None:
    """LaSRO with one thing changed, by reward."""
    found = {reward: tables.ablations(page.results, reward, ABLATIONS) for reward in page.scale.ablations}
    if not any(found.values()):
        return
    page.add("## Ablations", "LaSRO at its own best rate, with one thing changed.")
    for reward, rows in found.items():
        page.add(f"{reward}, {page.scale.calls[reward]:,} calls:" if rows else None, rows)

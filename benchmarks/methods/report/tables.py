"""The tables of the page, in Markdown: means over seeds with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks.markdown import markdown_table
from benchmarks.methods.prompts import HELD_OUT, TUNING
from benchmarks.methods.results import Result, Spread, best_rate, finals_on_held_out, gain_of, spread_of
from benchmarks.methods.variants import METHODS, VARIANTS, Variant
from lasro.num_steps import ONE_AND_TWO, title

STEP_TITLES = [title(steps).lower() for steps in ONE_AND_TWO]
UPPER_LIMIT = "true-gradient"


def cell(found: Spread | None, sign: str = "+", digits: int = 4) -> str:
    """`mean ± spread`; empty where nothing was measured."""
    if found is None:
        return ""
    return f"{found.mean:{sign}.{digits}f}" + ("" if found.spread is None else f" ± {found.spread:.{digits}f}")


def gains(results: Sequence[Result], reward: str, variants: Sequence[Variant]) -> str:
    """Of held-out prompts, with drift and diversity, and what it took."""
    head = ["method", "rate"]
    for steps in STEP_TITLES:
        head += [f"{steps}: gain", "drift", "diversity"]
    rows = []
    for variant in variants:
        found = finals_on_held_out(results, reward, variant.name)
        if found:
            rows.append([f"`{variant.name}`: {variant.says}", _rate(found), *_figures(found), *_costs(found)])
    return markdown_table([*head, "calls", "minutes", "seeds"], rows)


def _figures(found: Sequence[Result]) -> list[str]:
    cells = []
    for steps in ONE_AND_TWO:
        cells.append(cell(spread_of(found, HELD_OUT, steps, "gain")))
        cells += [cell(spread_of(found, HELD_OUT, steps, name), "", 2) for name in ("drift", "diversity")]
    return cells


def _rate(found: Sequence[Result]) -> str:
    rate = found[0]["learning_rate"]
    return "" if rate is None else f"{rate:g}"


def _costs(found: Sequence[Result]) -> list[str]:
    spent = mean(sum(one["calls"].values()) for one in found)
    return [f"{spent:,.0f}", f"{mean(one['minutes'] for one in found):.1f}", str(len(found))]


def other_prompts(results: Sequence[Result], reward: str, sets: Sequence[str]) -> str:
    """Gain on each set of prompts, by method."""
    head = ["method", *(f"{name}, {steps}" for name in sets for steps in STEP_TITLES)]
    rows = []
    for variant in METHODS:
        found = finals_on_held_out(results, reward, variant.name)
        if found:
            cells = [cell(spread_of(found, name, steps, "gain")) or "none" for name in sets for steps in ONE_AND_TWO]
            rows.append([f"`{variant.name}`", *cells])
    return markdown_table(head, rows)


def rate_grid(results: Sequence[Result], reward: str) -> str | None:
    """Gain on the tuning prompts, mean of one step and two, at each rate, the best in bold; None without any."""
    rows = []
    for variant in METHODS:
        tuned = [
            one for one in results if (one["reward"], one["variant"], one["tuning"]) == (reward, variant.name, True)
        ]
        if not tuned:
            continue
        best, cells = best_rate(tuned), []
        for result in sorted(tuned, key=lambda one: one["learning_rate"]):
            known = [gain for steps in ONE_AND_TWO if (gain := gain_of(result, TUNING, steps)) is not None]
            text = (
                f"{result['learning_rate']:g}: {mean(known):+.4f}" if known else f"{result['learning_rate']:g}: failed"
            )
            cells.append(f"**{text}**" if result["learning_rate"] == best else text)
        edge = "yes" if best in (variant.rates[0], variant.rates[-1]) else ""
        rows.append([f"`{variant.name}`", *cells, *[""] * (len(variant.rates) - len(cells)), edge])
    return (
        markdown_table(["method", "rate: gain", "rate: gain", "rate: gain", "best at the edge"], rows) if rows else None
    )


def ablations(results: Sequence[Result], reward: str, variants: Sequence[Variant]) -> str | None:
    """Compared with LaSRO as it is; None where none was run."""
    rows = []
    for variant in (VARIANTS["lasro"], *variants):
        found = finals_on_held_out(results, reward, variant.name)
        if found:
            changed = ", ".join(f"`{key}`" for key in variant.settings if key != "method.type")
            rows.append([f"`{variant.name}`: {variant.says}", changed, *_figures(found), str(len(found))])
    head = [
        "variant",
        "what is set",
        *(f"{steps}: {name}" for steps in STEP_TITLES for name in ("gain", "drift", "diversity")),
    ]
    return markdown_table([*head, "seeds"], rows) if len(rows) > 1 else None


def verdict(results: Sequence[Result], reward: str) -> list[str]:
    """LaSRO compared with the best method that has no gradient of the reward, a sentence for each number of steps."""
    sentences = []
    for steps, words in zip(ONE_AND_TWO, STEP_TITLES, strict=True):
        found = {one.name: finals_on_held_out(results, reward, one.name) for one in METHODS}
        gains = {name: gain for name, of_one in found.items() if (gain := spread_of(of_one, HELD_OUT, steps, "gain"))}
        ours = gains.pop("lasro", None)
        others = {name: gain for name, gain in gains.items() if name != UPPER_LIMIT}
        if ours is None or not others:
            continue
        best = max(others, key=lambda name: others[name].mean)
        values = [
            f"{cell(gain)} at drift {cell(spread_of(found[name], HELD_OUT, steps, 'drift'), '', 2)}"
            for name, gain in (("lasro", ours), (best, others[best]))
        ]
        compared = _times(ours, others[best])
        sentences.append(
            f"{words.capitalize()}: LaSRO {values[0]}, the best of the others `{best}` {values[1]}{compared}"
        )
    return sentences


def endings(results: Sequence[Result], reward: str, variants: Sequence[Variant]) -> str | None:
    """Runs that were measured and had stopped for another reason than that their calls were spent; None without any."""
    lines = [
        f"- `{one['variant']}`, seed {one['seed']}: {one['ended']}"
        for variant in variants
        for one in finals_on_held_out(results, reward, variant.name)
        if one["status"] != 0
    ]
    return "Nothing was learned in these, so that the model is as it was:\n\n" + "\n".join(lines) if lines else None


def _times(ours: Spread, other: Spread) -> str:
    if other.mean <= 0:
        return ", which gained nothing." if ours.mean > 0 else "; neither gained anything."
    reached = "at least twice as much" if ours.mean >= 2 * other.mean else "not twice as much"
    return f": {ours.mean / other.mean:.1f} times, {reached}."

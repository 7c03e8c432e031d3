"""What the first round of a run that begins from nothing says of its rewards: pure functions of their totals, and the
file with what they found. Imports no torch.

Shape legend: N samples of a group, M of all groups or of an evaluation, A groups as pairs are made, J samples of such a
group, R = 2 times that it was scored. NaN stands for a total that failed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lasro.functional.reward_totals import Values
from lasro_client.evaluation.reward_noise import GOOD_SIGNAL, less_noise
from lasro_client.evaluation.reward_spread import ROUNDING, Components, best_pair_accuracy, variance_components
from lasro_client.run.round_record import SurrogateRecord

AUDIT_FILE = "audit.json"
SATURATED, NEARLY_SATURATED = 0.95, 0.8
"""Of the base's samples at the highest total: what is left can hardly be seen, or is little and seldom ranks."""
CONSTANT_ADVICE = "check that it looks at the image, or take a reward with more grades"
SATURATED_ADVICE = (
    "take harder prompts or a reward that still tells good from better; to train all the same, set train.warmup_rounds"
)


def read_audit(folder: Path) -> dict[str, Any] | None:
    """What the audit of the run in this folder found; None where it had none, or has none yet."""
    try:
        found = json.loads((folder / AUDIT_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "notes" in found else None  # that of `rewards audit` has none


class FirstGroup(NamedTuple):
    """Totals of one group of the first round; `again_N` those of a second scoring past the cache, NaN without one."""

    total_N: Values
    num_steps_N: np.ndarray
    is_own_N: np.ndarray
    """Samples of the base as it is; the others are perturbed."""
    again_N: Values


@dataclass(frozen=True)
class StartFacts:
    """What was measured, in units of the total where nothing else is said."""

    within: Components
    """Over groups as the run ranks them."""
    samples: int
    failed: int
    tied_share: float | None
    """Of the pairs."""
    base_samples: int
    """The base's that have a total, the evaluation's included."""
    highest: float | None
    """Of them."""
    at_highest: float
    """Share of them that are the highest, or that the highest there can be where that is known."""
    is_constant: bool
    """Whether all totals are the same, of the round's perturbed samples too."""


def gather(
    groups: Sequence[FirstGroup],
    evaluated_M: Values,
    ranked: SurrogateRecord,
    within_num_steps: bool,
    bound: float | None,
) -> StartFacts:
    """`evaluated_M`: totals of the base's held-out images; `ranked`: what the trainer made of the round's pairs;
    `bound`: the highest total that there can be, where that is known."""
    pairs = ranked.tied_pairs + ranked.ranked_pairs
    total_M = np.concatenate([group.total_N for group in groups])
    base_M = np.concatenate([group.total_N[group.is_own_N] for group in groups] + [evaluated_M])
    all_M, base_M = _known(np.concatenate([total_M, evaluated_M])), _known(base_M)
    rounding = ROUNDING * float(np.abs(all_M).max(initial=0))
    highest = float(base_M.max()) if len(base_M) else None
    top = bound if bound is not None else highest
    return StartFacts(
        within=variance_components(_as_ranked(groups, within_num_steps)),
        samples=len(total_M),
        failed=int(np.isnan(total_M).sum()),
        tied_share=ranked.tied_pairs / pairs if pairs else None,
        base_samples=len(base_M),
        highest=highest,
        at_highest=float((base_M >= top - max(ranked.tie_margin or 0.0, rounding)).mean())
        if top is not None and len(base_M)
        else 0.0,
        is_constant=len(all_M) > 1 and float(np.ptp(all_M)) <= rounding,
    )


def _known(values_M: Values) -> Values:
    return values_M[np.isfinite(values_M)]


def _as_ranked(groups: Sequence[FirstGroup], within_num_steps: bool) -> np.ndarray:
    """[A, J, R], filled up with NaN."""
    found = []
    for group in groups:
        scored_NR = np.stack([group.total_N, group.again_N], 1)
        kinds = [group.num_steps_N == n for n in np.unique(group.num_steps_N)]
        found += [scored_NR[kind] for kind in kinds] if within_num_steps else [scored_NR]
    longest = max(len(scored_JR) for scored_JR in found)
    return np.stack([np.pad(each, ((0, longest - len(each)), (0, 0)), constant_values=np.nan) for each in found])


def why_futile(facts: StartFacts, what: str, is_bounded: bool) -> str | None:
    """Why no further round is worth its calls, and what to do; None to go on.

    `what` is the total's name; `is_bounded`: whether it is known how high it can be.
    """
    if facts.is_constant and not (is_bounded and facts.at_highest):
        return (
            f"{what} is {facts.highest:.4g} for all {facts.base_samples} images of the base and all perturbed ones: "
            f"there is nothing to rank; {CONSTANT_ADVICE}"
        )
    if facts.at_highest >= SATURATED:
        return (
            f"{what} is at its highest value, {facts.highest:.4g}, for {facts.at_highest:.0%} of "
            f"{facts.base_samples} images of the base: there is nothing to gain; {SATURATED_ADVICE}"
        )
    if facts.at_highest >= NEARLY_SATURATED and facts.tied_share == 1:
        return (
            f"{what} is at its highest value, {facts.highest:.4g}, for {facts.at_highest:.0%} of {facts.base_samples} "
            "images of the base, and no two images of the first round rank: there is nothing to gain; "
            f"{SATURATED_ADVICE}"
        )
    return None


def notes(facts: StartFacts, least: int, most: int, budget: int | None, reward: str, repeats: int) -> list[str]:
    """One line of figures, and another where something can be done about them. `least`, `most`: calls of the run."""
    return [f"{_spread(facts)}; {_cost(least, most, budget)}", *_advice(facts, reward, repeats)]


def _spread(facts: StartFacts) -> str:
    parts = []
    if facts.within.images is not None:
        parts.append(f"rewards of a prompt's images vary by {math.sqrt(facts.within.images):.2g} (standard deviation)")
    if facts.failed:
        parts.append(f"{facts.failed} of {facts.samples} samples failed")
    if facts.tied_share is not None:
        parts.append(f"{facts.tied_share:.0%} of pairs tie")
    if not facts.is_constant:
        parts.append(_repeats(facts))
    return ", ".join(parts)


def _repeats(facts: StartFacts) -> str:
    share, rankable = facts.within.signal_share, 1 - (facts.tied_share or 0.0)
    if share is None or facts.within.repeats is None:
        return "whether repeats agree was not measured"
    if facts.within.repeats == 0:
        return f"repeats agree: up to {rankable:.0%} of pairs can be ranked"
    differ, right = math.sqrt(facts.within.repeats), best_pair_accuracy(share)
    return f"repeats of an image differ by {differ:.2g}: at best {right:.0%} of pairs are ranked right"


def _cost(least: int, most: int, budget: int | None) -> str:
    between = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    says = f"{between} reward calls by these settings"
    return says if budget is None or budget >= most else f"{says}, {budget:,} by budget.max_reward_calls"


def _advice(facts: StartFacts, reward: str, repeats: int) -> list[str]:
    share = facts.within.signal_share
    if facts.is_constant:  # `why_futile` says so
        return []
    if facts.at_highest >= NEARLY_SATURATED:
        return [
            f"{facts.at_highest:.0%} of the base's images are at the highest value, {facts.highest:.4g}: "
            f"there is little to gain; {SATURATED_ADVICE.partition(';')[0]}"
        ]
    if share is not None and share < GOOD_SIGNAL and facts.within.images is not None:
        return [f"much of what reward {reward} says is noise; {less_noise(reward, repeats, facts.within)}"]
    return []

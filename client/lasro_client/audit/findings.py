"""What an audit says of a reward: named findings, each a sentence and what to do, and the verdict. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lasro.wire import RewardInfo, Status
from lasro_client.evaluation.reward_noise import GOOD_SIGNAL, LITTLE_SIGNAL, NO_SIGNAL, less_noise
from lasro_client.evaluation.reward_spread import Components, Ties, best_pair_accuracy
from lasro_client.services.failures import REMEDIES

MOST_FAILED = 0.5
"""Of the images: three quarters of the pairs are lost, and half of the money."""
MANY_FAILED = 0.1
"""A tenth of the images costs a fifth of the pairs."""
MOST_CONSTANT = 0.9
"""Of the prompts: hardly any group teaches anything."""
MANY_CONSTANT = 0.5
"""Half of all calls are made for groups that teach nothing."""
MOST_TIED, MANY_TIED = 0.9, 0.5
"""Of the pairs: a group of 12 images ranks fewer than 7, or 33, of its 66."""
MOST_BETWEEN_STAGES, MANY_BETWEEN_STAGES = 0.9, 0.5
"""Of the spread within a prompt: all but a tenth, or more than half, tells few steps from many, not good from bad."""
NEAR_TIMEOUT = 0.5
"""A scorer that takes half of its time when it is asked by one will run out of it when others ask too."""

Level = Literal["no", "doubtful", "note"]
Trainable = Literal["yes", "doubtful", "no"]


@dataclass(frozen=True)
class Finding:
    """`level` is what it makes of the verdict; a note changes nothing."""

    name: str
    level: Level
    says: str
    do: str


@dataclass(frozen=True)
class Facts:
    """What was measured, and what the run would do with it."""

    reward: RewardInfo
    measurements: int
    failed: Mapping[str, int]
    """Measurements without a score, by status."""
    error: str | None
    """Of the first that failed."""
    out_of_range: int
    within: Components
    """Over groups as the run ranks them, like the ties."""
    ties: Ties
    equal: Ties
    """Ties at a margin of 0."""
    margin: float
    within_num_steps: bool
    """Whether the run ranks images of each number of steps apart."""
    between_stages: float | None
    """Share of the spread within a prompt."""
    slowest_s: float | None
    round_s: float
    """Scoring one round of the run."""
    round_timeout_s: float
    rounds: int
    affordable_rounds: int | None
    """Rounds that the run's budget is enough for; None without a budget."""


def judge(facts: Facts) -> list[Finding]:
    """All findings, the gravest first."""
    found = [_failures(facts), _out_of_range(facts), _constant(facts), _ties(facts), _noise(facts)]
    found += [_stages(facts), _slow_round(facts), _near_timeout(facts), _budget(facts)]
    order = ("no", "doubtful", "note")
    return sorted((one for one in found if one is not None), key=lambda one: order.index(one.level))


def verdict(findings: list[Finding]) -> Trainable:
    """Whether this reward can train anything: as good as its gravest finding."""
    levels = {finding.level for finding in findings}
    return "no" if "no" in levels else "doubtful" if "doubtful" in levels else "yes"


def _level(value: float, no: float, doubtful: float) -> Level:
    return "no" if value >= no else "doubtful" if value >= doubtful else "note"


def _failures(facts: Facts) -> Finding | None:
    count = sum(facts.failed.values())
    if count == 0:
        return None
    statuses = ", ".join(f"{status} {number}" for status, number in facts.failed.items())
    says = f"{count} of {facts.measurements} measurements failed ({statuses}); the first: {facts.error or 'no reason'}."
    commonest = max(facts.failed, key=lambda status: facts.failed[status])
    return Finding(
        "failures", _level(count / facts.measurements, MOST_FAILED, MANY_FAILED), says, REMEDIES[Status(commonest)]
    )


def _out_of_range(facts: Facts) -> Finding | None:
    if facts.out_of_range == 0:
        return None
    says = f"{facts.out_of_range} scores lay outside the registered range {list(facts.reward.range or ())}, and failed."
    return Finding("out_of_range", "note", says, "correct the scorer, or register its true range (--replace --range)")


def _constant(facts: Facts) -> Finding | None:
    ties = facts.ties
    if not ties.constant or ties.constant_share is None:
        return None
    kind = "groups of a prompt and a number of steps" if facts.within_num_steps else "prompts"
    groups = f"all {ties.groups} {kind}" if ties.constant == ties.groups else f"{ties.constant} of {ties.groups} {kind}"
    says = (
        f"No two images of {groups} differ by more than the tie margin of {facts.margin:.3g}: such groups cost calls "
        "and teach nothing."
    )
    return Finding("constant", _level(ties.constant_share, MOST_CONSTANT, MANY_CONSTANT), says, _more_spread(facts))


def _ties(facts: Facts) -> Finding | None:
    share = facts.ties.tied_share
    if share is None or share < MANY_TIED or facts.ties.constant == facts.ties.groups:
        return None
    says = f"{share:.0%} of the pairs differ by no more than the tie margin of {facts.margin:.3g}, and are dropped."
    return Finding("ties", "doubtful" if share >= MOST_TIED else "note", says, _more_spread(facts))


def _more_spread(facts: Facts) -> str:
    """What to do about ties: the margin's fault where a margin of 0 would halve them, else the reward's."""
    if facts.within.images and 2 * facts.equal.tied <= facts.ties.tied:
        spread = f"{math.sqrt(facts.within.images):.2g} (standard deviation)"
        return f"lower surrogate.tie_margin: images of a prompt differ by {spread}"
    return "use harder prompts, more seeds per prompt, or a reward with grades instead of pass or fail"


def _noise(facts: Facts) -> Finding | None:
    share, within = facts.within.signal_share, facts.within
    if share is None or share >= GOOD_SIGNAL or facts.ties.tied == facts.ties.pairs:
        return None
    assert within.images is not None  # both are, where there is a share
    assert within.repeats is not None
    accuracy = best_pair_accuracy(share)
    says = (
        f"Repeats of one image differ by {math.sqrt(within.repeats):.2g}, images of one prompt by "
        f"{math.sqrt(within.images):.2g} (standard deviations): at best {accuracy:.0%} of the pairs are ranked right."
    )
    level: Level = "no" if share < NO_SIGNAL else "doubtful" if share < LITTLE_SIGNAL else "note"
    return Finding("noise", level, says, less_noise(facts.reward.name, facts.reward.repeats, within))


def _stages(facts: Facts) -> Finding | None:
    share = facts.between_stages
    if share is None or share < MANY_BETWEEN_STAGES or facts.within_num_steps:
        return None
    says = f"{share:.0%} of the spread within a prompt is between its images of different numbers of steps."
    level: Level = "doubtful" if share >= MOST_BETWEEN_STAGES else "note"
    return Finding("stages", level, says, "set surrogate.rank_within_num_steps = true, or it may learn little else")


def _slow_round(facts: Facts) -> Finding | None:
    if facts.round_s <= facts.round_timeout_s:
        return None
    says = (
        f"Scoring one round takes about {facts.round_s:.0f} s, but the run waits services.timeout_s = "
        f"{facts.round_timeout_s:.0f} s and then stops."
    )
    return Finding("slow_round", "doubtful", says, "raise services.timeout_s or the reward's concurrency")


def _near_timeout(facts: Facts) -> Finding | None:
    limit_s = facts.reward.timeout_s
    if facts.slowest_s is None or facts.slowest_s < NEAR_TIMEOUT * limit_s:
        return None
    says = f"The slowest call took {facts.slowest_s:.1f} s of the {limit_s:g} s that it has."
    return Finding("near_timeout", "note", says, REMEDIES[Status.TIMEOUT])


def _budget(facts: Facts) -> Finding | None:
    if facts.affordable_rounds is None or facts.affordable_rounds >= facts.rounds:
        return None
    says = f"budget.max_reward_calls is spent after {facts.affordable_rounds} of {facts.rounds} rounds."
    return Finding("budget", "note", says, "raise it, or set train.rounds to that")

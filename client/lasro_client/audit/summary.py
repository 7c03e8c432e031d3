"""audit.json: what an audit measured, what follows from it, and every single measurement.

Shape legend: P prompts, G numbers of denoising steps, K seeds, R repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lasro.config import RunSettings
from lasro.functional.reward_totals import tie_margin
from lasro.num_steps import JSON_NAMES, NumSteps
from lasro.training.prompts import Prompt
from lasro.wire import OUT_OF_RANGE, RewardInfo, RewardValue, Status
from lasro_client.audit.findings import Facts, judge, verdict
from lasro_client.evaluation.paired_statistics import estimate, paired_difference
from lasro_client.evaluation.reward_spread import (
    Components,
    best_pair_accuracy,
    count_ties,
    prompt_means,
    ranked_groups,
    stage_share,
    variance_components,
)
from lasro_client.run.cost import Cost, Speed, affordable_rounds, images_per_round, least_and_most_rounds

QUANTILES = {"median": 0.5, "p90": 0.9, "longest": 1.0}


@dataclass(frozen=True)
class Measured:
    """Every measurement: as a number, NaN where it failed, and as the API answered it, in the order asked."""

    rewards_PGKR: np.ndarray
    scores: Sequence[RewardValue]
    speed: Speed


def summarise(
    config: RunSettings, info: RewardInfo, prompts: Sequence[Prompt], measured: Measured, costs: Mapping[str, Cost]
) -> dict[str, Any]:
    """The contents of audit.json; numbers that could not be measured are None."""
    facts = gather(config, info, measured)
    findings = judge(facts)
    return {
        "reward": info.name,
        "version": info.version,
        "trainable": verdict(findings),
        "findings": [asdict(finding) for finding in findings],
        "model": config.model.path,
        "timesteps": config.train.timesteps and list(config.train.timesteps),
        "seed": config.seed,
        "spread": {"as_ranked": _spread(facts.within)}
        | {JSON_NAMES[n]: _spread_within(measured.rewards_PGKR[:, [i]]) for i, n in enumerate(config.train.steps)},
        "between_stages": facts.between_stages,
        "ties": {
            "margin": facts.margin,
            "pairs": facts.ties.pairs,
            "tied_share": facts.ties.tied_share,
            "equal_share": facts.equal.tied_share,
            "groups": facts.ties.groups,
            "constant_groups": facts.ties.constant,
        },
        "failures": {
            "measurements": facts.measurements,
            "failed": sum(facts.failed.values()),
            "statuses": dict(facts.failed),
            "out_of_range": facts.out_of_range,
            "first_error": facts.error,
        },
        "mean": _means(measured.rewards_PGKR, config.train.steps),
        "latency_s": _latency(measured.scores),
        "cost": {name: asdict(cost) for name, cost in costs.items()}
        | {
            "rounds": config.train.max_rounds,
            "least_rounds": sum(least_and_most_rounds(config.train)[0]),
            "from_nothing": config.train.is_from_nothing,
            "round_s": facts.round_s,
            "max_reward_calls": config.budget.max_reward_calls,
        },
        "measured": _measurements(prompts, measured.rewards_PGKR, config.train.steps),
    }


def gather(config: RunSettings, info: RewardInfo, measured: Measured) -> Facts:
    """The facts by which the run's pairs, rounds and budget are judged."""
    groups_AJR = ranked_groups(measured.rewards_PGKR, config.surrogate.rank_within_num_steps)
    failed = [score for score in measured.scores if score.status is not Status.OK]
    latency = _latency(measured.scores)
    margin = _tie_margin(config, info.name, measured.rewards_PGKR)
    others = len(set(config.weights) - {info.name}) if info.name in config.weights else 0
    limit = config.budget.max_reward_calls
    return Facts(
        reward=info,
        measurements=len(measured.scores),
        failed=dict(Counter(str(score.status) for score in failed).most_common()),
        error=failed[0].error if failed else None,
        out_of_range=sum(score.status is Status.BAD_REPLY and OUT_OF_RANGE in (score.error or "") for score in failed),
        within=variance_components(groups_AJR),
        ties=count_ties(groups_AJR, margin),
        equal=count_ties(groups_AJR, 0.0),
        margin=margin,
        within_num_steps=config.surrogate.rank_within_num_steps,
        between_stages=stage_share(measured.rewards_PGKR),
        slowest_s=latency["longest"],
        round_s=measured.speed.seconds(images_per_round(config.train, 2)),
        round_timeout_s=config.services.timeout_s,
        rounds=config.train.max_rounds,
        affordable_rounds=None if limit is None else affordable_rounds(config.train, info.repeats + others, limit),
    )


def _tie_margin(config: RunSettings, name: str, rewards_PGKR: np.ndarray) -> float:
    """In units of the reward; a share of the spread as if no other reward were in the total."""
    margin = config.surrogate.tie_margin
    if config.surrogate.tie_margin_unit == "spread":
        groups = np.moveaxis(rewards_PGKR, 3, 1).reshape(-1, rewards_PGKR.shape[1] * rewards_PGKR.shape[2])
        return tie_margin(margin, list(groups))
    weight = abs(config.weights.get(name, 1.0)) or 1.0
    return margin / weight  # it is in units of the weighted total


def _spread_within(rewards_P1KR: np.ndarray) -> dict[str, float | None]:
    """Of images of one number of denoising steps alone."""
    return _spread(variance_components(ranked_groups(rewards_P1KR, within_num_steps=True)))


def _spread(found: Components) -> dict[str, float | None]:
    share = found.signal_share
    return {
        "prompt_variance": found.groups,
        "image_variance": found.images,
        "repeat_variance": found.repeats,
        "signal_share": share,
        "best_pair_accuracy": None if share is None else best_pair_accuracy(share),
    }


def _means(rewards_PGKR: np.ndarray, steps: Sequence[NumSteps]) -> dict[str, dict[str, float | None]]:
    """Over prompts, so that the standard errors are those of other prompts like these.

    `difference`: the most steps minus the fewest, where there are several numbers of them.
    """
    of_prompts = [prompt_means(rewards_PKR) for rewards_PKR in rewards_PGKR.swapaxes(0, 1)]
    means = {JSON_NAMES[n]: estimate(found) for n, found in zip(steps, of_prompts, strict=True)}
    if len(of_prompts) > 1:
        means["difference"] = paired_difference(of_prompts[0], of_prompts[-1])
    return {name: found.as_dict() for name, found in means.items()}


def _latency(scores: Sequence[RewardValue]) -> dict[str, float | None]:
    """Quantiles over all images of how long the call took that the image was in."""
    latencies_s = [score.latency_s for score in scores if score.attempts]
    if not latencies_s:
        return dict.fromkeys(QUANTILES)
    return {name: float(np.quantile(latencies_s, share)) for name, share in QUANTILES.items()}


def _measurements(
    prompts: Sequence[Prompt], rewards_PGKR: np.ndarray, steps: Sequence[NumSteps]
) -> list[dict[str, Any]]:
    """Per prompt and number of steps, for every seed its repeats; None where one failed."""
    return [
        {"prompt": prompt.text}
        | {
            JSON_NAMES[n]: [[None if np.isnan(value) else value for value in row] for row in rewards_KR.tolist()]
            for n, rewards_KR in zip(steps, rewards_GKR, strict=True)
        }
        for prompt, rewards_GKR in zip(prompts, rewards_PGKR, strict=True)
    ]

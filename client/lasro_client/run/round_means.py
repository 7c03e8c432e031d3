"""What a round's record says: means of its rewards, of the surrogate's update and of the generator's updates.

Shape legend: N samples of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lasro.functional.reward_totals import RewardObjective, Scale, totals
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import StepStatistics
from lasro.training.group_summary import GroupSummary
from lasro.wire import AdaptReply, scores_of, version_of
from lasro_client.evaluation.num_steps import unmeasured
from lasro_client.run.collect import Collected
from lasro_client.run.round_record import GeneratorRecord, Means, RewardRecord, SurrogateRecord
from lasro_client.services.failures import failures_of


def record_rewards(collected: Collected, objective: RewardObjective, scales: Mapping[str, Scale]) -> RewardRecord:
    """Means of the round's rewards; `scales` are those that the trainer normalised rewards by."""
    groups, items = collected.groups, collected.items
    is_reference_N = np.concatenate([group.is_reference for group in groups])
    num_steps_N = np.concatenate([group.stages for group in groups])
    own_steps_N, reference_steps_N = np.where(is_reference_N, 0, num_steps_N), np.where(is_reference_N, num_steps_N, 0)
    steps = sorted(set(num_steps_N.tolist()))
    rewards = {name: np.array(scores_of(items, name), dtype=float) for name in objective.weights}
    found = totals(rewards, objective, scales)
    gain_N = np.full(len(is_reference_N), np.nan)
    own_total_N = found.valid_total_N[_own_of_the_same_noise(groups)]
    gain_N[is_reference_N] = own_total_N - found.valid_total_N[is_reference_N]
    return RewardRecord(
        rewards={name: _means(values_N, own_steps_N, steps) for name, values_N in rewards.items()},
        total=_means(found.valid_total_N, own_steps_N, steps),
        vetoed=_means(np.where(np.isnan(found.total_N), np.nan, found.vetoed_N), own_steps_N, steps),
        reference=_means(found.valid_total_N, reference_steps_N, steps),
        gain=_means(gain_N, num_steps_N, steps),
        versions={name: version_of(items, name) for name in objective.weights},
        samples=len(items),
        scored_samples=int(np.isfinite(found.total_N).sum()),
        failures=failures_of(items, objective.weights),
    )


def _own_of_the_same_noise(groups: list[GroupSummary]) -> np.ndarray:
    """For each reference sample, in order, the index of the own sample with its noise and number of steps."""
    found, start = [], 0
    for group in groups:
        is_reference_N, num_steps_N = np.array(group.is_reference), np.array(group.stages)
        for num_steps in sorted(set(group.stages)):
            count = np.count_nonzero(is_reference_N & (num_steps_N == num_steps))
            found.append(start + np.flatnonzero(~is_reference_N & (num_steps_N == num_steps))[:count])
        start += len(num_steps_N)
    return np.concatenate(found)


def _means(values_N: np.ndarray, num_steps_N: np.ndarray, steps: Sequence[NumSteps]) -> Means:
    """Means of the finite values of each number of steps."""

    def mean(num_steps: NumSteps) -> float | None:
        known = values_N[(num_steps_N == num_steps) & np.isfinite(values_N)]
        return float(known.mean()) if len(known) else None

    return {num_steps: mean(num_steps) for num_steps in steps}


def record_surrogate(reply: AdaptReply) -> SurrogateRecord:
    """What the trainer measured in this round's surrogate update."""
    statistics = reply.statistics
    return SurrogateRecord(
        loss=statistics.loss,
        pair_accuracy=statistics.pair_accuracy,
        fresh_pair_accuracy=statistics.fresh_pair_accuracy,
        held_out_pair_accuracy=statistics.held_out_pair_accuracy,
        reward_gap=statistics.reward_gap,
        accuracy_by_kind=statistics.accuracy_by_kind,
        stale_groups=statistics.stale_groups,
        constant_groups=statistics.constant_groups,
        ranked_pairs=statistics.ranked_pairs,
        tied_pairs=statistics.tied_pairs,
        spread=statistics.spread,
        tie_margin=statistics.tie_margin,
        failed_samples=statistics.failed_samples,
        scales=statistics.scales,
        version=reply.version,
    )


def by_weight(values: Means, weights: Mapping[NumSteps, float]) -> float | None:
    """Mean over the numbers of steps, by weights as in the method's loss; None where one with a weight is missing."""
    terms = [(weight, values.get(num_steps)) for num_steps, weight in weights.items() if weight > 0]
    known = [(weight, value) for weight, value in terms if value is not None]
    if not terms or len(known) < len(terms):
        return None
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)


def record_generator(
    steps: list[StepStatistics], drift: Means, distance: Means, target: float | None
) -> GeneratorRecord:
    """The generator's updates of a round, averaged."""
    if not steps:
        return GeneratorRecord(drift, unmeasured(drift), distance=distance)

    def mean(name: str) -> float | None:
        known = [value for step in steps if (value := getattr(step, name)) is not None]
        return sum(known) / len(known) if known else None

    return GeneratorRecord(
        drift=drift,
        score={n: _mean([step.scores[n] for step in steps]) for n in steps[0].scores},
        loss=mean("loss"),
        regulariser=mean("regulariser"),
        grad_norm=mean("grad_norm"),
        distance=distance,
        drift_target=target,
        regulariser_weight=mean("regulariser_weight"),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

"""The first half of a round, in both stages of the method: have its samples scored, and record what the rewards said.

Shape legend: N samples of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lasro.functional.reward_totals import RewardObjective, Scale, totals
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group, GroupSummary, summarise_group
from lasro.wire import AdaptReply, GroupStatus, GroupSubmission, ScoredItem, scores_of, version_of
from lasro_client.evaluation.num_steps import ALL_NUM_STEPS, ByNumSteps
from lasro_client.run.round_record import Means, RewardRecord, SurrogateRecord
from lasro_client.run.saved_samples import keep_samples
from lasro_client.run.submission import RoundHeader, submission
from lasro_client.services.failures import failures_of
from lasro_client.services.feedback import FeedbackClient

OnScored = Callable[[Sequence[GroupSubmission], Sequence[GroupStatus]], None]
"""Is given the groups that this process posted, and what became of them, in the same order."""


class Collected(NamedTuple):
    """A round's groups with their rewards, in the same order."""

    groups: list[GroupSummary]
    scored: list[GroupStatus]

    @property
    def reward_calls(self) -> int:
        """Of the run so far."""
        return max(status.reward_calls for status in self.scored)

    @property
    def items(self) -> list[ScoredItem]:
        """The rewards of every sample, group by group."""
        return [item for status in self.scored for item in status.items or []]

    def has_total(self, required_rewards: Sequence[str]) -> bool:
        """Whether any sample has all the rewards without which there is no total."""
        return any(all(item.scores[name].score is not None for name in required_rewards) for item in self.items)

    def image_squares(self, num_steps: int) -> list[float]:
        """Mean square pixel differences of own samples to the reference samples of the same noise."""
        return [square for group in self.groups for square in group.image_squares.get(num_steps, [])]

    def is_unranked(self, reply: AdaptReply) -> bool:
        """Whether no group gave the trainer a ranked pair."""
        return reply.statistics.constant_groups >= len(self.scored)


def collect(
    feedback: FeedbackClient,
    prompts: list[Prompt],
    draw: Callable[[list[Prompt], int], list[Group]],
    header: RoundHeader,
    keep: Path | None = None,
    on_scored: OnScored | None = None,
) -> Collected:
    """Sample a group for each prompt and wait for its rewards. Every process does a share and returns all groups.

    `draw(prompts, first)` samples the groups of these prompts, the first of which has index `first` in the round.
    `keep` is the run folder to save latents and rewards in, None to save nothing. `on_scored` sees this process's
    share with its images. Raises BudgetError once `budget.max_reward_calls` is spent.
    """

    def collect_share() -> Collected:
        share = feedback.peers.share(len(prompts))
        groups = draw(prompts[share], share.start)
        posts = [submission(group, header, index) for index, group in enumerate(groups, share.start)]
        scored = feedback.post(posts)
        if keep is not None:
            keep_samples(keep, posts, scored)
        if on_scored is not None:
            on_scored(posts, scored)
        return Collected([summarise_group(group) for group in groups], scored)

    shares = feedback.peers.all_gather(collect_share, Collected)
    groups = [group for share in shares for group in share.groups]
    return Collected(groups, [status for share in shares for status in share.scored])


def record_rewards(collected: Collected, objective: RewardObjective, scales: Mapping[str, Scale]) -> RewardRecord:
    """Means of the round's rewards; `scales` are those that the trainer normalised rewards by."""
    groups, items = collected.groups, collected.items
    is_reference_N = np.concatenate([group.is_reference for group in groups])
    num_steps_N = np.concatenate([group.stages for group in groups])
    own_steps_N = np.where(is_reference_N, 0, num_steps_N)
    rewards = {name: np.array(scores_of(items, name), dtype=float) for name in objective.weights}
    found = totals(rewards, objective, scales)
    gain_N = np.full(len(is_reference_N), np.nan)
    own_total_N = found.valid_total_N[_own_of_the_same_noise(groups)]
    gain_N[is_reference_N] = own_total_N - found.valid_total_N[is_reference_N]
    return RewardRecord(
        rewards={name: _means(values_N, own_steps_N) for name, values_N in rewards.items()},
        total=_means(found.valid_total_N, own_steps_N),
        vetoed=_means(np.where(np.isnan(found.total_N), np.nan, found.vetoed_N), own_steps_N),
        reference=_means(found.valid_total_N, np.where(is_reference_N, num_steps_N, 0)),
        gain=_means(gain_N, num_steps_N),
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
        for num_steps in ALL_NUM_STEPS:
            count = np.count_nonzero(is_reference_N & (num_steps_N == num_steps))
            found.append(start + np.flatnonzero(~is_reference_N & (num_steps_N == num_steps))[:count])
        start += len(num_steps_N)
    return np.concatenate(found)


def _means(values_N: np.ndarray, num_steps_N: np.ndarray) -> Means:
    """Means of the finite values of each number of steps."""

    def mean(num_steps: int) -> float | None:
        known = values_N[(num_steps_N == num_steps) & np.isfinite(values_N)]
        return float(known.mean()) if len(known) else None

    return ByNumSteps.of(mean)


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

"""What both stages do in a round besides training: have its samples scored, and tell of it.

Shape legend: N samples of a group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro.functional.reward_totals import Scale, totals
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group, GroupSummary, outline, submissions
from lasro.wire import AdaptReply, GroupStatus, scores_of, version_of
from lasro_client.run.saved_samples import keep_samples
from lasro_client.services.feedback import FeedbackClient

STAGES = {"one_step": 1, "two_step": 2}


class Collected(NamedTuple):
    """A round's groups, in order, and what the reward said of them."""

    groups: list[GroupSummary]
    scored: list[GroupStatus]

    @property
    def reward_calls(self) -> int:
        """Of the run so far."""
        return max(status.reward_calls for status in self.scored)


def collect(
    feedback: FeedbackClient,
    config: RunSettings,
    prompts: list[Prompt],
    draw: Callable[[list[Prompt], int], list[Group]],
    round: int,
    policy_version: int,
    keep: Path | None = None,
) -> Collected:
    """Have a group of each prompt scored. Of several processes each draws and posts its share; all know the whole.

    `draw` makes the groups of some prompts, of which the first has the index given. In the run's folder `keep`, where
    there is one, they are kept with their rewards. Raises BudgetError.
    """

    def drawn_here() -> Collected:
        share = feedback.peers.share(len(prompts))
        groups = draw(prompts[share], share.start)
        posts = submissions(groups, config, round, policy_version, share.start)
        scored = feedback.post(posts)
        if keep is not None:
            keep_samples(keep, posts, scored)
        return Collected([outline(group) for group in groups], scored)

    parts = feedback.peers.all_gather(drawn_here)
    groups = [group for part in parts for group in part.groups]
    return Collected(groups, [status for part in parts for status in part.scored])


def check_time_budget(config: RunSettings, started_s: float, peers: DistributedContext) -> None:
    """Raises BudgetError in all processes once the run's minutes since `started_s` (monotonic) are over."""
    most = config.budget.max_minutes
    if most is None:
        return

    def refuse() -> None:
        if time.monotonic() - started_s >= 60 * most:
            raise BudgetError(f"budget.max_minutes: the {most:g} minutes are over")

    peers.on_main_and_broadcast(refuse)


def reward_means(collected: Collected, config: RunSettings, scales: Mapping[str, Scale]) -> dict[str, Any]:
    """The entries of a log line that come from the reward: means per stage, null without a sample.

    Each reward is over all samples that it scored, `total` over those that no guard vetoed, and `vetoed` is the share
    of the others. `beside` is the total of the other policy's samples, the rest of the model's own; `gain` is own
    minus beside, of the same noise. `scales` are those that the trainer ranked by.
    """
    groups, scored = collected
    beside_N = np.concatenate([group.beside for group in groups])
    all_stages_N = np.concatenate([group.stages for group in groups])
    stages_N = np.where(beside_N, 0, all_stages_N)
    items = [item for status in scored for item in status.items or []]
    components = {name: np.array(scores_of(items, name), dtype=float) for name in config.weights}
    found = totals(components, config.reward_objective, scales)
    vetoed_N = np.where(np.isnan(found.total_N), np.nan, found.vetoed_N)
    gain_N = np.full(len(beside_N), np.nan)
    gain_N[beside_N] = found.valid_total_N[_own_of_the_same_noise(groups)] - found.valid_total_N[beside_N]
    return {
        "reward": {name: _by_stage(values_N, stages_N) for name, values_N in components.items()},
        "total": _by_stage(found.valid_total_N, stages_N),
        "vetoed": _by_stage(vetoed_N, stages_N),
        "beside": _by_stage(found.valid_total_N, np.where(beside_N, all_stages_N, 0)),
        "gain": _by_stage(gain_N, all_stages_N),
        "reward_versions": {name: version_of(items, name) for name in config.weights},
    }


def _own_of_the_same_noise(groups: list[GroupSummary]) -> np.ndarray:
    """For each sample beside, in order, where among all samples the model's own of its noise and stage is."""
    found, start = [], 0
    for group in groups:
        beside_N, stages_N = np.array(group.beside), np.array(group.stages)
        for stage in STAGES.values():
            count = np.count_nonzero(beside_N & (stages_N == stage))
            found.append(start + np.flatnonzero(~beside_N & (stages_N == stage))[:count])
        start += len(stages_N)
    return np.concatenate(found)


def _by_stage(values_N: np.ndarray, stages_N: np.ndarray) -> dict[str, float | None]:
    means = {}
    for name, stage in STAGES.items():
        known = values_N[(stages_N == stage) & np.isfinite(values_N)]
        means[name] = float(known.mean()) if len(known) else None
    return means


def adapt_entries(reply: AdaptReply) -> dict[str, Any]:
    """The surrogate's entries of a log line."""
    statistics = reply.statistics
    return {
        "bt_loss": statistics.loss,
        "pair_accuracy": statistics.pair_accuracy,
        "fresh_pair_accuracy": statistics.fresh_pair_accuracy,
        "held_out_pair_accuracy": statistics.held_out_pair_accuracy,
        "reward_gap": statistics.reward_gap,
        "stale_groups": statistics.stale_groups,
        "constant_groups": statistics.constant_groups,
        "failed_samples": statistics.failed_samples,
        "scales": {name: asdict(scale) for name, scale in statistics.scales.items()},
        "surrogate_version": reply.version,
    }

"""What both stages do in a round: sample groups, have them scored, train the surrogate on them, tell of it.

Shape legend: N samples of a group.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import numpy as np

from lasro.config import RunSettings
from lasro.reward_objective import Scale, totals
from lasro.wire import AdaptReply, AdaptRequest, GroupStatus, GroupSubmission
from lasro_client.connection import Services
from lasro_client.sampling import Group, submission

STAGES = {"one_step": 1, "two_step": 2}


class Collector:
    """Has groups scored and hands them to the surrogate trainer, for one attempt at a run."""

    def __init__(self, connected: Services, run: str, config: RunSettings, attempt: int) -> None:
        self.services, self.run, self.config, self.attempt = connected, run, config, attempt

    def score(self, groups: list[Group], round: int, policy_version: int) -> list[GroupStatus]:
        """Post the groups and wait for their scores, in order. Raises BudgetError when the budget is spent."""
        return self.post(
            [
                submission(group, self.config, round, index, policy_version, self.attempt)
                for index, group in enumerate(groups)
            ]
        )

    def post(self, posts: list[GroupSubmission]) -> list[GroupStatus]:
        """The same for groups that are ready to be posted."""
        scored = self.services.rewards.wait_scored(self.run, posts, self.config.services.timeout_s)
        return [scored[post.group_id] for post in posts]

    def adapt(self, scored: list[GroupStatus], round: int, steps: int, part: int = 0) -> AdaptReply:
        """Train the surrogate for `steps` steps once it has these groups; safe to repeat."""
        request = AdaptRequest(
            request_id=f"a{self.attempt}-r{round:06d}-{part}",
            new_groups=[status.group_id for status in scored],
            steps=steps,
            timeout_s=self.config.services.timeout_s,
        )
        return self.services.surrogates.adapt(self.run, request)


def reward_means(
    groups: list[Group], scored: list[GroupStatus], config: RunSettings, scales: Mapping[str, Scale]
) -> dict[str, Any]:
    """The `reward`, `total`, `vetoed` and `beside` entries of a log line: means, null without a sample.

    Each reward is over all samples that it scored, `total` over those that no guard vetoed, and `vetoed` is the share
    of the others. `beside` is the total of the other policy's samples, the rest of the model's own. `scales` are those
    that the trainer ranked by.
    """
    beside_N = np.concatenate([group.beside for group in groups])
    all_stages_N = np.concatenate([group.stages for group in groups])
    stages_N = np.where(beside_N, 0, all_stages_N)
    items = [item for status in scored for item in status.items or []]
    components = {
        name: np.array([np.nan if (s := item.scores[name].score) is None else s for item in items], dtype=float)
        for name in config.weights
    }
    found = totals(components, config.reward_objective, scales)
    vetoed_N = np.where(np.isnan(found.total_N), np.nan, found.vetoed_N)
    return {
        "reward": {name: _by_stage(values_N, stages_N) for name, values_N in components.items()},
        "total": _by_stage(found.passed_N, stages_N),
        "vetoed": _by_stage(vetoed_N, stages_N),
        "beside": _by_stage(found.passed_N, np.where(beside_N, all_stages_N, 0)),
    }


def _by_stage(values_N: np.ndarray, stages_N: np.ndarray) -> dict[str, float | None]:
    means = {}
    for name, stage in STAGES.items():
        known = values_N[(stages_N == stage) & np.isfinite(values_N)]
        means[name] = float(known.mean()) if len(known) else None
    return means


def adapt_entries(reply: AdaptReply, reward_gap: float | None) -> dict[str, Any]:
    """The surrogate's entries of a log line."""
    statistics = reply.statistics
    return {
        "bt_loss": statistics.loss,
        "pair_accuracy": statistics.pair_accuracy,
        "fresh_pair_accuracy": statistics.fresh_pair_accuracy,
        "held_out_pair_accuracy": statistics.held_out_pair_accuracy,
        "reward_gap": reward_gap,
        "constant_groups": statistics.constant_groups,
        "failed_samples": statistics.failed_samples,
        "scales": {name: asdict(scale) for name, scale in statistics.scales.items()},
        "surrogate_version": reply.version,
    }


class StopRequest:
    """Whether the user asked to stop; asked a second time, KeyboardInterrupt is raised at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stop_at_round_end() -> Iterator[StopRequest]:
    """Let Ctrl-C and SIGTERM end the run after the round under way, with a checkpoint."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

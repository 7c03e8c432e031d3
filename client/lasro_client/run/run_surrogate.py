"""The surrogate of a run of stage 2: opened, adapted each round, followed, kept; none where the method needs none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from lasro.config import RunSettings
from lasro.functional.bradley_terry import count_ties, ranked_pairs
from lasro.functional.reward_totals import RewardObjective, Values, group_totals, scale_of, tie_margin
from lasro.models.backbone import with_latents
from lasro.models.base import GeneratorModel
from lasro.training.score_source import ScoreSource
from lasro.wire import AdaptReply, AdaptStatistics, GroupStatus
from lasro_client.run.base_sample_rewards import preload_replay
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observers
from lasro_client.run.rewarded_groups import rewards_of
from lasro_client.services.connect import Services, open_surrogate
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.surrogate_scores import score_source

SETTLING = 1
"""Part of a round's requests, the first of which is its adaptation."""


class RunSurrogate(Protocol):
    """What the rounds ask of it. Versions are those that the trainer published."""

    @property
    def source(self) -> ScoreSource | None:
        """Where a method gets scores and gradients."""
        ...

    def open(self, resumed: int | None, observer: Observers) -> int:
        """Create or join it; returns its version. `resumed`: that of the checkpoint, None for a new run."""
        ...

    def adapt(self, scored: list[GroupStatus], round: int, drift: float | None, steps: int, rate: float) -> AdaptReply:
        """Learn from a round's groups in `steps` steps at this share of the learning rate; safe to repeat.

        `drift` of the generator that made them is kept with it.
        """
        ...

    def settle(self, round: int, steps: int, rate: float) -> AdaptReply:
        """Learn from all groups alike, at a rate that falls from `rate` times the learning rate; safe to repeat.

        After the rounds before `round`.
        """
        ...

    def follow(self, version: int) -> None:
        """Have `source` answer as this version."""
        ...

    def lease(self, version: int) -> None:
        """Keep this version and all later ones: from it rounds may be repeated."""
        ...

    def save(self, folder: RunFolder, version: int) -> None:
        """Keep this version in the run folder, for a later run to begin with."""
        ...


class TrainedSurrogate:
    """At the surrogate trainer."""

    def __init__(
        self,
        config: RunSettings,
        model: GeneratorModel,
        trunk: GeneratorModel | None,
        connected: Services,
        feedback: FeedbackClient,
    ) -> None:
        """Of the generator `model`; `trunk` as `held_trunk` has it."""
        self.config, self.model, self.connected, self.feedback = config, model, connected, feedback
        self.source = score_source(config.name, config.surrogate, trunk, connected.surrogates)

    def open(self, resumed: int | None, observer: Observers) -> int:
        config, connected = self.config, self.connected
        body = with_latents(config.surrogate_run, self.model)
        version = open_surrogate(connected, config.name, body, config.train.initial_surrogate, resumed)
        if resumed is None:
            alone = FeedbackClient(connected, config.name, config.services.timeout_s)
            accuracy = preload_replay(
                self.model, config.train, config.surrogate.buffer_groups, list(config.weights), alone
            )
            if accuracy is not None:
                text = f"stage 1's groups are in the replay; the surrogate ranks {accuracy:.1%} of their pairs right"
                observer.note(text)
        return version

    def adapt(self, scored: list[GroupStatus], round: int, drift: float | None, steps: int, rate: float) -> AdaptReply:
        return self.feedback.adapt(scored, round, steps, drift=drift, rate=rate)

    def settle(self, round: int, steps: int, rate: float) -> AdaptReply:
        return self.feedback.adapt([], round, steps, part=SETTLING, rate=rate, settle=True)

    def follow(self, version: int) -> None:
        self.source.refresh(version)

    def lease(self, version: int) -> None:
        self.feedback.lease(version)

    def save(self, folder: RunFolder, version: int) -> None:
        folder.keep_surrogate(self.connected.surrogates.weights_of(self.config.name, version))


class NoSurrogate:
    """For methods that need none: nothing is learned, and every version is 0.

    A method that learns from rewards compares them: to it a group is constant where no two totals of it differ, as to a
    trainer. For another, only one in which every sample failed is. Rewards are normalised over the round's groups.
    """

    source = None

    def __init__(self, objective: RewardObjective, compares: bool) -> None:
        self.objective, self.compares = objective, compares

    def open(self, resumed: int | None, observer: Observers) -> int:
        return 0

    def settle(self, round: int, steps: int, rate: float) -> AdaptReply:
        return self.adapt([], round, None, steps, rate)

    def adapt(self, scored: list[GroupStatus], round: int, drift: float | None, steps: int, rate: float) -> AdaptReply:
        rewards_GN = [rewards_of(status.items or [], self.objective) for status in scored]
        names = self.objective.normalised
        scales = {name: scale_of([rewards_N[name] for rewards_N in rewards_GN]) for name in names}
        totals_GN = group_totals(rewards_GN, self.objective, scales)
        margin = tie_margin(0.0, totals_GN)
        counts_G = [_count_pairs(totals_N, margin) for totals_N in totals_GN]
        ranked_G, tied_G = [ranked for ranked, _ in counts_G], [tied for _, tied in counts_G]
        failed_G = [_count_failed(rewards_N, self.objective) for rewards_N in rewards_GN]
        constant_G = [
            failed == len(totals_N) or (self.compares and not ranked)
            for failed, totals_N, ranked in zip(failed_G, totals_GN, ranked_G, strict=True)
        ]
        statistics = AdaptStatistics(
            loss=None,
            pair_accuracy=None,
            fresh_pair_accuracy=None,
            held_out_pair_accuracy=None,
            reward_gap=None,
            pairs=0,
            constant_groups=sum(constant_G),
            ranked_pairs=sum(ranked_G) if self.compares else 0,
            tied_pairs=sum(tied_G) if self.compares else 0,
            failed_samples=sum(failed_G),
            scales=scales,
            stale_groups=0,
            duration_s=0.0,
        )
        return AdaptReply(version=0, statistics=statistics)

    def follow(self, version: int) -> None:
        pass

    def lease(self, version: int) -> None:
        pass

    def save(self, folder: RunFolder, version: int) -> None:
        pass


def _count_failed(rewards: Mapping[str, Values], objective: RewardObjective) -> int:
    """Samples without a reward that counts."""
    return int(np.any([np.isnan(rewards[name]) for name in objective.required_rewards], axis=0).sum())


def _count_pairs(totals_N: Values, margin: float) -> tuple[int, int]:
    """Pairs of totals that differ by more than the margin, and those that do not."""
    values_N = torch.from_numpy(totals_N)
    alike_N = torch.zeros(len(totals_N), dtype=torch.int64)  # samples of all numbers of steps are compared
    winners_P, _ = ranked_pairs(values_N, alike_N, margin)
    return len(winners_P), count_ties(values_N, alike_N, margin)

"""The surrogate of a run of stage 2: opened, adapted each round, followed, kept; none where the method needs none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lasro.config import RunSettings
from lasro.models.backbone import with_latents
from lasro.models.base import GeneratorModel
from lasro.training.score_source import ScoreSource
from lasro.wire import AdaptReply, AdaptStatistics, GroupStatus, ScoredItem
from lasro_client.run.base_sample_rewards import preload_replay
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observers
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

    Nothing is ranked for them, so only a group in which every sample failed counts as one without a ranked pair.
    """

    source = None

    def __init__(self, required_rewards: Sequence[str]) -> None:
        """`required_rewards`: names without which a sample has no total."""
        self.required_rewards = required_rewards

    def open(self, resumed: int | None, observer: Observers) -> int:
        return 0

    def settle(self, round: int, steps: int, rate: float) -> AdaptReply:
        return self.adapt([], round, None, steps, rate)

    def adapt(self, scored: list[GroupStatus], round: int, drift: float | None, steps: int, rate: float) -> AdaptReply:
        failed_G = [self._count_failed(status.items or []) for status in scored]
        statistics = AdaptStatistics(
            loss=None,
            pair_accuracy=None,
            fresh_pair_accuracy=None,
            held_out_pair_accuracy=None,
            reward_gap=None,
            pairs=0,
            constant_groups=sum(
                failed == len(status.items or []) for failed, status in zip(failed_G, scored, strict=True)
            ),
            failed_samples=sum(failed_G),
            stale_groups=0,
            duration_s=0.0,
        )
        return AdaptReply(version=0, statistics=statistics)

    def _count_failed(self, items: Sequence[ScoredItem]) -> int:
        return sum(any(item.scores[name].score is None for name in self.required_rewards) for item in items)

    def follow(self, version: int) -> None:
        pass

    def lease(self, version: int) -> None:
        pass

    def save(self, folder: RunFolder, version: int) -> None:
        pass

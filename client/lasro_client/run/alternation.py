"""Stage 2, round by round: collect rewards, update the surrogate, update the generator, watch for divergence.

A round depends on nothing but the checkpoint before it: random draws are seeded by seed, round and update; groups and
requests are named by their content. Rounds that are repeated after a crash are therefore the same rounds, and the
services answer them from what they have stored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from lasro.config import MethodChoice
from lasro.errors import BudgetError, ConfigError
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.sampling import (
    Group,
    draw_prompts,
    drift_from_base,
    generator_for,
    sample_groups,
    sample_latents,
)
from lasro.wire import AdaptReply
from lasro_client.evaluation.num_steps import ByNumSteps
from lasro_client.run.collect import Collected, collect, record_rewards, record_surrogate
from lasro_client.run.divergence import DivergenceMonitor, Figures
from lasro_client.run.folder import RunFolder
from lasro_client.run.round_record import GeneratorRecord, HealthRecord, Means, RoundRecord
from lasro_client.run.run_surrogate import RunSurrogate
from lasro_client.run.submission import RoundHeader
from lasro_client.run.time_budget import TimeBudget
from lasro_client.services.feedback import FeedbackClient


class Alternation:
    """The rounds of stage 2. `progress`: how far they are; `best`: the trainer's state when the gain was highest."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: GeneratorTrainer,
        feedback: FeedbackClient,
        surrogate: RunSurrogate,
        prompts: list[Prompt],
    ) -> None:
        self.folder, self.config, self.prompts = folder, folder.config, prompts
        if self.config.train.overlap and feedback.peers.count > 1:
            raise ConfigError(
                f"train.overlap: got true with {feedback.peers.count} processes, expected false; it is for one"
            )
        self.trainer, self.feedback, self.surrogate = trainer, feedback, surrogate
        self.monitor = DivergenceMonitor(self.config.health)
        self.progress, self.best = folder.start(trainer, self.monitor)
        self._budget = TimeBudget(self.config.budget.max_minutes, self.progress.elapsed_s, feedback.peers)
        self._ahead: Collected | None = None
        self._decay_over(self.num_rounds)

    @property
    def num_rounds(self) -> int:
        """How many there are: as many as were asked for, or as fit into the run's minutes."""
        return self.progress.planned or self.config.train.rounds

    @property
    def over(self) -> bool:
        """Whether there is no further round."""
        return self.progress.ended is not None or self.progress.round >= self.num_rounds

    @property
    def surrogate_version(self) -> int:
        """The version that the last round published, or the one that the run began with."""
        version = self.progress.surrogate_version
        assert version is not None, "begin() comes first"
        return version

    def begin(self, version: int) -> None:
        """Write the first checkpoint of a new run, which names the surrogate version that it starts from."""
        if self.progress.surrogate_version is None:
            self.progress = self.progress._replace(surrogate_version=version)
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write all that a resume needs, and keep the surrogate versions that repeated rounds will ask for."""
        self.folder.checkpoint(self.progress, self.trainer, self.monitor, self.best)
        self.surrogate.lease(self.surrogate_version)

    def round(self) -> RoundRecord:
        """Do the next round. Raises BudgetError where it may not be done; it then does not count."""
        config, round = self.config, self.progress.round
        self._budget.check()
        collected, self._ahead = self._ahead or self._collect(round), None
        drift = ByNumSteps.of(partial(drift_from_base, collected.groups))
        adapt = partial(self.surrogate.adapt, collected.scored, round, by_weight(drift, config.method))
        reply, steps = self._improve(collected, adapt)
        self.progress = self.progress._replace(
            round=round + 1,
            unranked=self.progress.unranked + 1 if collected.is_unranked(reply) else 0,
            elapsed_s=self._budget.elapsed_s,
            reward_calls=collected.reward_calls,
            surrogate_version=reply.version,
        )
        self._plan()
        record = RoundRecord(
            stage="train",
            round=round,
            num_rounds=self.num_rounds,
            elapsed_s=self.progress.elapsed_s,
            rewards=record_rewards(collected, config.reward_objective, reply.statistics.scales),
            surrogate=record_surrogate(reply),
            generator=record_generator(steps, drift),
            reward_calls=self.progress.reward_calls,
            policy_version=self.trainer.version,
            unranked_rounds=self.progress.unranked,
        )
        return replace(record, health=self._judge(record))

    def _improve(
        self, collected: Collected, adapt: Callable[[], AdaptReply]
    ) -> tuple[AdaptReply, list[StepStatistics]]:
        """Update the surrogate, then the generator where there was a ranked pair; with `train.overlap` both together.

        At the same time, the generator always follows the surrogate of the round before and the next round's groups
        are sampled too, so that the result does not depend on which of them is faster. Whether this round gives a pair
        is not known yet then: the round before must have, and this one have a sample with a total.
        """
        round = self.progress.round
        if not self.config.train.overlap:
            reply = adapt()
            self.surrogate.follow(reply.version)
            return reply, [] if collected.is_unranked(reply) else self._update_generator(round)
        taught = self.progress.unranked == 0 and collected.has_total(self.config.reward_objective.required_rewards)
        self.surrogate.follow(self.surrogate_version)
        with ThreadPoolExecutor(1) as executor:
            adapting = executor.submit(adapt)
            steps = self._update_generator(round) if taught else []
            if round + 1 < self.num_rounds:
                with suppress(BudgetError):  # raised again when it is that round's turn
                    self._ahead = self._collect(round + 1)
            return adapting.result(), steps

    def _plan(self) -> None:
        """Where there is a new estimate of the rounds that fit, let the learning rate fall over these."""
        fitting = self._budget.fitting_rounds(self.progress.round, self.progress.elapsed_s)
        if fitting is not None:
            planned = min(fitting, self.config.train.rounds)
            self.progress = self.progress._replace(planned=planned)
            self._decay_over(planned)

    def _decay_over(self, num_rounds: int) -> None:
        steps = self.config.train.decay_steps
        if steps is not None:
            self.trainer.decay_steps = max(1, round(steps * num_rounds / self.config.train.rounds))

    def _collect(self, round: int) -> Collected:
        _, prompts = self._draws(round)
        keep = self.folder.path if self.config.train.keep_samples else None
        draw = partial(self._sample, round)
        header = RoundHeader(
            round, self.trainer.version, list(self.config.weights), self.config.budget.max_reward_calls
        )
        return collect(self.feedback, prompts, draw, header, keep)

    def _draws(self, round: int) -> tuple[torch.Generator, list[Prompt]]:
        """The prompts of a round's groups, and the random generator that draws those of its updates."""
        draws = generator_for(self.config.seed, "train prompts", round)
        return draws, draw_prompts(self.prompts, self.config.train.prompts_per_round, draws)

    def _sample(self, round: int, prompts: list[Prompt], first: int) -> list[Group]:
        """Samples of the generator and, once it has left the base, reference samples of the base."""
        model, config = self.trainer.model, self.config
        base = partial(sample_latents, model, base=True) if not self.trainer.is_base else None
        return sample_groups(
            model, prompts, config.train, config.seed, "train", round, reference_policy=base, first=first
        )

    def _update_generator(self, round: int) -> list[StepStatistics]:
        """The generator's updates of a round; none in the first `train.warmup_rounds`."""
        settings = self.config.train
        draws, _ = self._draws(round)
        steps = []
        for _ in range(settings.generator_steps if round >= settings.warmup_rounds else 0):
            batch = draw_prompts(self.prompts, settings.batch_size, draws)
            steps.append(self.trainer.step(batch, self.surrogate.source))
        return steps

    def _judge(self, record: RoundRecord) -> HealthRecord:
        """Say whether the run diverges, and end it or roll it back as `health` in the settings says."""
        settings, method = self.config.health, self.config.method
        figures = Figures(
            by_weight(record.rewards.gain, method),
            record.surrogate.reward_gap,
            by_weight(record.generator.drift, method),
        )
        if self.monitor.observe(record.round, figures):
            self.best = {name: tensor.clone() for name, tensor in self.trainer.state().items()}
        trouble = self.monitor.trouble()
        if trouble is None:
            return HealthRecord()
        if not trouble.go_back or settings.on_trouble == "ignore":
            return HealthRecord(trouble.reason)
        self.trainer.restore(self.best)
        self._ahead = None  # sampled from the generator that was just given up
        if settings.on_trouble == "stop" or self.monitor.roll_backs == settings.max_roll_backs:
            self.progress = self.progress._replace(ended=trouble.reason)
            return HealthRecord(trouble.reason, "stop")
        self.monitor.rolled_back()
        return HealthRecord(trouble.reason, "roll_back")


def by_weight(values: Means, method: MethodChoice) -> float | None:
    """Mean over one and two steps, weighted as in the method's loss; None where a value with a weight is missing."""
    weights = (method.one_step_weight, method.two_step_weight)
    terms = [(weight, value) for weight, value in zip(weights, values.values(), strict=True) if weight > 0]
    known = [(weight, value) for weight, value in terms if value is not None]
    if not terms or len(known) < len(terms):
        return None
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)


def record_generator(steps: list[StepStatistics], drift: Means) -> GeneratorRecord:
    """The generator's updates of a round, averaged."""
    if not steps:
        return GeneratorRecord(drift)
    mean = StepStatistics(*(sum(values) / len(steps) for values in zip(*steps, strict=True)))
    return GeneratorRecord(drift, ByNumSteps(mean.score_1, mean.score_2), mean.loss, mean.regulariser, mean.grad_norm)

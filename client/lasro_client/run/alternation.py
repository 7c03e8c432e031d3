"""Stage 2, round by round: collect rewards, update the surrogate, update the generator, watch for divergence.

A round depends on nothing but the checkpoint before it: random draws are seeded by seed, round and update; groups and
requests are named by their content. Rounds that are repeated after a crash are therefore the same rounds, and the
services answer them from what they have stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from lasro.errors import BudgetError, ConfigError
from lasro.functional.drift import drift_distance
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.group_summary import drift_from_base
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_prompts
from lasro.wire import AdaptReply
from lasro_client.evaluation.num_steps import unmeasured
from lasro_client.run.collect import Collected
from lasro_client.run.divergence import DivergenceMonitor, Figures
from lasro_client.run.drift_budget import DriftBudget, largest
from lasro_client.run.folder import RunFolder
from lasro_client.run.rewarded_groups import rewarded_groups
from lasro_client.run.round_means import by_weight, record_generator, record_rewards, record_surrogate
from lasro_client.run.round_plan import RoundPlan
from lasro_client.run.round_record import HealthRecord, Means, RoundRecord
from lasro_client.run.round_sampler import RoundSampler
from lasro_client.run.run_surrogate import RunSurrogate
from lasro_client.run.time_budget import TimeBudget
from lasro_client.run.train_schedule import End, TrainSchedule
from lasro_client.services.feedback import FeedbackClient

MOST_SCALE = 1.25
MOST_SETTLING = 100
"""Steps: the rate falls over so many well enough, and each takes as long as a step of a round."""


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
        self.folder, self.config = folder, folder.config
        if self.config.train.overlap and feedback.peers.count > 1:
            raise ConfigError(
                f"train.overlap: got true with {feedback.peers.count} processes, expected false; it is for one"
            )
        self.trainer, self.feedback, self.surrogate = trainer, feedback, surrogate
        self.monitor = DivergenceMonitor(self.config.health, self.config.train.drift_budget)
        settings = self.config.train
        self.schedule = TrainSchedule(settings)
        self.drift = DriftBudget(settings.drift_budget, settings.is_from_nothing)
        self._parts = {"health": self.monitor, "schedule": self.schedule, "drift": self.drift}
        self.progress, self.best = folder.start(trainer, self._parts)
        self._image_unit = self._unmeasured
        self.clock = TimeBudget(self.config.budget.max_minutes, self.progress.elapsed_s, feedback.peers)
        self._plan = RoundPlan(self.config, self.schedule, self.clock)
        self.sampler = RoundSampler(folder, trainer, feedback, self.schedule, prompts)
        self._ahead: Collected | None = None
        self._let_rate_fall()

    @property
    def _unmeasured(self) -> Means:
        return unmeasured(self.config.train.steps)

    @property
    def num_rounds(self) -> int:
        """How many there will be, by what is known."""
        return self._plan.num_rounds(self.progress)

    @property
    def over(self) -> bool:
        """Whether there is no further round."""
        return self.progress.ended is not None or self.progress.round >= self._plan.most_rounds(self.progress)

    @property
    def surrogate_version(self) -> int:
        """The version that the last round published, or the one that the run began with."""
        version = self.progress.surrogate_version
        assert version is not None, "begin() comes first"
        return version

    def measure_by(self, units: Mapping[NumSteps, float | None]) -> None:
        """Measure drift by these mean square pixel differences, which count as 1 (`BaseImages.units`)."""
        self._image_unit = units

    def begin(self, version: int) -> None:
        """Write the first checkpoint of a new run, which names the surrogate version that it starts from."""
        if self.progress.surrogate_version is None:
            self.progress = self.progress._replace(surrogate_version=version)
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write all that a resume needs, and keep the surrogate versions that repeated rounds will ask for."""
        self.folder.checkpoint(self.progress, self.trainer, self._parts, self.best)
        self.surrogate.lease(self.surrogate_version)

    def round(self) -> RoundRecord:
        """Do the next round. Raises BudgetError where it may not be done; it then does not count."""
        config, round = self.config, self.progress.round
        self.clock.check()
        is_compared = self.sampler.compares_with_base(round)
        collected, self._ahead = self._ahead or self.sampler.collect(round), None
        drift = distance = self._unmeasured
        if is_compared:
            drift = {n: drift_from_base(collected.groups, n) for n in config.train.steps}
            distance = self._observe_drift(collected)
        target = None if self.schedule.phase == "ranking" else self._advance_drift()
        reply, steps = self._improve(collected, by_weight(drift, config.step_weights))
        self.progress = self.progress._replace(
            round=round + 1,
            unranked=self.progress.unranked + 1 if collected.is_unranked(reply) else 0,
            elapsed_s=self.clock.elapsed_s,
            reward_calls=collected.reward_calls,
            surrogate_version=reply.version,
        )
        self.progress = self._plan.after_round(self.progress)
        self._let_rate_fall()
        rewards = record_rewards(collected, config.reward_objective, reply.statistics.scales)
        if not is_compared:
            rewards = replace(rewards, reference=self._unmeasured, gain=self._unmeasured)
        record = RoundRecord(
            stage="train",
            round=round,
            num_rounds=self.num_rounds,
            elapsed_s=self.progress.elapsed_s,
            rewards=rewards,
            surrogate=record_surrogate(reply),
            generator=record_generator(steps, drift, distance, target),
            phase=self.schedule.phase,
            restarts=self.schedule.restarts,
            reward_calls=self.progress.reward_calls,
            policy_version=self.trainer.version,
            unranked_rounds=self.progress.unranked,
        )
        if is_compared:
            record = replace(record, health=self._judge(record))
        return replace(record, event=self._proceed(record))

    def _improve(self, collected: Collected, drift: float | None) -> tuple[AdaptReply, list[StepStatistics]]:
        """Update the surrogate, then the generator where there was a ranked pair; with `train.overlap` both together.

        At the same time, the generator always follows the surrogate of the round before and the next round's groups
        are sampled too, so that the result does not depend on which of them is faster. Whether this round gives a pair
        is not known yet then: the round before must have, and this one have a sample with a total.
        """
        round, settings = self.progress.round, self.config.train
        adapt = partial(self.surrogate.adapt, collected.scored, round, drift, *self.schedule.adaptation)
        if not settings.overlap:
            reply = adapt()
            self.surrogate.follow(reply.version)
            return reply, self._update_generator(round) if self._learns(collected, reply) else []
        taught = self.progress.unranked == 0 and collected.has_total(self.config.reward_objective.required_rewards)
        self.surrogate.follow(self.surrogate_version)
        with ThreadPoolExecutor(1) as executor:
            adapting = executor.submit(adapt)
            updates = self._update_generator(round) if taught else []
            if round + 1 < self.num_rounds:
                with suppress(BudgetError):  # raised again when it is that round's turn
                    self._ahead = self.sampler.collect(round + 1)
            return adapting.result(), updates

    def _learns(self, collected: Collected, reply: AdaptReply) -> bool:
        """Whether the round gives the generator something to follow; shows its rewards to a method that wants them."""
        if collected.is_unranked(reply) or not self.trainer.method.learns_from_rewards:
            return not collected.is_unranked(reply)
        noises, scales = partial(self.sampler.noises, self.progress.round), reply.statistics.scales
        return self.trainer.observe(rewarded_groups(collected, self.config.reward_objective, scales, noises))

    def _observe_drift(self, collected: Collected) -> Means:
        """How far the round's images are from the base's, and what that says of the distance of latents."""
        if self.trainer.is_base:
            return self._unmeasured
        found = {n: drift_distance(collected.image_squares(n), unit)[0] for n, unit in self._image_unit.items()}
        self.drift.observe(largest(found.values()), self.progress.distance)
        return found

    def _advance_drift(self) -> float | None:
        """Say how far this round's updates may take the generator; returns it in changes of prompt."""
        target = self.drift.advance(self._plan.share(self.progress), self.schedule.pilot_share)
        self.trainer.allowed_distance = self.drift.distance(target)
        return target

    def _proceed(self, record: RoundRecord) -> str | None:
        """Go from ranking to training, back to the start, or to the end, where it is time; says which and why."""
        gain = by_weight(record.rewards.gain, self.config.step_weights)
        step = self.schedule.observe(record, gain, self._plan.fitting(self.progress))
        if gain is not None:
            self.drift.trust(self.schedule.newest_gain, self.schedule.newest_agreement)
        if step is None:
            return None
        if isinstance(step, End):
            self.give_up(step.why)
            return step.why
        self._ahead = None  # sampled for a phase that is over
        if step.is_restart:
            self._begin_again()
        if step.phase != "ranking":
            rate = self.config.train.ranking_rate
            reply = self.surrogate.settle(self.progress.round, self._settling_steps(), rate)
            self.progress = self.progress._replace(surrogate_version=reply.version)
            self.surrogate.follow(reply.version)
        self._let_rate_fall()
        return step.why

    @property
    def most_scale(self) -> float:
        """By which the averaged adapter may be scaled up to the drift budget, where the last weights stand at it."""
        is_held = self.config.train.is_from_nothing and self.schedule.phase == "training"
        return MOST_SCALE if is_held and self.progress.ended is None else 1.0

    def conclude(self) -> str | None:
        """After the last round: a pilot without a sign that it helps is taken back. Says so where it was."""
        if self.progress.ended is not None or self.schedule.phase != "pilot" or self.schedule.is_promising:
            return None
        self._begin_again()
        return (
            f"the run ended after {self.progress.round} rounds, in a pilot that did not raise the reward; the adapter "
            "changes nothing. Give it more rounds, reward calls or minutes"
        )

    def _let_rate_fall(self) -> None:
        self.trainer.decay_steps = self._plan.decay_steps(
            self.progress, self.trainer.version - self.trainer.first_version
        )

    def give_up(self, why: str) -> None:
        """End the run, which has nothing to learn, with the generator that it began with."""
        self._begin_again()
        self.progress = self.progress._replace(ended=why, nothing_learned=True)

    def _begin_again(self) -> None:
        """Go back to the generator that the run began with, and forget what was measured of another."""
        self.trainer.begin_again()
        self.drift.begin_again()
        self.monitor.begin_again()
        self.progress, self.best, self._ahead = self.progress._replace(distance=None), None, None

    def _settling_steps(self) -> int:
        """Steps in which each group of the replay is drawn `train.settle_passes` times; of many groups fewer do."""
        settings, surrogate, ranked = self.config.train, self.config.surrogate, self.schedule.ranking.rounds
        made = ranked * settings.ranking.prompts_per_round + (self.progress.round - ranked) * settings.prompts_per_round
        groups = min(surrogate.buffer_groups, made)
        return min(MOST_SETTLING, math.ceil(settings.settle_passes * groups / surrogate.groups_per_step))

    def _update_generator(self, round: int) -> list[StepStatistics]:
        """The generator's updates of a round; none in the first `train.warmup_rounds`, or while it only ranks."""
        settings = self.config.train
        if self.schedule.phase == "ranking" or round < (settings.warmup_rounds or 0):
            return []
        draws, _ = self.sampler.draws(round)
        steps = []
        for _ in range(settings.generator_steps):
            batch = draw_prompts(self.sampler.prompts, settings.batch_size, draws)
            steps.append(self.trainer.step(batch, self.surrogate.source))
        self.progress = self.progress._replace(distance=steps[-1].distance)
        return steps

    def _judge(self, record: RoundRecord) -> HealthRecord:
        """Say whether the run diverges, and end it or roll it back as `health` in the settings says."""
        settings, weights = self.config.health, self.config.step_weights
        figures = Figures(
            by_weight(record.rewards.gain, weights),
            record.surrogate.reward_gap,
            by_weight(record.generator.drift, weights),
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

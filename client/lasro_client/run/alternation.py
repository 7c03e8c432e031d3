"""One round of stage 2 after the other: collect, adapt, ascend, and watch that it does good.

Everything in a round follows from the checkpoint before it: draws depend on seed, round and update, groups and
requests are named by their content. So rounds that are repeated after a crash are the same rounds, and the services
answer for them as they did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from lasro.config import RunSettings
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
from lasro_client.run.collect import STAGES, Collected, adapt_entries, check_time_budget, collect, reward_means
from lasro_client.run.divergence import Figures, Health
from lasro_client.run.folder import RunFolder
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.surrogate_scores import FetchedSurrogate, RemoteSurrogate

PACE_ROUNDS = 5
"""After the first one, which has its groups still to draw: how long these took says how many fit into the minutes."""


class FineTuning:
    """A run between its two evaluations: where it is (`progress`), and its generator when it was best (`best`)."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: GeneratorTrainer,
        feedback: FeedbackClient,
        source: RemoteSurrogate | FetchedSurrogate,
        prompts: list[Prompt],
    ) -> None:
        self.folder, self.config, self.prompts = folder, folder.config, prompts
        if self.config.train.overlap and feedback.peers.count > 1:
            raise ConfigError(
                f"train.overlap: got true with {feedback.peers.count} processes, expected false; it is for one"
            )
        self.trainer, self.feedback, self.source = trainer, feedback, source
        self.health = Health(self.config.health)
        self.progress, self.best = folder.start(trainer, self.health)
        self._ahead: Collected | None = None
        self._started = time.monotonic() - self.progress.elapsed_s
        self._round_ends_s: list[float] = []
        self._pace_rounds = PACE_ROUNDS
        self._decay_to(self.rounds)

    @property
    def rounds(self) -> int:
        """How many there are: as many as were asked for, or fit into the run's minutes."""
        return self.progress.planned or self.config.train.rounds

    @property
    def over(self) -> bool:
        """Whether there is no further round."""
        return self.progress.ended is not None or self.progress.round >= self.rounds

    @property
    def surrogate_version(self) -> int:
        """That the last round left, or the run began with."""
        version = self.progress.surrogate_version
        assert version is not None, "begin() comes first"
        return version

    def begin(self, version: int) -> None:
        """Write the first checkpoint of a new run: repeated rounds start from this version of the surrogate."""
        if self.progress.surrogate_version is None:
            self.progress = self.progress._replace(surrogate_version=version)
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write all that a resume needs, and have the trainer keep what repeated rounds will ask it for."""
        self.folder.checkpoint(self.progress, self.trainer, self.health, self.best)
        self.feedback.lease(self.surrogate_version)

    def round(self) -> dict[str, Any]:
        """The next round; returns its line of the log. Raises BudgetError, the round then not counted."""
        config, round, trainer = self.config, self.progress.round, self.trainer
        check_time_budget(config, self._started, self.feedback.peers)
        collected, self._ahead = self._ahead or self._collect(round), None
        drift = {name: drift_from_base(collected.groups, stage) for name, stage in STAGES.items()}
        adapt = partial(
            self.feedback.adapt,
            collected.scored,
            round,
            config.train.surrogate_steps,
            drift=by_weight(drift, config),
        )
        reply, steps = self._improve(round, adapt)
        self.progress = self.progress._replace(
            round=round + 1,
            elapsed_s=time.monotonic() - self._started,
            reward_calls=collected.reward_calls,
            surrogate_version=reply.version,
        )
        self._plan()
        line = {
            "stage": "train",
            "round": round,
            "rounds": self.rounds,
            "elapsed_s": self.progress.elapsed_s,
            **reward_means(collected, config, reply.statistics.scales),
            "drift": drift,
            **_step_entries(steps),
            **adapt_entries(reply),
            "reward_calls": self.progress.reward_calls,
            "policy_version": trainer.version,
        }
        return line | self._judge(round, line)

    def _improve(self, round: int, adapt: Callable[[], AdaptReply]) -> tuple[AdaptReply, list[StepStatistics]]:
        """Adapt the surrogate and update the generator: one after the other, or, with `train.overlap`, side by side.

        Side by side the generator ascends what the surrogate was before this round, and draws the next round's groups,
        whichever of them is faster.
        """
        if not self.config.train.overlap:
            reply = adapt()
            self.source.refresh(reply.version)
            return reply, self._ascend(round)
        self.source.refresh(self.surrogate_version)
        with ThreadPoolExecutor(1) as beside:
            adapting = beside.submit(adapt)
            steps = self._ascend(round)
            if round + 1 < self.rounds:
                with suppress(BudgetError):  # raised again when it is that round's turn
                    self._ahead = self._collect(round + 1)
            return adapting.result(), steps

    def _plan(self) -> None:
        """Once the pace is known, say how many rounds the minutes are for: the learning rate falls over these.

        Said again after twice as many rounds, and so on: what else ran beside the first ones may be over.
        """
        minutes = self.config.budget.max_minutes
        if minutes is None:
            return
        self._round_ends_s.append(self.progress.elapsed_s)
        seen = len(self._round_ends_s) - 1
        if seen < self._pace_rounds:
            return
        pace_s = (self._round_ends_s[-1] - self._round_ends_s[0]) / seen
        self._round_ends_s, self._pace_rounds = self._round_ends_s[-1:], 2 * seen
        left_s = max(0.0, 60 * minutes - self.progress.elapsed_s)
        fitting = self.progress.round + int(left_s / pace_s)
        planned = self.feedback.peers.on_main_and_broadcast(lambda: min(fitting, self.config.train.rounds))
        self.progress = self.progress._replace(planned=planned)
        self._decay_to(planned)

    def _decay_to(self, rounds: int) -> None:
        steps = self.config.train.decay_steps
        if steps is not None:
            self.trainer.decay_steps = max(1, round(steps * rounds / self.config.train.rounds))

    def _collect(self, round: int) -> Collected:
        _, prompts = self._drawn(round)
        keep = self.folder.path if self.config.train.keep_samples else None
        draw = partial(self._groups, round)
        return collect(self.feedback, self.config, prompts, draw, round, self.trainer.version, keep)

    def _drawn(self, round: int) -> tuple[torch.Generator, list[Prompt]]:
        """The prompts of a round's groups, and what draws those of its updates."""
        draws = generator_for(self.config.seed, "train prompts", round)
        return draws, draw_prompts(self.prompts, self.config.train.prompts_per_round, draws)

    def _ascend(self, round: int) -> list[StepStatistics]:
        """The generator's updates of a round; none while it warms up."""
        settings = self.config.train
        draws, _ = self._drawn(round)
        steps = []
        for _ in range(settings.generator_steps if round >= settings.warmup_rounds else 0):
            batch = draw_prompts(self.prompts, settings.batch_size, draws)
            steps.append(self.trainer.step(batch, self.source))
        return steps

    def _groups(self, round: int, prompts: list[Prompt], first: int) -> list[Group]:
        model, config = self.trainer.model, self.config
        beside = partial(sample_latents, model, base=True) if self.trainer.version else None
        return sample_groups(model, prompts, config.train, config.seed, "train", round, beside=beside, first=first)

    def _judge(self, round: int, line: dict[str, Any]) -> dict[str, Any]:
        """What is wrong with the run, and what was done about it as the settings say: entries of the log line."""
        settings = self.config.health
        figures = Figures(
            by_weight(line["gain"], self.config), line["reward_gap"], by_weight(line["drift"], self.config)
        )
        if self.health.observe(round, figures):
            self.best = {name: tensor.clone() for name, tensor in self.trainer.state().items()}
        trouble = self.health.trouble()
        if trouble is None or not trouble.go_back or settings.on_trouble == "ignore":
            return {"trouble": None if trouble is None else trouble.reason, "action": None}
        self.trainer.restore(self.best)
        self._ahead = None  # drawn by the generator that is given up
        if settings.on_trouble == "stop" or self.health.roll_backs == settings.max_roll_backs:
            self.progress = self.progress._replace(ended=trouble.reason)
            return {"trouble": trouble.reason, "action": "stop"}
        self.health.rolled_back()
        return {"trouble": trouble.reason, "action": "roll_back"}


def by_weight(stages: dict[str, float | None], config: RunSettings) -> float | None:
    """Mean of both stages' figures, weighted as in the objective; null where one that counts is."""
    method = config.method
    weights = {"one_step": method.one_step_weight, "two_step": method.two_step_weight}
    terms = [(weight, stages[name]) for name, weight in weights.items() if weight > 0]
    known = [(weight, value) for weight, value in terms if value is not None]
    if not terms or len(known) < len(terms):
        return None
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)


def _step_entries(steps: list[StepStatistics]) -> dict[str, Any]:
    """The generator's entries of a log line, averaged over the round's steps; null in a warm-up round."""
    if not steps:
        return {
            "score": {"one_step": None, "two_step": None},
            "loss": None,
            "regulariser": None,
            "grad_norm": None,
        }
    mean = StepStatistics(*(sum(values) / len(steps) for values in zip(*steps, strict=True)))
    return {
        "score": {"one_step": mean.score_1, "two_step": mean.score_2},
        "loss": mean.loss,
        "regulariser": mean.regulariser,
        "grad_norm": mean.grad_norm,
    }

"""Training the surrogate: Bradley-Terry steps on replayed groups, and how well it ranks groups that it has not seen.

What a step draws (groups, timesteps, noise) depends only on the run's seed and the number of the step. So the same
groups give the same weights, whatever happened in between.

Shape legend: G groups, N samples of one group, S samples of all groups of a step, P ranked pairs, CHW one latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from lasro import wire
from lasro.config import SurrogateSettings
from lasro.errors import NonFiniteError
from lasro.functional.bradley_terry import bradley_terry_loss, pair_accuracy, pair_kinds, rank_correlation
from lasro.functional.lr_schedule import learning_rate
from lasro.functional.reward_totals import RewardObjective, tie_margin
from lasro.models.base import GeneratorModel
from lasro.models.device import device_memory
from lasro.models.frozen import FrozenModel
from lasro.models.surrogate import build_surrogate, draw_augmentation
from lasro.training.ranking import Ranker
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup

BETAS = (0.9, 0.99)
HELD_OUT_EVERY_STEPS = 32
"""Scoring the held-out groups costs about as much as a step, so they are scored only once in so many steps."""
MEASURING_SEED = 20_411
ALL_PAIRS = "all"
MEMORY_ADVICE = "lower surrogate.groups_per_step or seeds_per_prompt, or set model.gradient_checkpointing = true"
RANKING_ADVICE = 'lower seeds_per_prompt, or set surrogate.autocast = "bfloat16"'


class Pace(NamedTuple):
    """How one optimiser step is taken."""

    rate: float = 1.0
    """Share of the learning rate."""
    from_all: bool = False
    """Whether its groups are drawn from all alike, in place of half from the newest."""


def paces(steps: int, rate: float, settle: bool) -> list[Pace]:
    """Of all steps of a request. To settle, the rate falls by a cosine and old groups count as much as new ones."""
    if not settle:
        return [Pace(rate)] * steps
    return [Pace(learning_rate(rate, step, 1, steps), from_all=True) for step in range(1, steps + 1)]


class StepResult(NamedTuple):
    """One optimiser step: loss and pair accuracy before it (0 to 1), and the number of ranked pairs in its batch."""

    loss: float
    accuracy: float
    pairs: int


@dataclass(frozen=True)
class Ranking:
    """How the surrogate ranks some groups.

    `accuracy`: share of pairs ranked right; `gap`: mean of 1 - Spearman's correlation. None where there is no pair, or
    no correlation to measure. `by_kind`: accuracy of each kind of pairs that there is (`wire.PAIR_KINDS`), of groups
    that say what made their samples.
    """

    accuracy: float | None
    gap: float | None
    by_kind: Mapping[str, wire.KindAccuracy] = field(default_factory=dict)


class SurrogateMetrics(wire.Message):
    """How well the surrogate ranked when it was last measured; None where there was nothing to measure yet.

    Its JSON lies in the trainer's journal, so its fields keep their names.
    """

    held_out_accuracy: wire.Finite | None = None
    """Share of pairs of the held-out groups ranked right."""
    held_out_step: int | None = None
    """Optimiser steps behind the surrogate that was measured so."""
    reward_gap: wire.Finite | None = None
    """Mean of 1 - Spearman's correlation of score and reward within fresh groups."""


class SurrogateTrainer:
    """The surrogate being trained, its optimiser and its count of steps. Not thread-safe."""

    def __init__(
        self, model: GeneratorModel | FrozenModel, settings: SurrogateSettings, objective: RewardObjective
    ) -> None:
        """`model` as a FrozenModel where other threads use it too."""
        self.frozen = model if isinstance(model, FrozenModel) else FrozenModel(model)
        self.settings, self.objective = settings, objective
        self.surrogate = build_surrogate(self.frozen.model, settings)
        self.steps = 0
        self.metrics = SurrogateMetrics()
        self._optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.AdamW:
        trained = [parameter for parameter in self.surrogate.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            trained, lr=self.settings.learning_rate, betas=BETAS, weight_decay=self.settings.weight_decay
        )

    def load(self, state: dict[str, np.ndarray], steps: int) -> None:
        """Continue from these weights with a new optimiser; raises WireError for weights of another shape."""
        self.load_weights(state)
        self.steps = steps
        self._optimiser = self._new_optimiser()

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        """Replace the weights only, not optimiser and count of steps; raises WireError for weights of another shape."""
        self.surrogate.load_trained({name: torch.from_numpy(array) for name, array in state.items()})

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the trained weights by name, float32."""
        return {name: tensor.numpy() for name, tensor in self.surrogate.trained_state().items()}

    def ranker(self, replay: ReplayBuffer) -> Ranker:
        """Ranks groups with the reward scales and the tie margin of the replay buffer as it is now."""
        scales, margin = replay.scales(self.objective.normalised), self.settings.tie_margin
        if self.settings.tie_margin_unit == "spread":
            margin = tie_margin(margin, replay.totals(self.objective, scales))
        return Ranker(self.settings, self.objective, scales, margin)

    def optimiser_state(self) -> dict[str, np.ndarray]:
        """AdamW's `NAME/step`, `NAME/exp_avg` and `NAME/exp_avg_sq` for each parameter that was ever updated."""
        return {
            f"{name}/{key}": value.detach().cpu().numpy()
            for name, parameter in self.surrogate.named_parameters()
            for key, value in self._optimiser.state.get(parameter, {}).items()
        }

    def load_optimiser(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `optimiser_state()`."""
        for name, parameter in self.surrogate.named_parameters():
            if f"{name}/step" in state:
                step = torch.tensor(state[f"{name}/step"]).reshape(())  # a file has no scalars
                moments = {
                    key: torch.tensor(state[f"{name}/{key}"], device=parameter.device)
                    for key in ("exp_avg", "exp_avg_sq")
                }
                self._optimiser.state[parameter] = {"step": step, **moments}

    def step(self, replay: ReplayBuffer, pace: Pace = Pace()) -> StepResult | None:  # noqa: B008 - it is immutable
        """Draw a batch of groups and take one optimiser step; None where the batch has no ranked pair.

        Raises NonFiniteError for a loss or gradient that is not finite, with the weights as before, and
        DeviceMemoryError.
        """
        seeds = np.random.SeedSequence([self.settings.seed % 2**63, self.steps])
        groups = replay.draw(self.settings.groups_per_step, np.random.default_rng(seeds), pace.from_all)
        self.steps += 1
        winners_P, losers_P = self._batch_pairs(groups, self.ranker(replay))
        if len(winners_P) == 0:
            return None
        samples = sum(len(group.num_steps_N) for group in groups)
        with device_memory(f"surrogate step {self.steps} of {samples} samples", MEMORY_ADVICE):
            scores_S = self._augmented_scores(groups, torch.Generator().manual_seed(int(seeds.generate_state(1)[0])))
            loss = bradley_terry_loss(scores_S, winners_P, losers_P)
            self._apply(loss, pace.rate)
        accuracy = pair_accuracy(scores_S.detach(), winners_P, losers_P)
        return StepResult(loss.item(), accuracy or 0.0, len(winners_P))

    def _batch_pairs(self, groups: Sequence[ReplayGroup], ranker: Ranker) -> tuple[Tensor, Tensor]:
        empty = torch.empty(0, dtype=torch.int64)
        winners, losers, offset = [empty], [empty], 0
        for group in groups:
            winners_P, losers_P = ranker.pairs(group)
            winners.append(winners_P + offset)
            losers.append(losers_P + offset)
            offset += len(group.num_steps_N)
        device = self.frozen.model.device
        return torch.cat(winners).to(device), torch.cat(losers).to(device)

    def _augmented_scores(self, groups: Sequence[ReplayGroup], generator: torch.Generator) -> Tensor:
        """Scores of all samples, each group's with one timestep and one noise: pairs differ by their latents alone."""
        device = self.frozen.model.device
        latents_SCHW = torch.from_numpy(np.concatenate([group.latents_NCHW for group in groups])).to(device)
        counts_G = torch.tensor([len(group.num_steps_N) for group in groups], device=device)
        conditioning_G = self.frozen.embed([group.prompt for group in groups])
        shape = (len(groups), *self.frozen.model.latent_shape)
        timesteps_G, noise_GCHW = draw_augmentation(shape, self.settings.max_timestep, generator)
        return self.surrogate(
            latents_SCHW,
            timesteps_G.to(device).repeat_interleave(counts_G),
            noise_GCHW.to(device).repeat_interleave(counts_G, 0),
            conditioning_G.repeat_each(counts_G),
            self.settings.autocast,
        )

    def _apply(self, loss: Tensor, share: float) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        norm = clip_grad_norm_(trained, self.settings.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise NonFiniteError(
                f"surrogate step {self.steps}: got loss {loss.item()} and gradient norm {norm.item()}, expected "
                "finite numbers; the step was not applied, try a lower surrogate.learning_rate"
            )
        settings = self.settings
        rate = learning_rate(settings.learning_rate, self.steps, settings.warmup_steps, settings.decay_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = share * rate
        self._optimiser.step()

    @torch.no_grad()
    def rank(self, groups: Sequence[ReplayGroup], ranker: Ranker) -> Ranking:
        """Pair accuracy over all pairs, and the mean of 1 - Spearman's correlation, with one fixed augmentation."""
        device, settings = self.frozen.model.device, self.settings
        generator = torch.Generator().manual_seed(MEASURING_SEED)
        timestep, noise = draw_augmentation((1, *self.frozen.model.latent_shape), settings.max_timestep, generator)
        tallies: dict[str, list[wire.KindAccuracy]] = {kind: [] for kind in (ALL_PAIRS, *wire.PAIR_KINDS)}
        gaps = []
        for group in groups:
            count = len(group.num_steps_N)
            with device_memory(f"scores of a group of {count} samples", RANKING_ADVICE):
                scores_N = self.surrogate(
                    torch.from_numpy(group.latents_NCHW).to(device),
                    timestep.to(device).expand(count),
                    noise.to(device).expand(count, -1, -1, -1),
                    self.frozen.embed([group.prompt]).repeat_each(count),
                    settings.autocast,
                ).cpu()
            winners_P, losers_P = ranker.pairs(group)
            for kind, chosen_P in _kinds(group, winners_P, losers_P).items():
                accuracy = pair_accuracy(scores_N, winners_P[chosen_P], losers_P[chosen_P])
                if accuracy is not None:
                    tallies[kind].append(wire.KindAccuracy(accuracy=accuracy, pairs=int(chosen_P.sum())))
            values_N = ranker.values(group)
            ok_N = values_N.isfinite()
            correlation = rank_correlation(scores_N[ok_N], values_N[ok_N])
            if correlation is not None:
                gaps.append(1 - correlation)
        by_kind = {kind: wire.KindAccuracy.pooled(found) for kind, found in tallies.items() if found}
        overall = by_kind.pop(ALL_PAIRS, None)
        accuracy = None if overall is None else overall.accuracy
        return Ranking(accuracy, float(np.mean(gaps)) if gaps else None, by_kind)

    def measure(self, fresh: Ranking, held_out: Sequence[ReplayGroup], ranker: Ranker) -> None:
        """Update `metrics` by the ranking of fresh groups; score the held-out ones where that is due."""
        known, gap = self.metrics, self.metrics.reward_gap if fresh.gap is None else fresh.gap
        accuracy, step = known.held_out_accuracy, known.held_out_step
        if held_out and (step is None or self.steps - step >= HELD_OUT_EVERY_STEPS):
            accuracy, step = self.rank(held_out, ranker).accuracy, self.steps
        self.metrics = SurrogateMetrics(held_out_accuracy=accuracy, held_out_step=step, reward_gap=gap)


def _kinds(group: ReplayGroup, winners_P: Tensor, losers_P: Tensor) -> dict[str, Tensor]:
    """Masks bool [P] of all pairs and, where the group says what made its samples, of each kind."""
    found = {ALL_PAIRS: torch.ones(len(winners_P), dtype=torch.bool)}
    if group.origins is not None:
        seeds_N, draws_N, reference_N = map(torch.from_numpy, group.origins)
        num_steps_N = torch.from_numpy(group.num_steps_N)
        found |= pair_kinds(num_steps_N, seeds_N, draws_N, reference_N, winners_P, losers_P)
    return found

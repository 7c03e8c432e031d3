"""LaSRO: the generator ascends the gradient of a surrogate reward in latent space (arXiv 2411.15247, stage 2).

    L = c L_reg - sum_k c_k mean S[R_psi(z_k, c)]

z_k are the clean latents after k steps, for each k of `train.steps`, one and two by default; R_psi is the surrogate, S
normalises and clips its scores, or what these are above the frozen base's (`method.score_baseline`).

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lasro.config import LasroSettings, RunSettings
from lasro.config.method import NoiseTiltingSettings, RewardGuidedLcdSettings
from lasro.functional.generator_loss import score_ascent
from lasro.functional.score_normalisation import Moments, Scale, normalise_and_clip, score_scale, update_moments
from lasro.methods.base import Method
from lasro.methods.regulariser import Regulariser, hold, regulariser_of
from lasro.models.base import GeneratorModel
from lasro.models.surrogate import draw_augmentation
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.process_codec import CpuTensor
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource
from lasro.training.step_samples import StepSamples

EARLIER_SCORES = 16.0
"""How many scores the moments of an earlier commit's state count for, which does not say it."""


class SurrogateAscent(Method):
    """LaSRO's update. It remembers moving moments of the scores of each number of steps."""

    def __init__(
        self,
        settings: LasroSettings | RewardGuidedLcdSettings | NoiseTiltingSettings,
        regulariser: Regulariser,
        weights: Mapping[NumSteps, float],
    ) -> None:
        """`weights`: c_k of each number of steps, in rising order."""
        self.settings, self.regulariser, self.weights = settings, regulariser, weights
        self.moments: list[Moments | None] = [None] * len(weights)
        self.gains: list[Moments | None] = [None] * len(weights)
        """Those of R(z) - R(z_base), where that is the baseline."""

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> SurrogateAscent:
        assert isinstance(config.method, LasroSettings)
        return cls(config.method, regulariser_of(config.method, model), config.step_weights)

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        assert source is not None, "LaSRO needs a surrogate"
        settings, draws = self.settings, trainer.draws()
        steps = trainer.sample(batch, draws)  # z_k
        L_reg = self.regulariser(trainer, steps, draws)
        L, held = hold(trainer, steps, L_reg, settings)  # c L_reg, c by the distance from the base
        scores = [self._scores(trainer, samples, source, draws) for samples in steps]  # R_psi(z_k, c), dR_psi/dz_k
        scales, loss, means = self._scales(trainer, scores), L.item(), []
        for k, c_k in enumerate(self.weights.values()):
            R_B, share = scores[k].above_baseline_B, steps[k].share
            term, slope_BCHW = score_ascent(R_B, scores[k].dR_dz_BCHW, scales[k], c_k)  # -c_k mean S[R]
            L = L + share * (steps[k].z_BCHW * slope_BCHW).sum()  # its gradient by theta is that of the term
            loss += share * term.item()
            means.append(share * normalise_and_clip(R_B, scales[k]).mean().item())
        loss, regulariser, *means = trainer.sum_over_processes([loss, L_reg.item(), *means])
        by_steps = dict(zip(self.weights, means, strict=True))
        return StepStatistics(loss, regulariser, by_steps, grad_norm=trainer.apply(L), **held._asdict())

    def _scores(
        self, trainer: GeneratorTrainer, samples: StepSamples, source: ScoreSource, draws: torch.Generator
    ) -> Scores:
        """Of samples, augmented by draws that are the same for any number of processes, and for z and z_base."""
        shape, device = (samples.total, *trainer.model.latent_shape), trainer.model.device
        drawn = draw_augmentation(shape, source.max_timestep, draws)
        t_B, noise_BCHW = (values[samples.rows].to(device) for values in drawn)
        texts = [prompt.text for prompt in samples.prompts]

        def score(z_BCHW: Tensor) -> tuple[Tensor, Tensor]:
            parts = [
                source.score_and_gradient(z_BCHW[part], t_B[part], noise_BCHW[part], texts[part])
                for part in trainer.micro_batches(len(texts))
            ]
            R_B, dR_dz_BCHW = (torch.cat(values) for values in zip(*parts, strict=True))
            return R_B, dR_dz_BCHW

        R_B, dR_dz_BCHW = score(samples.z_BCHW.detach())
        baseline_B = score(samples.z_base_BCHW)[0] if self.settings.score_baseline == "base" else None
        return Scores(R_B, dR_dz_BCHW, baseline_B)

    def _scales(self, trainer: GeneratorTrainer, scores: Sequence[Scores]) -> list[Scale]:
        """S of each number of steps, the scores of all processes taken in.

        The width is that of R itself, whatever the baseline: at the start z is z_base, and their difference has none.
        """
        settings = self.settings
        everywhere = [torch.stack([step.R_B, step.above_baseline_B]) for step in scores]
        gathered = trainer.peers.all_gather(lambda: [each.cpu() for each in everywhere], list[CpuTensor])
        moments, gains = [], []
        for k, parts in enumerate(zip(*gathered, strict=True)):
            R_B, above_B = torch.cat(parts, dim=1)
            moments.append(update_moments(self.moments[k], R_B, settings.score_momentum))
            gains.append(update_moments(self.gains[k], above_B, settings.score_momentum))
        self.moments[:], self.gains[:] = moments, gains
        scales = [score_scale(own, moments, settings.score_scale, settings.score_clip) for own in moments]
        return [scale._replace(mean=gain.mean) for scale, gain in zip(scales, gains, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"moments": list(self.moments), "gains": list(self.gains)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.moments = [_moments(row) for row in state["moments"]]
        self.gains = [_moments(row) for row in state.get("gains", state["moments"])]


class Scores(NamedTuple):
    """R(z) [B], dR/dz [B, C, H, W] and, where it is asked for, R(z_base) [B]."""

    R_B: Tensor
    dR_dz_BCHW: Tensor
    baseline_B: Tensor | None

    @property
    def above_baseline_B(self) -> Tensor:
        """What S is computed of."""
        return self.R_B if self.baseline_B is None else self.R_B - self.baseline_B


def _moments(row: Sequence[float] | None) -> Moments | None:
    """Of a state; one of an earlier commit has mean and standard deviation alone, and 0 where it knew of no other."""
    if row is None or len(row) > 2:
        return None if row is None else Moments(*row)
    mean, std = row
    return Moments(mean, std**2, EARLIER_SCORES, EARLIER_SCORES, std, std) if std > 0 else None

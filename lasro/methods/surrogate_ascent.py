"""LaSRO: the generator ascends the gradient of a surrogate reward in latent space (arXiv 2411.15247, stage 2).

    L = c L_reg - c1 mean S[R_psi(z1, c)] - c2 mean S[R_psi(z2, c)]

z1 and z2 are the clean latents after one step and two; R_psi is the surrogate, S normalises and clips its scores.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lasro.config import LasroSettings, RunSettings
from lasro.functional.generator_loss import Moments, normalise_and_clip, score_ascent, update_moments
from lasro.methods.base import Method
from lasro.methods.regulariser import Regulariser, regulariser_of
from lasro.models.base import GeneratorModel
from lasro.models.surrogate import draw_augmentation
from lasro.training.generator_trainer import GeneratorTrainer, StepSamples, StepStatistics
from lasro.training.process_codec import CpuTensor
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource


class SurrogateAscent(Method):
    """LaSRO's update. It remembers one moving mean and standard deviation of the scores for each number of steps."""

    def __init__(self, settings: LasroSettings, regulariser: Regulariser) -> None:
        self.settings, self.regulariser = settings, regulariser
        self.moments: list[Moments | None] = [None, None]

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> SurrogateAscent:
        assert isinstance(config.method, LasroSettings)
        return cls(config.method, regulariser_of(config.method, model))

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        assert source is not None, "LaSRO needs a surrogate"
        settings, draws = self.settings, trainer.draws()
        steps = trainer.sample(batch, draws)  # z1, z2
        L_reg = self.regulariser(trainer, steps, draws)
        L = settings.regulariser_weight * L_reg
        loss, means = L.item(), []
        for k, c_k in enumerate((settings.one_step_weight, settings.two_step_weight)):
            R_B, dR_dz_BCHW = _scores(trainer, steps[k], source, draws)  # R_psi(z_k, c) and its gradient
            moments = self._moments(trainer, k, R_B)
            term, slope_BCHW = score_ascent(R_B, dR_dz_BCHW, moments, settings.score_clip, c_k)  # -c_k mean S[R]
            share = steps[k].share
            L = L + share * (steps[k].z_BCHW * slope_BCHW).sum()  # its gradient by theta is that of the term
            loss += share * term.item()
            means.append(share * normalise_and_clip(R_B, moments, settings.score_clip).mean().item())
        figures = trainer.sum_over_processes([loss, L_reg.item(), *means])
        return StepStatistics(*figures, grad_norm=trainer.apply(L))

    def _moments(self, trainer: GeneratorTrainer, k: int, R_B: Tensor) -> Moments:
        """The moving moments of step k's scores, those of all processes taken in."""
        everywhere_B = torch.cat(trainer.peers.all_gather(R_B.cpu, CpuTensor))
        moments = self.moments[k] = update_moments(self.moments[k], everywhere_B, self.settings.score_momentum)
        return moments

    def state(self) -> dict[str, Any]:
        return {"moments": list(self.moments)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.moments = [None if pair is None else Moments(*pair) for pair in state["moments"]]


def _scores(
    trainer: GeneratorTrainer, samples: StepSamples, source: ScoreSource, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """R(z) [B] and dR/dz [B, C, H, W] of samples, augmented by draws that are the same for any number of processes."""
    shape, device = (samples.total, *trainer.model.latent_shape), trainer.model.device
    drawn = draw_augmentation(shape, source.max_timestep, draws)
    t_B, noise_BCHW = (values[samples.rows].to(device) for values in drawn)
    z_BCHW, texts = samples.z_BCHW.detach(), [prompt.text for prompt in samples.prompts]
    parts = [
        source.score_and_gradient(z_BCHW[part], t_B[part], noise_BCHW[part], texts[part])
        for part in trainer.micro_batches(len(texts))
    ]
    R_B, dR_dz_BCHW = (torch.cat(values) for values in zip(*parts, strict=True))
    return R_B, dR_dz_BCHW

"""Reward-guided latent consistency distillation (Li et al., arXiv 2403.11027), with the surrogate as the reward.

    L = c L_lcm - mean S[R_psi(f_theta(x_t, t, c), c)]

x_t are stored latents diffused to random timesteps of the distillation: the generator goes on being distilled, and is
guided while it is. What it is trained on are not its own samples; these only teach the surrogate.

Shape legend: B batch, N stored latents, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lasro.config import RunSettings
from lasro.config.method import RewardGuidedLcdSettings
from lasro.functional.generator_loss import score_ascent
from lasro.functional.noise_schedule import solver_pairs
from lasro.functional.score_normalisation import normalise_and_clip
from lasro.methods.offline_pairs import predict_at
from lasro.methods.regulariser import LcmRegulariser, hold
from lasro.methods.surrogate_ascent import SurrogateAscent
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import SamplingStep
from lasro.models.distillation import SOLVER_STEPS
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource
from lasro.training.step_samples import StepSamples


class RewardGuidedLcd(SurrogateAscent):
    """An update draws `train.batch_size` stored latents; moments of the scores are those of all timesteps together."""

    def __init__(
        self, settings: RewardGuidedLcdSettings, regulariser: LcmRegulariser, weights: Mapping[NumSteps, float]
    ) -> None:
        super().__init__(settings, regulariser, weights)
        self.data = regulariser
        self.moments, self.gains = [None], [None]

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> RewardGuidedLcd:
        assert isinstance(config.method, RewardGuidedLcdSettings)
        model.check_consistency(f"method.type {config.method.type}")
        return cls(config.method, LcmRegulariser(model, config.method), config.step_weights)

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        assert source is not None, "reward-guided LCD needs a surrogate"
        draws = trainer.draws()
        samples = self._predictions(trainer, len(batch), draws)  # f_theta(x_t, t, c)
        L_reg = self.regulariser(trainer, [samples], draws)
        L, held = hold(trainer, [samples], L_reg, self.settings)  # c L_lcm, more of a distance beyond the drift budget
        scores = self._scores(trainer, samples, source, draws)  # R_psi(f, c), dR_psi/df
        (scale,) = self._scales(trainer, [scores])
        term, slope_BCHW = score_ascent(scores.above_baseline_B, scores.dR_dz_BCHW, scale, 1.0)  # -mean S[R]
        mean = samples.share * normalise_and_clip(scores.above_baseline_B, scale).mean().item()
        figures = [L.item() + samples.share * term.item(), L_reg.item(), mean]
        loss, regulariser, score = trainer.sum_over_processes(figures)
        grad_norm = trainer.apply(L + samples.share * (samples.z_BCHW * slope_BCHW).sum())
        by_steps = dict.fromkeys(self.weights, score)
        return StepStatistics(loss, regulariser, by_steps, grad_norm=grad_norm, **held._asdict())

    def _predictions(self, trainer: GeneratorTrainer, count: int, draws: torch.Generator) -> StepSamples:
        """f_theta of this process's share of `count` diffused latents, with a gradient."""
        model, here = trainer.model, trainer.peers.share(count)
        rows_B = torch.randint(0, len(self.data.latents_NCHW), (count,), generator=draws)[here]
        steps_B = torch.randint(0, SOLVER_STEPS, (count,), generator=draws)[here]
        noise_BCHW = torch.randn((count, *model.latent_shape), generator=draws)[here].to(model.device)
        t_B = solver_pairs(SOLVER_STEPS)[0][steps_B].to(model.device)
        x_t_BCHW = model.diffuse(self.data.latents_NCHW[rows_B].to(model.device), noise_BCHW, t_B)
        prompts = [Prompt(self.data.prompts[row]) for row in rows_B.tolist()]
        conditioning = model.embed([prompt.text for prompt in prompts])
        return StepSamples(
            SamplingStep(0, 0),  # of no sampler: each row has a timestep of its own
            x_t_BCHW,
            predict_at(trainer, x_t_BCHW, t_B, conditioning),
            prompts,
            conditioning,
            here,
            count,
            lambda *_: predict_at(trainer, x_t_BCHW, t_B, conditioning, base=True),
        )

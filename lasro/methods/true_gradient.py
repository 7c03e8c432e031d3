"""The true gradient: the generator ascends rewards that are torch functions, through the decoder, without a surrogate.

    L = c L_reg - sum_k c_k mean r(D(z_k), c)

z_k are the clean latents after k steps, for each k of `train.steps`; D is the VAE's decoder. It is the limit of what
any surrogate of such a reward can teach (as in DRaFT-K, Clark et al., arXiv 2309.17400, K being
`train.gradient_steps`), and no way to use a reward that cannot be differentiated.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lasro.config import RewardSettings, RunSettings
from lasro.config.method import TrueGradientSettings
from lasro.errors import ConfigError
from lasro.methods.base import Method
from lasro.methods.regulariser import Regulariser, hold, regulariser_of
from lasro.models.base import GeneratorModel
from lasro.num_steps import NumSteps
from lasro.reward_function import load_reward
from lasro.torch_reward import TorchReward
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource
from lasro.training.step_samples import StepSamples


class TrueGradient(Method):
    """Updates by the gradient of the run's weighted sum of rewards, each served from a `TorchReward`."""

    needs_surrogate = False

    def __init__(
        self,
        settings: TrueGradientSettings,
        regulariser: Regulariser,
        rewards: Sequence[tuple[float, TorchReward]],
        weights: Mapping[NumSteps, float],
    ) -> None:
        """`rewards` come with their weights in the sum; `weights`: c_k of each number of steps, in rising order."""
        self.settings, self.regulariser, self.rewards, self.weights = settings, regulariser, rewards, weights

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> TrueGradient:
        assert isinstance(config.method, TrueGradientSettings)
        if config.objective.combine != "sum":
            raise ConfigError(f"objective.combine: got {config.objective.combine}, expected sum for the true gradient")
        rewards = [(reward.weight, torch_reward_of(reward)) for reward in config.rewards if reward.weight]
        return cls(config.method, regulariser_of(config.method, model), rewards, config.step_weights)

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        settings, draws = self.settings, trainer.draws()
        steps = trainer.sample(batch, draws)  # z_k
        L_reg = self.regulariser(trainer, steps, draws)
        L, held = hold(trainer, steps, L_reg, settings)  # c L_reg, c by the distance from the base
        loss, means = L.item(), []
        for samples, c_k in zip(steps, self.weights.values(), strict=True):
            r_B, dr_dz_BCHW = self._rewards_and_gradient(trainer, samples)
            L = L - c_k * samples.share * (samples.z_BCHW * dr_dz_BCHW).sum() / len(r_B)
            means.append(samples.share * r_B.mean().item())
            loss -= c_k * means[-1]
        loss, regulariser, *means = trainer.sum_over_processes([loss, L_reg.item(), *means])
        by_steps = dict(zip(self.weights, means, strict=True))
        return StepStatistics(loss, regulariser, by_steps, grad_norm=trainer.apply(L), **held._asdict())

    def _rewards_and_gradient(self, trainer: GeneratorTrainer, samples: StepSamples) -> tuple[Tensor, Tensor]:
        """r(D(z), c) [B] and its gradient by z [B, C, H, W], a micro-batch's activations held at a time."""
        rewards, gradients = [], []
        for part in trainer.micro_batches(len(samples.prompts)):
            z_BCHW, prompts = samples.z_BCHW[part].detach().requires_grad_(), samples.prompts[part]
            images_BCHW = trainer.model.decode_pixels(z_BCHW).clamp(0, 1)
            texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
            r_B = torch.zeros(len(prompts), device=z_BCHW.device)
            for weight, reward in self.rewards:
                r_B = r_B + weight * reward.differentiable(images_BCHW, texts, metadata)
            gradients.append(torch.autograd.grad(r_B.sum(), z_BCHW)[0])
            rewards.append(r_B.detach())
        return torch.cat(rewards), torch.cat(gradients)


def torch_reward_of(settings: RewardSettings) -> TorchReward:
    """The function that a reward is served from; raises ConfigError where it is none that has a gradient."""
    wanted = 'expected serve = "module:function" of a @torch_reward (lasro.torch_reward) for the true gradient'
    if settings.serve is None or settings.floor is not None or settings.normalise:
        raise ConfigError(f"reward {settings.name}: {wanted}, without floor and normalise")
    if str(settings.import_path) not in sys.path:  # where the local stack looks for it too
        sys.path.insert(0, str(settings.import_path))
    reward = load_reward(settings.serve)
    if not isinstance(reward, TorchReward):
        raise ConfigError(f"reward {settings.name}: got {settings.serve}, which has no gradient; {wanted}")
    return reward

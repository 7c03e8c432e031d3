"""One step of each kind that a run does, as its processes do it: on shapes to compute memory, for real to measure it.

Shape legend: B samples, CHW one latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from lasro.config import RunSettings
from lasro.functional.bradley_terry import bradley_terry_loss
from lasro.methods.policy import PolicyMethod
from lasro.methods.registry import create_trainer, method_of
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.surrogate import build_surrogate, score_and_gradient
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_latents
from lasro.training.score_source import LocalSurrogate, ScoreSource

PROMPT = Prompt("a photo of a cat")
SERVED_TOGETHER = 32
"""Of a request for gradients, what the trainer computes in one pass."""


class ClientSteps:
    """What the client holds, and what it does in a round."""

    def __init__(self, config: RunSettings, model: GeneratorModel, backbone: GeneratorModel | None = None) -> None:
        """`backbone`: what the surrogate stands on in weights mode, None for `model`."""
        self.config, self.model = config, model
        self.trainer = create_trainer(config, model)
        self.source: ScoreSource | None = None
        if method_of(config).needs_surrogate:
            weights, trunk = config.train.mode == "weights", backbone or model
            self.source = LocalSurrogate(build_surrogate(trunk, config.surrogate)) if weights else Asked(config)

    @torch.no_grad()
    def generate(self) -> None:
        """Own and reference samples of a round's prompts, one group's images after the other."""
        settings, model = self.config.train, self.model
        K, D, R = settings.seeds_per_prompt, settings.second_step_draws, settings.num_reference_seeds
        prompts = settings.prompts_per_round
        conditioning = _conditioning(model, prompts)
        taken = []
        for seeds, base in ((K, False), (R, True)):
            noises = [_latents(model, prompts * seeds * (D if i else 1)) for i in range(max(settings.steps))]
            taken += sample_latents(model, noises, conditioning.repeat_each(seeds), base, settings.steps)
        for start in range(prompts):
            model.decode_pixels(torch.cat([z[start::prompts] for z in taken]))

    def update(self) -> None:
        """One update of the generator; of a method that learns from rewards, whose values shapes cannot tell, the
        predictions that it makes with a gradient."""
        train, trainer = self.config.train, self.trainer
        if not trainer.method.learns_from_rewards:
            trainer.step([PROMPT] * train.batch_size, self.source)
        elif isinstance(trainer.method, PolicyMethod):
            trainer.apply(_mean([self._predict(step, count) for step, count in self._policy_steps()]))
        else:  # fresh samples, and pairs of stored ones
            fresh = [samples.z_BCHW for samples in trainer.sample([PROMPT] * train.batch_size, trainer.draws())]
            trainer.apply(_mean([*fresh, self._predict(self.model.steps(1)[0], 2 * train.batch_size)]))

    def _policy_steps(self) -> list[tuple[SamplingStep, int]]:
        """The steps that add noise, and how many states of a round each is taken from."""
        train = self.config.train
        seeds = train.prompts_per_round * train.seeds_per_prompt
        steps = [step for schedule in self.trainer.schedules.values() for step in schedule[:-1]]
        return [(step, seeds * (train.second_step_draws if step.index else 1)) for step in steps]

    def _predict(self, step: SamplingStep, count: int) -> Tensor:
        return self.trainer.predict(_latents(self.model, count), step, _conditioning(self.model, count))


class Asked:
    """In gradient mode scores come from the trainer: nothing is computed here."""

    def __init__(self, config: RunSettings) -> None:
        self.max_timestep = config.surrogate.max_timestep

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Of no meaning."""
        return torch.arange(len(latents_BCHW), device=latents_BCHW.device).float(), torch.ones_like(latents_BCHW)


class TrainerSteps:
    """What the surrogate trainer holds for a run, and what it does."""

    def __init__(self, config: RunSettings, model: GeneratorModel) -> None:
        self.config, self.model, settings = config, model, config.surrogate
        self.trained, self.published = build_surrogate(model, settings), build_surrogate(model, settings)
        self.parameters = [each for each in self.trained.parameters() if each.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=settings.learning_rate)

    def step(self) -> None:
        """One optimiser step on as many groups as the settings say."""
        settings, train = self.config.surrogate, self.config.train
        of_group = (train.seeds_per_prompt + train.num_reference_seeds) * sum(train.samples_per_seed.values())
        latents = _latents(self.model, settings.groups_per_step * of_group)
        count = len(latents)
        scores_B = self.trained(latents, *_augmentation(latents), _conditioning(self.model, count), settings.autocast)
        pairs = torch.arange(count // 2, device=latents.device)
        self.optimiser.zero_grad(set_to_none=True)
        bradley_terry_loss(scores_B, pairs, pairs + count // 2).backward()
        clip_grad_norm_(self.parameters, settings.clip_norm)
        self.optimiser.step()

    def serve(self) -> None:
        """Scores and gradients of an update's samples in gradient mode, the score of one to be found ready else."""
        train = self.config.train
        asked = train.micro_batch_size or train.batch_size
        latents = _latents(self.model, min(asked, SERVED_TOGETHER) if train.mode == "gradient" else 1)
        conditioning, dtype = _conditioning(self.model, len(latents)), self.config.surrogate.serve_autocast
        score_and_gradient(self.published, latents, *_augmentation(latents), conditioning, dtype)


def _mean(predictions: Sequence[Tensor]) -> Tensor:
    """Of all, held together until backward."""
    return torch.stack([z_BCHW.mean() for z_BCHW in predictions]).mean()


def _latents(model: GeneratorModel, count: int) -> Tensor:
    return torch.randn(count, *model.latent_shape, device=model.device)


def _augmentation(latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    timesteps_B = torch.zeros(len(latents_BCHW), dtype=torch.int64, device=latents_BCHW.device)
    return timesteps_B, torch.randn_like(latents_BCHW)


def _conditioning(model: GeneratorModel, count: int) -> Conditioning:
    return model.embed([PROMPT.text]).repeat_each(count)

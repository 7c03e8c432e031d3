"""L_reg: what keeps the generator near what it was, or near what its distillation taught it.

Shape legend: N stored latents, B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lasro.config.method import RegulariserSettings
from lasro.errors import ConfigError
from lasro.functional.drift_control import holding_weight
from lasro.functional.generator_loss import stay_near_base
from lasro.models.base import GeneratorModel
from lasro.models.distillation import SOLVER_STEPS, DistillationLoss
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.step_samples import StepSamples
from lasro.wire import unpack_prompts, unpack_tensors

BATCH = 8
Regulariser = Callable[[GeneratorTrainer, Sequence[StepSamples], torch.Generator], Tensor]
"""This process's part of L_reg, a scalar, for the samples of an update."""


def regulariser_of(settings: RegulariserSettings, model: GeneratorModel) -> Regulariser:
    """The one that the settings name; raises ConfigError or ModelError for a teacher that cannot be used."""
    return LcmRegulariser(model, settings) if settings.regulariser == "lcm" else distance_to_base


def distance_to_base(trainer: GeneratorTrainer, steps: Sequence[StepSamples], draws: torch.Generator) -> Tensor:
    """Squared distance to the frozen base's predictions for the same inputs, summed over the steps."""
    total = torch.zeros((), device=trainer.model.device)
    for step in steps:
        total = total + step.share * stay_near_base(step.z_BCHW, step.z_base_BCHW)
    return total


class HoldSettings(Protocol):
    """What `hold` needs to know."""

    @property
    def regulariser(self) -> str: ...

    @property
    def regulariser_weight(self) -> float: ...


class Held(NamedTuple):
    """How far an update's samples are from the base's, sqrt(D^2), and the weight c that the regulariser got for it.

    The distance is None where nobody asked for it: it costs the base's predictions.
    """

    distance: float | None
    regulariser_weight: float


def hold(
    trainer: GeneratorTrainer, steps: Sequence[StepSamples], L_reg: Tensor, settings: HoldSettings
) -> tuple[Tensor, Held]:
    """This process's part of c L_reg, with c raised where the generator is farther than `trainer.allowed_distance`.

    What holds it is its distance from the base, also where L_reg is another regulariser.
    """
    is_distance = settings.regulariser == "base"
    c, allowed = settings.regulariser_weight, trainer.allowed_distance
    if allowed is None and not is_distance:
        return c * L_reg, Held(None, c)
    D2 = L_reg if is_distance else distance_to_base(trainer, steps, torch.Generator())
    (squared_distance,) = trainer.sum_over_processes([D2.item()])
    extra = 0.0 if allowed is None else holding_weight(0.0, squared_distance, allowed)
    L = (c + extra) * L_reg if is_distance else c * L_reg + extra * D2
    return L, Held(squared_distance**0.5, c + extra)


class LcmRegulariser:
    """L_lcm of random stored latents at random solver steps; the guidance is the one that the model is sampled at."""

    def __init__(self, model: GeneratorModel, settings: RegulariserSettings) -> None:
        assert settings.teacher is not None
        assert settings.teacher_latents is not None
        self.model = model
        self.distillation_loss = model.distillation_loss(settings.teacher)
        try:
            tensors, metadata = unpack_tensors(settings.teacher_latents.read_bytes())
        except OSError as error:
            raise ConfigError(f"method.teacher_latents: {settings.teacher_latents} ({error.strerror})") from error
        latents = tensors.get("latents")
        if latents is None or latents.shape[1:] != model.latent_shape:
            got = None if latents is None else latents.shape[1:]
            raise ConfigError(f"method.teacher_latents: got latents {got}, expected [N, *{model.latent_shape}]")
        self.latents_NCHW = torch.from_numpy(latents).float()
        self.prompts = unpack_prompts(metadata, len(latents))
        model.check_prompts(self.prompts)

    def __call__(self, trainer: GeneratorTrainer, steps: Sequence[StepSamples], draws: torch.Generator) -> Tensor:
        """This process's rows of the drawn batch, a micro-batch's activations held at a time."""
        rows = torch.randint(0, len(self.latents_NCHW), (BATCH,), generator=draws)
        steps_B = torch.randint(0, SOLVER_STEPS, (BATCH,), generator=draws)
        noise_BCHW = torch.randn((BATCH, *self.model.latent_shape), generator=draws)
        here, device = trainer.peers.share(BATCH), self.model.device
        z_BCHW, noise_BCHW, own_steps_B = (
            values[here].to(device) for values in (self.latents_NCHW[rows], noise_BCHW, steps_B)
        )
        prompts = [self.prompts[row] for row in rows[here].tolist()]
        return distillation_part(trainer, self.distillation_loss, z_BCHW, noise_BCHW, own_steps_B, prompts, BATCH)


def distillation_part(
    trainer: GeneratorTrainer,
    loss: DistillationLoss,
    z_BCHW: Tensor,
    noise_BCHW: Tensor,
    steps_B: Tensor,
    prompts: Sequence[str],
    total: int,
    weights_B: Tensor | None = None,
) -> Tensor:
    """This process's part of the mean of `loss` over `total` samples, a micro-batch's activations held at a time."""
    parts = trainer.micro_batches(len(prompts))
    found = torch.zeros((), device=trainer.model.device)
    for part in parts:
        weights = None if weights_B is None else weights_B[part]
        mean = loss(z_BCHW[part], noise_BCHW[part], steps_B[part], prompts[part], len(parts) > 1, weights)
        found = found + mean * len(prompts[part]) / total
    return found

"""One update of the generator: sample two steps, ask for d score / d latent, backpropagate it, average.

Where the gradient comes from is an argument, a `ScoreSource`.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lasro.adapters import add_generator_lora, parameters_set, save_adapter
from lasro.backbone import Conditioning, TwoStepModel
from lasro.config import RunSettings
from lasro.errors import NonFiniteError
from lasro.objective import Moments, ema_update, normalise_and_clip, score_ascent, stay_near_base, update_moments
from lasro.schedule import learning_rate
from lasro.surrogate import draw_augmentation
from lasro.two_step import add_noise
from lasro_client.lcm_regulariser import LcmRegulariser
from lasro_client.processes import Processes, check_enough
from lasro_client.sampling import TWO_STEPS, draw_noises, generator_for, two_step_latents
from lasro_client.score_sources import ScoreSource


class StepStatistics(NamedTuple):
    """`score_1`, `score_2`: mean S[R] of one- and two-step samples, dimensionless."""

    loss: float
    regulariser: float
    score_1: float
    score_2: float
    grad_norm: float


class GeneratorTrainer:
    """The generator's adapter, its optimiser, its average, and the moments of the scores: all that a resume needs.

    Among several processes each has the same; see `step`.
    """

    def __init__(self, model: TwoStepModel, config: RunSettings, peers: Processes | None = None) -> None:
        self.model, self.config, self.seed = model, config, config.seed
        self.peers = peers or Processes()
        check_enough("train.batch_size", config.train.batch_size, self.peers)
        self.parameters = add_generator_lora(model, config.lora, config.seed)
        self.average = [p.detach().clone() for p in self.parameters]
        self._untrained = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.train.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.moments: list[Moments | None] = [None, None]
        self.version = 0
        self.decay_steps = config.train.decay_steps
        lcm = config.objective.regulariser == "lcm"
        self.lcm = LcmRegulariser(model, config.objective) if lcm else None

    def step(self, prompts: list[str], source: ScoreSource) -> StepStatistics:
        """One AdamW step on L = c L_reg - c1 S[R(z1)] - c2 S[R(z2)], means over the prompts.

        Of several processes, all called with the same prompts, each takes a share of them; S has the moments of all.
        Raises NonFiniteError before anything that is not finite could enter the optimiser.
        """
        model, settings, shape = self.model, self.config.objective, (len(prompts), *self.model.latent_shape)
        generator = generator_for(self.seed, "generator", self.version)
        here = self.peers.share(len(prompts))
        noises = [noise[here] for noise in draw_noises(model, len(prompts), generator)]
        texts = prompts[here]
        conditioning = model.embed(texts)
        latents = two_step_latents(model, noises, conditioning)
        regulariser = self._regulariser(latents, noises, conditioning, generator)
        objective = settings.regulariser_weight * regulariser
        loss, means = objective.item(), []
        for stage, weight in enumerate((settings.one_step_weight, settings.two_step_weight)):
            z = latents[stage].detach()
            t, noise = (
                drawn[here] for drawn in draw_augmentation(shape, self.config.surrogate.max_timestep, generator)
            )
            scores, slope = source.score_and_gradient(z, t.to(model.device), noise.to(model.device), texts)
            of_all = torch.cat(self.peers.all_of(scores.cpu))
            moments = update_moments(self.moments[stage], of_all, settings.score_momentum)
            term, gradient = score_ascent(scores, slope, moments, settings.score_clip, weight)
            objective = objective + (latents[stage] * gradient).sum()
            loss += term.item()
            means.append(normalise_and_clip(scores, moments, settings.score_clip).mean().item())
            self.moments[stage] = moments
        share = len(texts) / len(prompts)
        told = torch.tensor([loss, regulariser.item(), *means], dtype=torch.float64) * share
        self.peers.sum_([told])
        return StepStatistics(*told.tolist(), grad_norm=self._descend(objective * share))

    def _regulariser(
        self, latents: list[Tensor], noises: list[Tensor], conditioning: Conditioning, generator: torch.Generator
    ) -> Tensor:
        if self.lcm is not None:
            return self.lcm.loss(generator)
        abar = self.model.alphas_cumprod_T[TWO_STEPS[1]]
        inputs = [noises[0], add_noise(latents[0].detach(), noises[1], abar)]
        with torch.no_grad():
            base = [
                self.model.predict_clean(x_t, t, conditioning, base=True)
                for x_t, t in zip(inputs, TWO_STEPS, strict=True)
            ]
        return stay_near_base(*latents, *base)

    def _descend(self, objective: Tensor) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        self.peers.sum_(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.train.clip_norm).item()
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"generator update {self.version}: gradient norm {norm}, expected a finite one; "
                "lower train.learning_rate or raise objective.regulariser_weight"
            )
        settings = self.config.train
        rate = learning_rate(settings.learning_rate, self.version + 1, settings.warmup_steps, self.decay_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        ema_update(self.average, list(self.parameters), self.config.train.ema)
        self.version += 1
        return norm

    def return_to(self, state: dict[str, Tensor] | None) -> None:
        """Go on from an earlier `state()`, null for the untouched base. Updates are counted on: no draw is repeated."""
        self.optimiser.state.clear()
        if state is not None:
            self.load_state(state, self.version, self.moments)
            return
        with torch.no_grad():
            for values in (list(self.parameters), self.average):
                for value, untrained in zip(values, self._untrained, strict=True):
                    value.copy_(untrained)

    def restart(self, seed: int) -> None:
        """Begin again from the base with a fresh optimiser, and with the draws of another seed."""
        self.return_to(None)
        self.seed, self.version = seed, 0
        self.moments = [None, None]

    def save(self, folder: Path) -> Path:
        """Write the averaged adapter so that stock diffusers loads it with `load_lora_weights(folder)`."""
        with parameters_set(self.parameters, self.average):
            return save_adapter(self.model, folder, self.config.lora)

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resume needs, by name."""
        tensors = {}
        for i, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            tensors |= {f"{i}.parameter": parameter.detach(), f"{i}.average": average}
            tensors |= {f"{i}.{key}": value for key, value in self.optimiser.state.get(parameter, {}).items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], version: int, moments: list[Moments | None]) -> None:
        """Continue from `state()`."""
        for i, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            with torch.no_grad():
                parameter.copy_(tensors[f"{i}.parameter"])
                average.copy_(tensors[f"{i}.average"])
            if f"{i}.step" in tensors:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimiser.state[parameter] = {key: tensors[f"{i}.{key}"].clone() for key in keys}
                for key in keys[1:]:
                    self.optimiser.state[parameter][key] = self.optimiser.state[parameter][key].to(parameter.device)
        self.version, self.moments = version, moments

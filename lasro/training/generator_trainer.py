"""One update of the generator: sample two steps, ask for d score / d latent, backpropagate it, average.

Where the gradient comes from is an argument, a `ScoreSource`.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lasro.config import RunSettings
from lasro.errors import NonFiniteError
from lasro.functional.consistency import add_noise
from lasro.functional.generator_loss import (
    Moments,
    ema_update,
    normalise_and_clip,
    score_ascent,
    stay_near_base,
    update_moments,
)
from lasro.functional.lr_schedule import learning_rate
from lasro.models.device import device_memory
from lasro.models.lora import add_generator_lora, parameters_set, save_adapter
from lasro.models.sdxl import Conditioning, TwoStepModel
from lasro.models.surrogate import draw_augmentation
from lasro.training.distributed import DistributedContext, check_enough
from lasro.training.lcm_regulariser import LcmRegulariser
from lasro.training.process_codec import CpuTensor
from lasro.training.sampling import TWO_STEPS, draw_noises, generator_for
from lasro.training.score_source import ScoreSource

MEMORY_ADVICE = "lower train.micro_batch_size, or set model.gradient_checkpointing = true"


class StepStatistics(NamedTuple):
    """`score_1`, `score_2`: mean S[R] of one- and two-step samples, dimensionless."""

    loss: float
    regulariser: float
    score_1: float
    score_2: float
    grad_norm: float


class StepSamples(NamedTuple):
    """What this process has of one consistency step: `rows` of the `total` that all processes take to that step."""

    timestep: int
    x_t_BCHW: Tensor
    z_BCHW: Tensor
    prompts: list[str]
    conditioning: Conditioning
    rows: slice
    total: int

    @property
    def share(self) -> float:
        """Of the mean over all processes' samples, what this process's mean counts."""
        return len(self.prompts) / self.total


class GeneratorTrainer:
    """The generator's adapter, its optimiser, its average, and the moments of the scores: all that a resume needs.

    Among several processes each has the same; see `step`.
    """

    def __init__(self, model: TwoStepModel, config: RunSettings, peers: DistributedContext | None = None) -> None:
        self.model, self.config, self.seed = model, config, config.seed
        self.peers = peers or DistributedContext()
        train = config.train
        check_enough("train.batch_size / train.two_step_every", train.batch_size // train.two_step_every, self.peers)
        self.parameters = add_generator_lora(model, config.lora, config.seed)
        self.average = [p.detach().clone() for p in self.parameters]
        self._untrained = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.train.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.moments: list[Moments | None] = [None, None]
        self.version = 0
        self.decay_steps = config.train.decay_steps
        lcm = config.method.regulariser == "lcm"
        self.lcm = LcmRegulariser(model, config.method) if lcm else None

    def step(self, prompts: list[str], source: ScoreSource) -> StepStatistics:
        """One AdamW step on L = c L_reg - c1 S[R(z1)] - c2 S[R(z2)], means over the prompts.

        z2 is drawn for every `train.two_step_every`-th prompt. Of several processes, all called with the same prompts,
        each takes a share of them; S has the moments of all.
        Raises NonFiniteError before anything that is not finite could enter the optimiser, and DeviceMemoryError.
        """
        with device_memory(f"generator update {self.version} of {len(prompts)} prompts", MEMORY_ADVICE):
            return self._step(prompts, source)

    def _step(self, prompts: list[str], source: ScoreSource) -> StepStatistics:
        settings = self.config.method
        generator = generator_for(self.seed, "generator", self.version)
        steps = self._sample(prompts, generator)
        regulariser = self._regulariser(steps, generator)
        objective = settings.regulariser_weight * regulariser
        loss, means = objective.item(), []
        for stage, weight in enumerate((settings.one_step_weight, settings.two_step_weight)):
            samples = steps[stage]
            scores, slope = self._scores(samples, source, generator)
            moments = self._moments(stage, scores)
            term, gradient = score_ascent(scores, slope, moments, settings.score_clip, weight)
            objective = objective + samples.share * (samples.z_BCHW * gradient).sum()
            loss += samples.share * term.item()
            means.append(samples.share * normalise_and_clip(scores, moments, settings.score_clip).mean().item())
        told = torch.tensor([loss, regulariser.item(), *means], dtype=torch.float64)
        self.peers.sum_([told])
        return StepStatistics(*told.tolist(), grad_norm=self._descend(objective))

    def _sample(self, prompts: list[str], generator: torch.Generator) -> list[StepSamples]:
        """This process's share of both steps. z1 enters the second one as a constant, as in `two_step.sample`."""
        model, every = self.model, self.config.train.two_step_every
        x_1, noise_2 = draw_noises(model, len(prompts), generator)
        here = self.peers.share(len(prompts))
        conditioning = model.embed(prompts[here])
        z_1 = self._predict(x_1[here], TWO_STEPS[0], conditioning)
        first = StepSamples(TWO_STEPS[0], x_1[here], z_1, prompts[here], conditioning, here, len(prompts))
        rows = slice(math.ceil(here.start / every), math.ceil(here.stop / every))
        chosen = torch.arange(rows.start * every, here.stop, every, device=model.device)
        within = chosen - here.start
        x_2 = add_noise(z_1.detach()[within], noise_2[chosen], model.alphas_cumprod_T[TWO_STEPS[1]])
        conditioning = conditioning.rows(within)
        z_2 = self._predict(x_2, TWO_STEPS[1], conditioning)
        texts, total = [prompts[row] for row in chosen.tolist()], math.ceil(len(prompts) / every)
        return [first, StepSamples(TWO_STEPS[1], x_2, z_2, texts, conditioning, rows, total)]

    def _predict(self, x_t_BCHW: Tensor, timestep: int, conditioning: Conditioning, base: bool = False) -> Tensor:
        """f_theta(x_t, t, c), a micro-batch's activations held at a time: backward computes them once more."""
        predict = partial(self.model.predict_clean, base=base)
        parts = self._micro_batches(len(x_t_BCHW))
        if len(parts) == 1:
            return predict(x_t_BCHW, timestep, conditioning)
        inputs = [(x_t_BCHW[part], timestep, conditioning.rows(part)) for part in parts]
        return torch.cat([checkpoint(predict, *each, use_reentrant=False) for each in inputs])

    def _micro_batches(self, count: int) -> list[slice]:
        """Rows that go through a network together."""
        size = self.config.train.micro_batch_size or count
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def _scores(self, samples: StepSamples, source: ScoreSource, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """R(z) and dR/dz of samples, augmented by draws that are the same for any number of processes."""
        shape, device = (samples.total, *self.model.latent_shape), self.model.device
        drawn = draw_augmentation(shape, self.config.surrogate.max_timestep, generator)
        t, noise = (values[samples.rows].to(device) for values in drawn)
        z = samples.z_BCHW.detach()
        of_parts = [
            source.score_and_gradient(z[part], t[part], noise[part], samples.prompts[part])
            for part in self._micro_batches(len(z))
        ]
        scores_B, gradient_BCHW = (torch.cat(values) for values in zip(*of_parts, strict=True))
        return scores_B, gradient_BCHW

    def _moments(self, stage: int, scores_B: Tensor) -> Moments:
        """The moving moments of a stage after all processes' scores."""
        of_all = torch.cat(self.peers.all_gather(scores_B.cpu, CpuTensor))
        moments = update_moments(self.moments[stage], of_all, self.config.method.score_momentum)
        self.moments[stage] = moments
        return moments

    def _regulariser(self, steps: list[StepSamples], generator: torch.Generator) -> Tensor:
        """This process's part of L_reg."""
        if self.lcm is not None:
            return self.lcm.loss(generator) * steps[0].share
        total = torch.zeros((), device=self.model.device)
        for step in steps:
            with torch.no_grad():
                z_base = self._predict(step.x_t_BCHW, step.timestep, step.conditioning, base=True)
            total = total + step.share * stay_near_base(step.z_BCHW, z_base)
        return total

    def _descend(self, objective: Tensor) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        self.peers.sum_(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.train.clip_norm).item()
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"generator update {self.version}: gradient norm {norm}, expected a finite one; "
                "lower train.learning_rate or raise method.regulariser_weight"
            )
        settings = self.config.train
        rate = learning_rate(settings.learning_rate, self.version + 1, settings.warmup_steps, self.decay_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        ema_update(self.average, list(self.parameters), self.config.train.ema)
        self.version += 1
        return norm

    def restore(self, state: dict[str, Tensor] | None) -> None:
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
        self.restore(None)
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

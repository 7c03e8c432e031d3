"""Updates of a generator: it samples its steps, takes a method's loss, and keeps adapter, optimiser and average.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lasro.config import LoraSettings, TrainSettings
from lasro.errors import NonFiniteError
from lasro.functional.generator_loss import ema_update
from lasro.functional.lr_schedule import learning_rate
from lasro.models.base import Conditioning, GeneratorModel, SamplingStep
from lasro.models.device import device_memory
from lasro.models.lora import parameters_set
from lasro.training.distributed import DistributedContext, check_enough
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.sampling import draw_noises, generator_for, take_steps
from lasro.training.score_source import ScoreSource

MEMORY_ADVICE = "lower train.micro_batch_size, or set model.gradient_checkpointing = true"
NUM_STEPS = 2
"""Each update samples, scores and trains one step and two."""


class StepStatistics(NamedTuple):
    """`score_1`, `score_2`: mean of what a method ascends at one step and two; LaSRO's S[R] has no dimension. None: of
    no sample known."""

    loss: float
    regulariser: float
    score_1: float | None
    score_2: float | None
    grad_norm: float
    distance: float | None
    """From the base: root of the mean square distances of latents, summed over the steps. None: not measured."""
    regulariser_weight: float
    """c, as it was for this update."""


@dataclass(frozen=True, eq=False)
class StepSamples:
    """What this process has of one sampling step: `rows` of the `total` that all processes take to that step."""

    step: SamplingStep
    x_t_BCHW: Tensor
    z_BCHW: Tensor
    prompts: list[Prompt]
    conditioning: Conditioning
    rows: slice
    total: int
    predict_base: Callable[[Tensor, SamplingStep, Conditioning], Tensor]

    @cached_property
    def z_base_BCHW(self) -> Tensor:
        """The frozen base's prediction for the same inputs, without a gradient; computed once, when first asked for."""
        with torch.no_grad():
            return self.predict_base(self.x_t_BCHW, self.step, self.conditioning)

    @property
    def share(self) -> float:
        """Of the mean over all processes' samples, what this process's mean counts."""
        return len(self.prompts) / self.total


class UpdateRule(Protocol):
    """What the trainer asks of a method; `lasro.methods.base.Method` says it in full."""

    needs_surrogate: ClassVar[bool]
    learns_from_rewards: ClassVar[bool]

    def observe(self, trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> bool: ...

    def update(
        self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None
    ) -> StepStatistics: ...

    def state(self) -> dict[str, Any]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class GeneratorTrainer:
    """The generator's adapter, its optimiser and its average, and the method that moves it: all that a resume needs.

    Among several processes each has the same; see `step`.
    """

    def __init__(
        self,
        model: GeneratorModel,
        method: UpdateRule,
        lora: LoraSettings,
        settings: TrainSettings,
        seed: int,
        peers: DistributedContext | None = None,
    ) -> None:
        self.model, self.method, self.lora, self.settings, self.seed = model, method, lora, settings, seed
        self.peers = peers or DistributedContext()
        least = settings.batch_size // settings.two_step_every
        check_enough("train.batch_size / train.two_step_every", least, self.peers)
        self.parameters = model.add_lora(lora, seed)
        self.average = [p.detach().clone() for p in self.parameters]
        self._untrained = [p.detach().clone() for p in self.parameters]
        self._starts_as_base = True
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.version, self.first_version = 0, 0
        """Updates so far, and how many of them were made before the generator last began."""
        self.allowed_distance: float | None = None
        """Distance from the base, sqrt(L_reg), at which the next update holds the generator; None: it does not."""
        self.decay_steps = settings.decay_steps
        self.base_steps: tuple[bool, bool] = (False, False)
        """Which steps of an update the frozen base takes: nothing of them is trained."""
        self._method_start = method.state()

    def observe(self, groups: Sequence[RewardedGroup]) -> bool:
        """Show the method a round's rewards; returns whether it can update by them. Raises DeviceMemoryError."""
        with device_memory(f"drawing {len(groups)} prompts again", MEMORY_ADVICE):
            return self.method.observe(self, groups)

    def step(self, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        """One update by the method, on these prompts.

        Of several processes, all called with the same prompts, each takes a share of them. Raises NonFiniteError before
        anything that is not finite could enter the optimiser, and DeviceMemoryError.
        """
        with device_memory(f"generator update {self.version} of {len(batch)} prompts", MEMORY_ADVICE):
            return self.method.update(self, batch, source)

    # --- for methods -----------------------------------------------------------------------------------------

    def draws(self) -> torch.Generator:
        """What this update draws from: it depends on the seed and the number of the update alone."""
        return generator_for(self.seed, "generator", self.version)

    def sample(self, batch: Sequence[Prompt], draws: torch.Generator) -> list[StepSamples]:
        """This process's share of one step and of two, with a gradient within each step (see `consistency.sample`).

        The second step is taken for every `train.two_step_every`-th prompt, for all where the first is the base's.
        """
        model, every = self.model, 1 if self.base_steps[0] else self.settings.two_step_every
        noises = draw_noises(model, len(batch), draws, NUM_STEPS)
        here = self.peers.share(len(batch))
        later = slice(math.ceil(here.start / every), math.ceil(here.stop / every))
        chosen = torch.arange(later.start * every, here.stop, every, device=model.device)
        steps, first = model.steps(NUM_STEPS), model.embed([prompt.text for prompt in batch[here]])
        conditioning = [first, first.rows(chosen - here.start)]
        taken = take_steps(
            model,
            steps,
            lambda x_t_BCHW, i: self.predict(x_t_BCHW, steps[i], conditioning[i], self.base_steps[i]),
            [noises[0][here], noises[1][chosen]],
            rows=[chosen - here.start],
        )
        prompts = [list(batch[here]), [batch[row] for row in chosen.tolist()]]
        rows, totals = [here, later], [len(batch), math.ceil(len(batch) / every)]
        base = partial(self.predict, base=True)
        return [
            StepSamples(steps[i], *taken[i], prompts[i], conditioning[i], rows[i], totals[i], base) for i in range(2)
        ]

    def predict(self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False) -> Tensor:
        """f_theta(x_t, t, c), a micro-batch's activations held at a time: backward computes them once more."""
        predict = partial(self.model.predict_clean, base=base)
        parts = self.micro_batches(len(x_t_BCHW))
        if len(parts) == 1:
            return predict(x_t_BCHW, step, conditioning)
        inputs = [(x_t_BCHW[part], step, conditioning.rows(part)) for part in parts]
        return torch.cat([checkpoint(predict, *each, use_reentrant=False) for each in inputs])

    def micro_batches(self, count: int) -> list[slice]:
        """Rows that go through a network together."""
        size = self.settings.micro_batch_size or max(count, 1)
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def sum_over_processes(self, figures: Sequence[float]) -> list[float]:
        """Each figure added up over all processes."""
        summed = torch.tensor(figures, dtype=torch.float64)
        self.peers.sum_([summed])
        return summed.tolist()

    def apply(self, loss: Tensor) -> float:
        """One AdamW step on this process's part of the loss, a scalar; returns the gradient's norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.peers.sum_(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm).item()
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"generator update {self.version}: gradient norm {norm}, expected a finite one; "
                "lower train.learning_rate or raise method.regulariser_weight"
            )
        settings = self.settings
        step = self.version - self.first_version + 1
        rate = learning_rate(settings.learning_rate, step, settings.warmup_steps, self.decay_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        ema_update(self.average, list(self.parameters), settings.ema)
        self.version += 1
        return norm

    # --- state -----------------------------------------------------------------------------------------------

    @property
    def is_base(self) -> bool:
        """Whether the generator still is the base, or is it again."""
        return self.version == self.first_version and self._starts_as_base

    def start_from(self, values: Sequence[Tensor]) -> None:
        """Begin with these values of `parameters` in place of the base; before any update."""
        self._untrained = [value.to(p) for value, p in zip(values, self.parameters, strict=True)]
        self._starts_as_base = False
        self.restore(None)

    def restore(self, state: dict[str, Tensor] | None) -> None:
        """Go on from an earlier `state()`, None for what it began with: the untouched base, or `start_from`.

        Updates are counted on: no draw is repeated.
        """
        self.optimiser.state.clear()
        if state is not None:
            self._load_tensors(state)
            return
        with torch.no_grad():
            for values in (list(self.parameters), self.average):
                for value, untrained in zip(values, self._untrained, strict=True):
                    value.copy_(untrained)

    def begin_again(self) -> None:
        """Forget all updates but their number, which is counted on, so that no draw is repeated."""
        self.restore(None)
        self.first_version = self.version
        self.method.load_state(self._method_start)

    def restart(self, seed: int) -> None:
        """Begin again as at first with a fresh optimiser, and with the draws of another seed."""
        self.begin_again()
        self.seed, self.version, self.first_version = seed, 0, 0

    def scaled_average(self, factor: float) -> list[Tensor]:
        """The averaged weights with `factor`, at least 0, times their change of the model: it is a product of two."""
        return [value * factor**0.5 for value in self.average]

    def save(self, folder: Path) -> Path:
        """Write the averaged adapter so that stock diffusers loads it with `load_lora_weights(folder)`."""
        with parameters_set(self.parameters, self.average):
            return self.model.save_lora(folder, self.lora)

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resume needs, by name."""
        tensors = {}
        for i, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            tensors |= {f"{i}.parameter": parameter.detach(), f"{i}.average": average}
            tensors |= {f"{i}.{key}": value for key, value in self.optimiser.state.get(parameter, {}).items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], version: int, method_state: dict[str, Any]) -> None:
        """Continue from `state()`, the number of updates, and the method's own state."""
        self._load_tensors(tensors)
        self.version = version
        self.method.load_state(method_state)

    def _load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for i, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            with torch.no_grad():
                parameter.copy_(tensors[f"{i}.parameter"])
                average.copy_(tensors[f"{i}.average"])
            if f"{i}.step" in tensors:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimiser.state[parameter] = {key: tensors[f"{i}.{key}"].clone() for key in keys}
                for key in keys[1:]:
                    self.optimiser.state[parameter][key] = self.optimiser.state[parameter][key].to(parameter.device)

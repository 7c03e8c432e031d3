"""Updates of a generator: it samples its steps, takes a method's loss, and keeps adapter, optimiser and average.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lasro.config import LoraSettings, TrainSettings
from lasro.errors import NonFiniteError
from lasro.functional.consistency import sample
from lasro.functional.generator_loss import ema_update
from lasro.functional.lr_schedule import learning_rate
from lasro.models.adapter_notes import note_steps
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.device import device_memory
from lasro.models.lora import parameters_set
from lasro.num_steps import NumSteps
from lasro.training.distributed import DistributedContext, check_enough
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.sampling import draw_noises, generator_for
from lasro.training.score_source import ScoreSource
from lasro.training.step_samples import StepSamples, TakenStep

MEMORY_ADVICE = "lower train.micro_batch_size, or set model.gradient_checkpointing = true"


class StepStatistics(NamedTuple):
    """Of one update, over all processes."""

    loss: float
    regulariser: float
    scores: Mapping[NumSteps, float | None]
    """By number of steps, the mean of what a method ascends; LaSRO's S[R] has no dimension. None: not known."""
    grad_norm: float
    distance: float | None
    """From the base: root of the mean square distances of latents, summed over the outputs. None: not measured."""
    regulariser_weight: float
    """c, as it was for this update."""


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
        self.schedules = {n: model.steps(n) for n in settings.steps}
        """The sampler's steps for each of `train.steps`."""
        self.base_takes_first = False
        """Whether the frozen base takes the first step of an update: nothing of it is trained."""
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
        self.peers.finish_turns()  # from here on all make the same passes, backward ones too
        with device_memory(f"generator update {self.version} of {len(batch)} prompts", MEMORY_ADVICE):
            return self.method.update(self, batch, source)

    # --- for methods -----------------------------------------------------------------------------------------

    def draws(self) -> torch.Generator:
        """What this update draws from: it depends on the seed and the number of the update alone."""
        return generator_for(self.seed, "generator", self.version)

    def sample(
        self, batch: Sequence[Prompt], draws: torch.Generator, num_steps: Sequence[NumSteps] | None = None
    ) -> list[StepSamples]:
        """This process's share of the samples in each of `num_steps`, rising; absent: `train.steps`.

        With a gradient through the last `train.gradient_steps` of each (see `consistency.sample`). What has more steps
        than one is drawn for every `train.two_step_every`-th prompt, for all where the first step is the base's.
        """
        model, every = self.model, 1 if self.base_takes_first else self.settings.two_step_every
        chosen = self.settings.steps if num_steps is None else num_steps
        noises = draw_noises(model, len(batch), draws, max(chosen))
        here = self.peers.share(len(batch))
        later = slice(math.ceil(here.start / every), math.ceil(here.stop / every))
        going_on = torch.arange(later.start * every, here.stop, every, device=model.device)
        own, kept = [noises[0][here], *(noise[going_on] for noise in noises[1:])], going_on - here.start
        first = model.embed([prompt.text for prompt in batch[here]])
        shares = [  # of one step, and of more
            (list(batch[here]), first, here, len(batch)),
            ([batch[row] for row in going_on.tolist()], first.rows(kept), later, math.ceil(len(batch) / every)),
        ]

        def predict(x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
            _, conditioning, _, _ = shares[min(step.index, 1)]
            return self.predict(x_t_BCHW, step, conditioning, self.base_takes_first and step.index == 0)

        schedules = [self.schedules[n] if n in self.schedules else model.steps(n) for n in chosen]
        taken = sample(
            predict, model.first_input, model.next_input, own, schedules, self.settings.gradient_steps, rows=kept
        )
        found = []
        for n, schedule, steps in zip(chosen, schedules, taken, strict=True):
            trajectory = [TakenStep(*each) for each in zip(schedule, *zip(*steps, strict=True), own, strict=False)]
            if n > 1:
                trajectory[0] = TakenStep(trajectory[0].step, *(part[kept] for part in trajectory[0][1:]))
            step, x_t_BCHW, z_BCHW, _ = trajectory[-1]
            prompts, conditioning, rows, total = shares[min(n - 1, 1)]
            base = partial(self.predict, base=True)
            found.append(StepSamples(step, x_t_BCHW, z_BCHW, prompts, conditioning, rows, total, base, trajectory))
        return found

    def predict(self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False) -> Tensor:
        """f_theta(x_t, t, c) of the model's own step, in micro-batches."""
        return self.in_micro_batches(
            lambda rows: self.model.predict_clean(x_t_BCHW[rows], step, conditioning.rows(rows), base), len(x_t_BCHW)
        )

    def in_micro_batches(self, predict: Callable[[slice], Tensor], count: int) -> Tensor:
        """`predict` of `count` rows, a micro-batch's activations held at a time: backward computes them once more."""
        parts = self.micro_batches(count)
        if len(parts) == 1:
            return predict(parts[0])
        return torch.cat([checkpoint(predict, part, use_reentrant=False) for part in parts])

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
            file = self.model.save_lora(folder, self.lora)
        note_steps(file, self.settings.steps)
        return file

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

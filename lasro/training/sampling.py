"""Groups: one prompt, K seeds, a sample of each in each number of steps (`train.steps`), and their images.

All draws depend on (seed, round, index) alone, so an interrupted run continues with the very same noise.

Notation (docs/how-it-works.md): x_tau0 is a sample's first noise, z1 its clean latents after one step, eps a later
step's noise, x_tau1 the second step's input, z2 the latents after it. A policy is a generator or its frozen base.

Shape legend: K seeds, D draws of the later noises for each, N steps at most, P prompts, B batch, C latent channels,
H, W latent height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lasro.config import SamplingSettings
from lasro.errors import ModelError, NonFiniteError
from lasro.functional.consistency import StepSample, sample
from lasro.functional.drift import mean_square_difference
from lasro.functional.perturbation import perturb, smooth_noise
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.device import device_memory
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.service.child_process import cores
from lasro.training.prompts import Prompt


class Policy(Protocol):
    """Draws samples; `sample_latents` of a model is one."""

    def __call__(
        self, noises: Sequence[Tensor], conditioning: Conditioning, *, num_steps: Sequence[NumSteps]
    ) -> list[Tensor]:
        """Latents after each of these numbers of steps, as of `sample_latents`."""
        ...


class Group(NamedTuple):
    """One prompt's samples: K one-step ones, K D of each other number of steps, then the reference samples.

    `is_reference` is true for the latter, which another policy drew from the first of the same noises. Where the
    policies differ in the second step alone, all share z1, and there are no reference samples of one step.
    """

    prompt: Prompt
    latents_BCHW: Tensor
    stages: list[NumSteps]
    is_reference: list[bool]
    images: list[bytes]
    seeds: list[int] | None = None
    """Which x_tau0 of the group made each sample; None: unknown."""
    draws: list[int] | None = None
    """Which later noises of those that follow the same x_tau0; 0 for one-step samples."""
    image_squares: Mapping[int, list[float]] = {}
    """By number of steps: mean square pixel differences of own samples to the reference samples of the same noise."""


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by everything named; equal parts give equal draws on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_noises(model: GeneratorModel, count: int, generator: torch.Generator, steps: int = 2) -> list[Tensor]:
    """One noise [count, C, H, W] per step, on the model's device."""
    shape = (count, *model.latent_shape)
    return [torch.randn(shape, generator=generator).to(model.device) for _ in range(steps)]


def draw_group_noises(
    model: GeneratorModel, seeds: int, draws: int, generator: torch.Generator, steps: int = 2
) -> list[Tensor]:
    """x_tau0 [K, C, H, W] and N - 1 later noises [K D, C, H, W], the D of each x_tau0 in a row.

    Neither x_tau0 nor the first later noises of each depend on D.
    """
    first, *later = draw_noises(model, seeds, generator, 1 + draws * (steps - 1))
    return [first, *(torch.stack(later[i :: steps - 1], 1).flatten(0, 1) for i in range(steps - 1))]


class Labels(NamedTuple):
    """Of each of some samples: number of steps, x_tau0 and later noises, counted as in `Group`."""

    stages: list[NumSteps]
    seeds: list[int]
    draws: list[int]


def label_samples(seeds: int, draws: int, num_steps: Sequence[NumSteps] = ONE_AND_TWO) -> Labels:
    """Of one policy's samples of a prompt, in the order that they have in a group."""
    each: list[tuple[NumSteps, int, int]] = [
        (steps, seed, draw)
        for steps in num_steps
        for seed in range(seeds)
        for draw in range(1 if steps == 1 else draws)
    ]
    return Labels([steps for steps, _, _ in each], [seed for _, seed, _ in each], [draw for _, _, draw in each])


def draw_prompts(prompts: list[Prompt], count: int, generator: torch.Generator) -> list[Prompt]:
    """`count` prompts, distinct as far as there are enough."""
    order = torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[order[i % len(order)]] for i in range(count)]


def sample_steps(
    model: GeneratorModel,
    noises: Sequence[Tensor],
    conditioning: Conditioning,
    base: bool | Sequence[bool] = False,
    num_steps: Sequence[NumSteps] | None = None,
    gradient_steps: int = 1,
) -> list[list[StepSample]]:
    """Every step, its noisy input and its clean latents [B, C, H, W], of each sample that `sample_latents` draws.

    A gradient flows through the last `gradient_steps` (see `consistency.sample`).
    """
    if num_steps is None:
        whole = model.steps(len(noises))
        schedules = [whole[:n] for n in range(1, len(whole) + 1)]
    else:
        schedules = [model.steps(n) for n in num_steps]
    rows, conditionings = None, [conditioning]
    if len(noises) > 1:
        first = torch.arange(len(noises[0]), device=model.device)
        rows = first.repeat_interleave(len(noises[1]) // len(first))
        conditionings.append(conditioning.rows(rows))

    def predict(x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        of_base = base if isinstance(base, bool) else base[step.index]
        return model.predict_clean(x_t_BCHW, step, conditionings[min(step.index, 1)], of_base)

    return sample(predict, model.first_input, model.next_input, noises, schedules, gradient_steps, rows)


def sample_latents(
    model: GeneratorModel,
    noises: Sequence[Tensor],
    conditioning: Conditioning,
    base: bool | Sequence[bool] = False,
    num_steps: Sequence[NumSteps] | None = None,
) -> list[Tensor]:
    """Clean latents [B, C, H, W] after each step of `len(noises)`, of the frozen base where `base` is set.

    With `num_steps`, rising, after these numbers of steps, each by its own schedule; what these have in common, such as
    the first step of an LCM, is computed once. `base` may have a flag for each step: with (True, False) the adapter
    takes the second step alone, from the base's z1. The later noises may have D times the rows of the first: then D
    samples in a row go on from each. Raises ModelError for steps that the sampler does not have.
    """
    return [steps[-1].z_BCHW for steps in sample_steps(model, noises, conditioning, base, num_steps)]


@torch.no_grad()
def sample_groups(
    model: GeneratorModel,
    prompts: list[Prompt],
    settings: SamplingSettings,
    *seed: object,
    base: bool | Sequence[bool] = False,
    reference_policy: Policy | None = None,
    first: int = 0,
    reference_steps: Sequence[NumSteps] | None = None,
) -> list[Group]:
    """One group per prompt; the i-th draws all its noise from (*seed, first + i).

    With a `reference_policy`, a group also has its samples of the same noise, or of the first `reference_seeds` ones:
    what all samples of one policy have in common, such as a tint, shows in no pair among them. `reference_steps` says
    after how many steps; absent: after all of `settings.steps`. `base`: as of `sample_latents`. Raises NonFiniteError,
    with the prompt named, ModelError where several second steps would be the same, and DeviceMemoryError.
    """
    if not prompts:
        return []
    K, D, R = settings.seeds_per_prompt, settings.second_step_draws, settings.num_reference_seeds
    if D > 1 and not model.adds_noise:
        raise ModelError(
            f"second_step_draws: got {D}, but this model's sampler adds no noise between steps; set it to 1"
        )
    steps, most = settings.steps, max(settings.steps)
    draws = [draw_group_noises(model, K, D, generator_for(*seed, first + i), most) for i in range(len(prompts))]
    noises = [torch.cat(parts) for parts in zip(*draws, strict=True)]
    with device_memory(f"drawing {len(prompts)} prompts x {K} seeds", "lower prompts_per_round or seeds_per_prompt"):
        conditioning = model.embed([prompt.text for prompt in prompts]).repeat_each(K)
        taken = sample_latents(model, noises, conditioning, base, steps)
        labels = [label_samples(K, D, steps)]
        if reference_policy is not None:
            with_reference = torch.arange(len(prompts) * K, device=model.device) % K < R
            going_on = with_reference.repeat_interleave(D)
            chosen = [noises[0][with_reference], *(noise[going_on] for noise in noises[1:])]
            of_reference = steps if reference_steps is None else reference_steps
            taken += reference_policy(chosen, conditioning.rows(with_reference), num_steps=of_reference)
            labels.append(label_samples(R, D, of_reference))
    latents_PBCHW = torch.cat([z.unflatten(0, (len(prompts), -1)) for z in taken], 1)
    return _groups(model, prompts, latents_PBCHW, labels)


def sample_second_step_groups(
    model: GeneratorModel,
    prompts: list[Prompt],
    settings: SamplingSettings,
    *seed: object,
    base: bool = False,
    first: int = 0,
) -> list[Group]:
    """Groups whose policies differ in the second step alone: own and reference samples share the base's z1, and eps.

    Own samples take the second step by the generator and reference samples by the base; with `base` it is the other way
    round. Of one step there are own samples only, since all are the base's. Noise and errors as of `sample_groups`.
    """
    return sample_groups(
        model,
        prompts,
        settings,
        *seed,
        base=(True, base),
        reference_policy=partial(sample_latents, model, base=(True, not base)),
        first=first,
        reference_steps=(2,),
    )


def _groups(
    model: GeneratorModel, prompts: list[Prompt], latents_PBCHW: Tensor, labels: Sequence[Labels]
) -> list[Group]:
    """With their images. `labels` are those of the own samples and, where there are some, of the reference samples."""
    for prompt, latents_BCHW in zip(prompts, latents_PBCHW, strict=True):
        if not latents_BCHW.isfinite().all():
            raise NonFiniteError(f"latents of {prompt.text[:60]!r} are not finite; lower train.learning_rate")
    is_reference = [i > 0 for i, each in enumerate(labels) for _ in each.stages]
    stages: list[NumSteps] = [num_steps for each in labels for num_steps in each.stages]
    seeds = [seed for each in labels for seed in each.seeds]
    draws = [draw for each in labels for draw in each.draws]
    # Side by side where each has one thread: faster than one after the other with several.
    with ThreadPoolExecutor(max(1, cores() // torch.get_num_threads())) as pool:
        images = pool.map(partial(_images, model, np.array(stages), np.array(is_reference)), latents_PBCHW)
        return [
            Group(prompt, latents_BCHW.cpu(), stages, is_reference, pngs, seeds, draws, squares)
            for prompt, latents_BCHW, (pngs, squares) in zip(prompts, latents_PBCHW, images, strict=True)
        ]


def _images(
    model: GeneratorModel, num_steps_B: np.ndarray, is_reference_B: np.ndarray, latents_BCHW: Tensor
) -> tuple[list[bytes], dict[int, list[float]]]:
    """PNGs of the latents, and how far own ones are from the reference's (`Group.image_squares`)."""
    images_BhwC = model.decode_to_score(latents_BCHW)
    squares = {}
    for num_steps in np.unique(num_steps_B).tolist():
        of_steps = num_steps_B == num_steps
        reference = np.flatnonzero(of_steps & is_reference_B)
        own = np.flatnonzero(of_steps & ~is_reference_B)[: len(reference)]
        pairs = zip(*(torch.from_numpy(images_BhwC[rows]) for rows in (own, reference)), strict=True)
        squares[num_steps] = [mean_square_difference(a, b) for a, b in pairs]
    return [png_bytes(image) for image in images_BhwC], squares


def sample_perturbed(
    model: GeneratorModel,
    size: float,
    noises: Sequence[Tensor],
    conditioning: Conditioning,
    num_steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> list[Tensor]:
    """Samples of the base with smooth perturbations of up to `size` standard deviations of their latents.

    What is drawn depends on a sample's own noise alone, so that it is the same however samples are shared out.
    """
    found = []
    samples = sample_latents(model, noises, conditioning, base=True, num_steps=num_steps)
    for steps, z_BCHW in zip(num_steps, samples, strict=True):
        rows = []
        for noise_CHW in noises[steps - 1]:
            generator = generator_for("perturbation", *noise_CHW.flatten()[:4].tolist())
            rows.append((torch.rand(1, generator=generator), smooth_noise((1, *noise_CHW.shape), generator)))
        sizes_B, drawn_BCHW = torch.cat([size * share for share, _ in rows]), torch.cat([noise for _, noise in rows])
        found.append(perturb(z_BCHW, drawn_BCHW.to(z_BCHW.device), sizes_B.to(z_BCHW.device)))
    return found

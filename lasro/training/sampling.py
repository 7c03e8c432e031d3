"""Groups: one prompt, K seeds, the one- and two-step samples of each, and their images.

All draws depend on (seed, round, index) alone, so an interrupted run continues with the very same noise.

Notation (docs/how-it-works.md): x_tau0 is a sample's first noise, z1 its clean latents after one step, eps the second
noise, x_tau1 the second step's input, z2 the latents after it. A policy is a generator or its frozen base.

Shape legend: K seeds, D draws of eps for each, P prompts, B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lasro.config import SamplingSettings
from lasro.errors import ModelError, NonFiniteError
from lasro.functional.consistency import StepSample, sample
from lasro.functional.drift import mean_square_difference
from lasro.functional.perturbation import perturb, smooth_noise
from lasro.images import png_bytes
from lasro.models.base import Conditioning, GeneratorModel, SamplingStep
from lasro.models.device import device_memory
from lasro.service.child_process import cores
from lasro.training.prompts import Prompt
from lasro.wire import NumSteps

Policy = Callable[[list[Tensor], Conditioning], list[Tensor]]
"""Noises x_tau0 [B, C, H, W] and eps [B D, C, H, W], and the former's conditioning, to latents of the same shapes."""
BOTH: tuple[NumSteps, ...] = (1, 2)


class Group(NamedTuple):
    """One prompt's samples: K one-step ones, the K D two-step ones of the same noise, then the reference samples.

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
    """Which eps of those that follow the same x_tau0; 0 for one-step samples."""
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


def draw_group_noises(model: GeneratorModel, seeds: int, draws: int, generator: torch.Generator) -> list[Tensor]:
    """x_tau0 [K, C, H, W] and eps [K D, C, H, W], the D of each x_tau0 in a row.

    Neither x_tau0 nor the first eps of each depends on D.
    """
    first, *later = draw_noises(model, seeds, generator, 1 + draws)
    return [first, torch.stack(later, 1).flatten(0, 1)]


class Labels(NamedTuple):
    """Of each of some samples: number of steps, x_tau0 and eps, counted as in `Group`."""

    stages: list[NumSteps]
    seeds: list[int]
    draws: list[int]


def label_samples(seeds: int, draws: int, num_steps: Sequence[NumSteps] = BOTH) -> Labels:
    """Of one policy's samples of a prompt, in the order that they have in a group."""
    each: list[tuple[NumSteps, int, int]] = [
        (steps, seed, draw)
        for steps in num_steps
        for seed in range(seeds)
        for draw in range(draws if steps == 2 else 1)
    ]
    return Labels([steps for steps, _, _ in each], [seed for _, seed, _ in each], [draw for _, _, draw in each])


def draw_prompts(prompts: list[Prompt], count: int, generator: torch.Generator) -> list[Prompt]:
    """`count` prompts, distinct as far as there are enough."""
    order = torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[order[i % len(order)]] for i in range(count)]


def take_steps(
    model: GeneratorModel,
    steps: Sequence[SamplingStep],
    predict_clean: Callable[[Tensor, int], Tensor],
    noises: Sequence[Tensor],
    rows: Sequence[Tensor],
) -> list[StepSample]:
    """`consistency.sample` by the model's sampler, from noises ~ N(0, I)."""
    return sample(
        predict_clean,
        lambda x_t_BCHW, z_BCHW, noise_BCHW, i: model.next_input(x_t_BCHW, z_BCHW, noise_BCHW, steps[i - 1], steps[i]),
        [model.first_input(noises[0], steps[0]), *noises[1:]],
        rows,
    )


def sample_latents(
    model: GeneratorModel, noises: Sequence[Tensor], conditioning: Conditioning, base: bool | Sequence[bool] = False
) -> list[Tensor]:
    """Clean latents [B, C, H, W] after each of `len(noises)` steps, of the frozen base where `base` is set.

    Of two steps the first are the one-step samples of the same noise. `base` may have a flag for each step: with
    (True, False) the adapter takes the second step alone, from the base's z1. A later noise may have D times the rows
    of the one before: then D samples in a row go on from each.
    """
    steps = model.steps(len(noises))
    of_base = [base] * len(steps) if isinstance(base, bool) else base
    rows = [
        torch.arange(len(before), device=model.device).repeat_interleave(len(noise) // len(before))
        for before, noise in pairwise(noises)
    ]
    conditionings = [conditioning]
    for chosen in rows:
        conditionings.append(conditionings[-1].rows(chosen))
    taken = take_steps(
        model,
        steps,
        lambda x_t_BCHW, i: model.predict_clean(x_t_BCHW, steps[i], conditionings[i], of_base[i]),
        noises,
        rows,
    )
    return [step.z_BCHW for step in taken]


@torch.no_grad()
def sample_groups(
    model: GeneratorModel,
    prompts: list[Prompt],
    settings: SamplingSettings,
    *seed: object,
    base: bool | Sequence[bool] = False,
    reference_policy: Policy | None = None,
    first: int = 0,
    reference_steps: Sequence[NumSteps] = BOTH,
) -> list[Group]:
    """One group per prompt; the i-th draws all its noise from (*seed, first + i).

    With a `reference_policy`, a group also has its samples of the same noise, or of the first `reference_seeds` ones:
    what all samples of one policy have in common, such as a tint, shows in no pair among them. `reference_steps` says
    after how many steps. `base`: as of `sample_latents`. Raises NonFiniteError, with the prompt named, ModelError where
    several second steps would be the same, and DeviceMemoryError.
    """
    if not prompts:
        return []
    K, D, R = settings.seeds_per_prompt, settings.second_step_draws, settings.num_reference_seeds
    if D > 1 and not model.adds_noise:
        raise ModelError(
            f"second_step_draws: got {D}, but this model's sampler adds no noise between steps; set it to 1"
        )
    draws = [draw_group_noises(model, K, D, generator_for(*seed, first + i)) for i in range(len(prompts))]
    noises = [torch.cat(parts) for parts in zip(*draws, strict=True)]
    with device_memory(f"drawing {len(prompts)} prompts x {K} seeds", "lower prompts_per_round or seeds_per_prompt"):
        conditioning = model.embed([prompt.text for prompt in prompts]).repeat_each(K)
        taken = sample_latents(model, noises, conditioning, base)
        labels = [label_samples(K, D)]
        if reference_policy is not None:
            with_reference = torch.arange(len(prompts) * K, device=model.device) % K < R
            chosen = [noises[0][with_reference], noises[1][with_reference.repeat_interleave(D)]]
            others = reference_policy(chosen, conditioning.rows(with_reference))
            taken += [others[num_steps - 1] for num_steps in reference_steps]
            labels.append(label_samples(R, D, reference_steps))
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
    for num_steps in (1, 2):
        of_steps = num_steps_B == num_steps
        reference = np.flatnonzero(of_steps & is_reference_B)
        own = np.flatnonzero(of_steps & ~is_reference_B)[: len(reference)]
        pairs = zip(*(torch.from_numpy(images_BhwC[rows]) for rows in (own, reference)), strict=True)
        squares[num_steps] = [mean_square_difference(a, b) for a, b in pairs]
    return [png_bytes(image) for image in images_BhwC], squares


def sample_perturbed(
    model: GeneratorModel, size: float, noises: Sequence[Tensor], conditioning: Conditioning
) -> list[Tensor]:
    """Samples of the base with smooth perturbations of up to `size` standard deviations of their latents.

    What is drawn depends on a sample's own noise alone, so that it is the same however samples are shared out.
    """
    found = []
    for z_BCHW, noise_BCHW in zip(sample_latents(model, noises, conditioning, base=True), noises, strict=True):
        rows = []
        for noise_CHW in noise_BCHW:
            generator = generator_for("perturbation", *noise_CHW.flatten()[:4].tolist())
            rows.append((torch.rand(1, generator=generator), smooth_noise((1, *noise_CHW.shape), generator)))
        sizes_B, drawn_BCHW = torch.cat([size * share for share, _ in rows]), torch.cat([noise for _, noise in rows])
        found.append(perturb(z_BCHW, drawn_BCHW.to(z_BCHW.device), sizes_B.to(z_BCHW.device)))
    return found

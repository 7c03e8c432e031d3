"""Groups: one prompt, K seeds, the one- and two-step samples of each, and their images.

All draws depend on (seed, round, index) alone, so an interrupted run continues with the very same noise.

Shape legend: K seeds, B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lasro.config import SamplingSettings
from lasro.errors import NonFiniteError
from lasro.functional.consistency import sample
from lasro.functional.drift import drift_distance, mean_square_between_sets, mean_square_difference
from lasro.images import png_bytes
from lasro.models.base import Conditioning, GeneratorModel
from lasro.models.device import device_memory
from lasro.service.child_process import cores
from lasro.training.prompts import Prompt
from lasro.wire import NumSteps

Policy = Callable[[list[Tensor], Conditioning], list[Tensor]]
"""Noises and their conditioning to one-step and two-step latents, each [B, C, H, W]."""


class Group(NamedTuple):
    """One prompt's samples: K one-step ones, the K two-step ones of the same noise, then the reference samples.

    `is_reference` is true for the latter, which another policy drew from the first of the same noises.
    """

    prompt: Prompt
    latents_BCHW: Tensor
    stages: list[NumSteps]
    is_reference: list[bool]
    images: list[bytes]


class Distances(NamedTuple):
    """Between latents of one number of denoising steps: mean absolute differences, then mean square ones."""

    to_base: list[float]
    """Own samples against the base's of the same noise."""
    between_seeds: list[float]
    """The base's samples of two noises against each other: a change of seed."""
    squares_to_base: list[float]
    """As `to_base`, mean square."""
    squares_between_prompts: list[float]
    """The base's samples against those of each later group of another prompt, mean square: a change of prompt."""


class BasePairs(NamedTuple):
    """Of the base's samples of two prompts: the sum of their mean square differences, and how many pairs that were.

    The base does not change, so it may be kept from round to round: a round of few prompts has few pairs.
    """

    total: float = 0.0
    number: int = 0


class GroupSummary(NamedTuple):
    """A group without its latents and images, as a round's record needs it; `distances` by number of steps."""

    prompt: Prompt
    stages: Sequence[int]
    is_reference: list[bool]
    distances: dict[int, Distances]


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by everything named; equal parts give equal draws on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_noises(model: GeneratorModel, count: int, generator: torch.Generator, steps: int = 2) -> list[Tensor]:
    """One noise [count, C, H, W] per step, on the model's device."""
    shape = (count, *model.latent_shape)
    return [torch.randn(shape, generator=generator).to(model.device) for _ in range(steps)]


def draw_prompts(prompts: list[Prompt], count: int, generator: torch.Generator) -> list[Prompt]:
    """`count` prompts, distinct as far as there are enough."""
    order = torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[order[i % len(order)]] for i in range(count)]


def sample_latents(
    model: GeneratorModel, noises: Sequence[Tensor], conditioning: Conditioning, base: bool = False
) -> list[Tensor]:
    """Clean latents [B, C, H, W] after each of `len(noises)` steps, of the frozen base where `base` is set.

    Of two steps the first are the one-step samples of the same noise.
    """
    steps = model.steps(len(noises))
    taken = sample(
        lambda x_t_BCHW, i: model.predict_clean(x_t_BCHW, steps[i], conditioning, base),
        lambda z_BCHW, noise_BCHW, i: model.renoise(z_BCHW, noise_BCHW, steps[i]),
        noises,
    )
    return [step.z_BCHW for step in taken]


@torch.no_grad()
def sample_groups(
    model: GeneratorModel,
    prompts: list[Prompt],
    settings: SamplingSettings,
    *seed: object,
    base: bool = False,
    reference_policy: Policy | None = None,
    first: int = 0,
) -> list[Group]:
    """One group per prompt; the i-th draws all its noise from (*seed, first + i).

    With a `reference_policy`, a group also has its samples of the same noise, or of the first `reference_seeds` ones:
    what all samples of one policy have in common, such as a tint, shows in no pair among them.
    Raises NonFiniteError, with the prompt named, and DeviceMemoryError.
    """
    if not prompts:
        return []
    K = settings.seeds_per_prompt
    draws = [draw_noises(model, K, generator_for(*seed, first + i)) for i in range(len(prompts))]
    noises = [torch.cat(parts) for parts in zip(*draws, strict=True)]
    others = []
    with device_memory(f"drawing {len(prompts)} prompts x {K} seeds", "lower prompts_per_round or seeds_per_prompt"):
        conditioning = model.embed([prompt.text for prompt in prompts]).repeat_each(K)
        own = sample_latents(model, noises, conditioning, base)
        if reference_policy is not None:
            first_seeds = torch.arange(len(prompts) * K, device=model.device) % K < settings.num_reference_seeds
            others = reference_policy([noise[first_seeds] for noise in noises], conditioning.rows(first_seeds))
    shares = [(z, K) for z in own] + [(z, settings.num_reference_seeds) for z in others]
    stages: list[NumSteps] = [2 if i % 2 else 1 for i, (_, count) in enumerate(shares) for _ in range(count)]
    is_reference = [False] * 2 * K + [True] * (len(stages) - 2 * K)
    latents = [torch.cat([z[i * count : (i + 1) * count] for z, count in shares]) for i in range(len(prompts))]
    for prompt, latents_BCHW in zip(prompts, latents, strict=True):
        if not latents_BCHW.isfinite().all():
            raise NonFiniteError(f"latents of {prompt.text[:60]!r} are not finite; lower train.learning_rate")
    # Side by side where each has one thread: faster than one after the other with several.
    with ThreadPoolExecutor(max(1, cores() // torch.get_num_threads())) as pool:
        images = pool.map(partial(_pngs, model), latents)
        return [
            Group(prompt, latents_BCHW.cpu(), stages, is_reference, pngs)
            for prompt, latents_BCHW, pngs in zip(prompts, latents, images, strict=True)
        ]


def _pngs(model: GeneratorModel, latents_BCHW: Tensor) -> list[bytes]:
    return [png_bytes(image) for image in model.decode(latents_BCHW, mixed=True)]


def distances(group: Group, num_steps: int) -> Distances:
    """Of the samples of that many denoising steps, in a group whose reference samples are the base's."""
    chosen = torch.tensor(group.stages) == num_steps
    is_reference = torch.tensor(group.is_reference)
    latents = group.latents_BCHW.float()
    own, base = latents[chosen & ~is_reference], latents[chosen & is_reference]
    to_base = (own[: len(base)] - base).abs().mean((1, 2, 3)).tolist() if len(base) else []
    between_seeds = [(base[i] - base[j]).abs().mean().item() for i in range(len(base)) for j in range(i)]
    squares = [mean_square_difference(a, b) for a, b in zip(own, base, strict=False)]
    return Distances(to_base, between_seeds, squares, [])


def _base_samples(group: Group, num_steps: int) -> Tensor:
    chosen = (torch.tensor(group.stages) == num_steps) & torch.tensor(group.is_reference)
    return group.latents_BCHW[chosen]


def summarise_group(group: Group, later: Sequence[Group] = ()) -> GroupSummary:
    """What is kept of a group once it is posted; `later`: those that its base samples are compared with."""
    by_steps = {}
    for num_steps in (1, 2):
        base = _base_samples(group, num_steps)
        others = [_base_samples(other, num_steps) for other in later if other.prompt.text != group.prompt.text]
        pairs = [mean_square_between_sets(base, other) for other in others if len(base) and len(other)]
        by_steps[num_steps] = distances(group, num_steps)._replace(squares_between_prompts=pairs)
    return GroupSummary(group.prompt, group.stages, group.is_reference, by_steps)


def base_pairs(groups: Sequence[GroupSummary], num_steps: int, so_far: BasePairs) -> BasePairs:
    """Those `so_far` and those of these groups; the groups of several processes are compared within each process."""
    pairs = [square for group in groups for square in group.distances[num_steps].squares_between_prompts]
    return BasePairs(so_far.total + sum(pairs), so_far.number + len(pairs))


def distance_from_base(
    groups: Sequence[GroupSummary], num_steps: int, pairs: BasePairs
) -> tuple[float | None, float | None]:
    """Root mean square distance of own latents from the base's of the same noise, in changes of prompt, and its error.

    See `lasro.functional.drift`; the error is over the prompts of these groups. None without the base's samples of two
    prompts. These are samples of the weights as they are, not of the averaged ones.
    """
    squares = [group.distances[num_steps].squares_to_base for group in groups]
    means = [sum(of_prompt) / len(of_prompt) for of_prompt in squares if of_prompt]
    return drift_distance(means, pairs.total / pairs.number if pairs.number else None)


def drift_from_base(groups: list[GroupSummary], num_steps: int) -> float | None:
    """Mean distance of own latents from the base's of the same noise, in distances between seeds of the base.

    0: unchanged; 1: as different as another seed. None without the base's samples of two seeds.
    """
    to_base = [distance for group in groups for distance in group.distances[num_steps].to_base]
    between_seeds = [distance for group in groups for distance in group.distances[num_steps].between_seeds]
    if not between_seeds:
        return None
    return (sum(to_base) / len(to_base)) / (sum(between_seeds) / len(between_seeds))

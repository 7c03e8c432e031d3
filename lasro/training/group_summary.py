"""What is kept of a round's groups once they are posted: how far they are from the base's, without their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lasro.training.prompts import Prompt
from lasro.training.sampling import Group


class Distances(NamedTuple):
    """Mean absolute differences between latents of one prompt and one number of denoising steps."""

    to_base: list[float]
    """Own samples against the base's of the same noise."""
    between_seeds: list[float]
    """The base's samples of two noises against each other: a change of seed."""


class GroupSummary(NamedTuple):
    """A group without its latents and images, as a round's record needs it; `distances` by number of steps."""

    prompt: Prompt
    stages: Sequence[int]
    is_reference: list[bool]
    distances: dict[int, Distances]
    seeds: list[int] | None = None
    draws: list[int] | None = None
    image_squares: Mapping[int, list[float]] = {}


def distances(group: Group, num_steps: int) -> Distances:
    """Of the samples of that many denoising steps, in a group whose reference samples are the base's."""
    chosen = torch.tensor(group.stages) == num_steps
    is_reference = torch.tensor(group.is_reference)
    latents = group.latents_BCHW.float()
    own, base = latents[chosen & ~is_reference], latents[chosen & is_reference]
    seeds = torch.arange(len(latents)) if group.seeds is None else torch.tensor(group.seeds)
    of_base = seeds[chosen & is_reference].tolist()
    to_base = (own[: len(base)] - base).abs().mean((1, 2, 3)).tolist() if len(base) else []
    pairs = [(i, j) for i in range(len(base)) for j in range(i) if of_base[i] != of_base[j]]
    return Distances(to_base, [(base[i] - base[j]).abs().mean().item() for i, j in pairs])


def summarise_group(group: Group) -> GroupSummary:
    """What is kept of a group once it is posted."""
    by_steps = {num_steps: distances(group, num_steps) for num_steps in sorted(set(group.stages))}
    return GroupSummary(
        group.prompt, group.stages, group.is_reference, by_steps, group.seeds, group.draws, group.image_squares
    )


def drift_from_base(groups: list[GroupSummary], num_steps: int) -> float | None:
    """Mean distance of own latents from the base's of the same noise, in distances between seeds of the base.

    0: unchanged; 1: as different as another seed. None without the base's samples of two seeds.
    """
    to_base = [distance for group in groups for distance in group.distances[num_steps].to_base]
    between_seeds = [distance for group in groups for distance in group.distances[num_steps].between_seeds]
    if not between_seeds:
        return None
    return (sum(to_base) / len(to_base)) / (sum(between_seeds) / len(between_seeds))

"""How much randomness each further step adds: images of one prompt, against the number of steps that draw them.

A sampler that adds noise between its steps draws several samples from one x_tau0. Two distances tell what that is
worth, root mean square differences of the images of one prompt:

    all noise redrawn     x_tau0 and the noise of all later steps
    later noise redrawn   the same x_tau0, as z1 of an LCM is the same: nothing else is left to explore on-policy

Source: LaSRO (Jia et al., arXiv 2411.15247, figure 2), which plots the diversity of samples by steps that add noise.

Shape legend: S first noises of a prompt, D later noises for each, C, H, W latent; h, w image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasro.errors import ConfigError
from lasro.functional.drift import mean_square_between
from lasro.models.device import device_memory
from lasro.models.latent_codec import MEMORY_ADVICE
from lasro.num_steps import NumSteps
from lasro.training.sampling import draw_group_noises, generator_for, sample_latents
from lasro_client.analysis.measured import measure_prompts
from lasro_client.analysis.subject import Subject, check_finite
from lasro_client.evaluation.paired_statistics import estimate, ratio_of_means
from lasro_client.evaluation.score_prompts import Progress

ALL_NOISE, LATER_NOISE = "all_noise", "later_noise"
SPACES = ("images", "latents")
DRAWS = 4
Distances = dict[str, dict[str, float]]
"""images or latents -> ALL_NOISE, LATER_NOISE -> mean square distance between samples of one prompt."""


def diversity(
    subject: Subject, steps: Sequence[NumSteps], seeds: int, draws: int | None, out: Path, progress: Progress
) -> dict[str, Any]:
    """`rows`: of each policy and number of steps both distances, and the share of later noise.

    `seeds`: S; `draws`: D, absent: 4, or 1 where the sampler adds no noise. Images count in values of 255. What is
    measured lies in `out` until all is. Raises ConfigError where D noises would be the same.
    """
    draws = _draws(subject, draws)
    about = subject.about | {"analysis": "diversity", "steps": list(steps), "seeds": seeds, "draws": draws}

    def measure(base: bool, index: int) -> dict[str, Distances]:
        return _of_prompt(subject, base, index, steps, seeds, draws)

    found = measure_prompts(subject, out, about, measure, progress)
    return about | {
        "rows": [_row(policy, n, [each[str(n)] for each in all_of]) for policy, all_of in found.items() for n in steps]
    }


def _draws(subject: Subject, draws: int | None) -> int:
    adds_noise = subject.model.adds_noise
    if draws is None:
        return DRAWS if adds_noise else 1
    if draws > 1 and not adds_noise:
        raise ConfigError(
            f"draws: got {draws}, but this model's sampler adds no noise between steps, so that they would be the "
            "same; set it to 1"
        )
    return draws


@torch.no_grad()
def _of_prompt(
    subject: Subject, base: bool, index: int, steps: Sequence[NumSteps], seeds: int, draws: int
) -> dict[str, Distances]:
    """By number of steps."""
    model, prompt = subject.model, subject.prompts[index]
    noises = draw_group_noises(model, seeds, draws, generator_for(subject.seed, "diversity", index), max(steps))
    conditioning = model.embed([prompt.text], base)
    parts: list[list[Tensor]] = []
    with device_memory(f"drawing {draws} images at once", f"lower --draws, or {MEMORY_ADVICE}"):
        for seed in range(seeds):  # [1, C, H, W] of one step, [D, C, H, W] of more
            later = [noise[seed * draws : (seed + 1) * draws] for noise in noises[1:]]
            parts.append(sample_latents(model, [noises[0][seed, None], *later], conditioning, base, steps))
    latents = [check_finite(torch.cat(of_n), prompt) for of_n in zip(*parts, strict=True)]
    return {str(n): _distances(subject, z_BCHW, seeds) for n, z_BCHW in zip(steps, latents, strict=True)}


def _distances(subject: Subject, z_BCHW: Tensor, seeds: int) -> Distances:
    images = torch.cat([torch.from_numpy(subject.model.decode(z_BCHW[part])) for part in subject.batches(len(z_BCHW))])
    spaces = dict(zip(SPACES, (images, z_BCHW), strict=True))
    return {name: _mean_squares(samples.unflatten(0, (seeds, -1))) for name, samples in spaces.items()}


def _mean_squares(samples_SD: Tensor) -> dict[str, float]:
    """Between samples of different first noises, and between those that share it; 0 for one alone."""
    between = [mean_square_between(of_draw) or 0.0 for of_draw in samples_SD.unbind(1)]
    within = [mean_square_between(of_seed) or 0.0 for of_seed in samples_SD]
    return {ALL_NOISE: math.fsum(between) / len(between), LATER_NOISE: math.fsum(within) / len(within)}


def _row(policy: str, num_steps: NumSteps, of_prompts: Sequence[Distances]) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "num_steps": num_steps}
    for space in SPACES:
        distances = {kind: [math.sqrt(each[space][kind]) for each in of_prompts] for kind in (ALL_NOISE, LATER_NOISE)}
        row[space] = {kind: estimate(values).as_dict() for kind, values in distances.items()}
        row[space]["share"] = ratio_of_means(distances[LATER_NOISE], distances[ALL_NOISE]).as_dict()
    return row

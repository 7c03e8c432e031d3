"""Which step carries what an adapter gains: base and adapted weights mixed over the steps of one sample.

The same prompts and noise are drawn by the base in all steps, by the adapted model in one of them alone, and by the
adapted model in all. One network serves all steps, so where one of them earns nearly all, the gradient of the others
may be estimated from fewer samples (`train.two_step_every`).

Shape legend: B prompts, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasro.functional.consistency import sample
from lasro.images import png_bytes
from lasro.models.conditioning import SamplingStep
from lasro.models.device import device_memory
from lasro.models.latent_codec import MEMORY_ADVICE
from lasro.num_steps import NumSteps
from lasro.wire import scores_of
from lasro_client.analysis.measured import Measured
from lasro_client.analysis.subject import Subject, check_finite
from lasro_client.evaluation.diffusers_noise import diffusers_noises
from lasro_client.evaluation.paired_statistics import compare
from lasro_client.evaluation.score_prompts import Progress, score_images
from lasro_client.services.reward_client import RewardClient

Mixture = tuple[bool, ...]
"""For each step, whether the adapted model takes it."""
Rewards = dict[str, list[float | None]]


def mixtures(num_steps: NumSteps) -> list[Mixture]:
    """The base in all steps, the adapted model in each alone, and in all."""
    alone = [tuple(i == step for i in range(num_steps)) for step in range(num_steps)]
    return [(False,) * num_steps, *alone, (True,) * num_steps]


def which_step(
    subject: Subject, num_steps: NumSteps, client: RewardClient, rewards: Sequence[str], out: Path, progress: Progress
) -> dict[str, Any]:
    """`rows`: of each reward and mixture mean reward, and difference to the base's of the same prompts and noise.

    Prompt i is drawn with seed + i, as `lasro evaluate` draws it. What is measured lies in `out` until all is.
    """
    about = subject.about | {"analysis": "steps", "steps": num_steps, "rewards": list(rewards)}
    found: dict[Mixture, Rewards] = {each: {name: [] for name in rewards} for each in mixtures(num_steps)}
    with Measured(out, about) as measured:
        for part in subject.batches(len(subject.prompts)):
            for mixture, of_mixture in found.items():
                score = partial(_of_batch, subject, part, mixture, client, rewards)
                for name, values in measured(f"{part.start} {list(mixture)}", score).items():
                    of_mixture[name] += values
            progress(min(part.stop, len(subject.prompts)), len(subject.prompts))
    base = found[mixtures(num_steps)[0]]
    return about | {
        "rows": [_row(name, mixture, base[name], of[name]) for name in rewards for mixture, of in found.items()]
    }


@torch.no_grad()
def draw_mixed(subject: Subject, part: slice, mixture: Mixture) -> Tensor:
    """Latents [B, C, H, W] of some prompts, each step by the base or by the adapted model, text encoders included."""
    model, prompts = subject.model, list(subject.prompts[part])
    seeds = range(subject.seed + part.start, subject.seed + part.start + len(prompts))
    noises = [noise.to(model.device) for noise in diffusers_noises(seeds, model.latent_shape, len(mixture))]
    texts = [prompt.text for prompt in prompts]
    conditionings = {adapted: model.embed(texts, base=not adapted) for adapted in set(mixture)}

    def predict(x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        adapted = mixture[step.index]
        return model.predict_clean(x_t_BCHW, step, conditionings[adapted], base=not adapted)

    with device_memory(f"drawing {len(prompts)} images at once", MEMORY_ADVICE):
        [taken] = sample(predict, model.first_input, model.next_input, noises, [model.steps(len(mixture))])
    for z_CHW, prompt in zip(taken[-1].z_BCHW, prompts, strict=True):
        check_finite(z_CHW, prompt)
    return taken[-1].z_BCHW


def _of_batch(subject: Subject, part: slice, mixture: Mixture, client: RewardClient, rewards: Sequence[str]) -> Rewards:
    pngs = [png_bytes(image) for image in subject.model.decode(draw_mixed(subject, part, mixture))]
    items = score_images(client, list(subject.prompts[part]), pngs, rewards)
    return {name: scores_of(items, name) for name in rewards}


def _row(reward: str, mixture: Mixture, base: list[float | None], own: list[float | None]) -> dict[str, Any]:
    compared = compare(base, own)
    return {
        "reward": reward,
        "adapted_steps": list(mixture),
        "reward_mean": compared.after.as_dict(),
        "difference": compared.difference.as_dict(),
        "n": compared.after.n,
        "failed": compared.after.failed,
    }

"""Draw held-out prompts with fixed seeds in each number of steps, and score them through the reward API.

base = evaluate(model, prompts, ["attribute-binding"], client, seed=10_000, base=True)
adapted = evaluate(model, prompts, ["attribute-binding"], client, seed=10_000)
table = summary_table(base, adapted)

Shape legend: B images of a batch, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lasro.errors import NonFiniteError, WireError
from lasro.files import write_atomically
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.models.device import device_memory
from lasro.models.latent_codec import MEMORY_ADVICE
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_latents
from lasro.wire import ScoredItem, ScoreRequest, scores_of
from lasro_client.evaluation.diffusers_noise import diffusers_noises
from lasro_client.evaluation.result import IMAGE_FOLDERS, Evaluation
from lasro_client.services.failures import failures_of
from lasro_client.services.reward_client import RewardClient

LARGEST_BATCH = 32
# Of a batch, before it is cut: 32 latents of 16x16, or 4 of 128x128, fit where training fits.
LATENT_CELLS_PER_BATCH = 1 << 16
Progress = Callable[[int, int], None]
"""Called with how many are done, and how many there are."""


def batch_size(latent_shape: tuple[int, int, int], most: int | None = None) -> int:
    """Images drawn together: as many as fit for latents of this [C, H, W], at least one and `most` at most."""
    _, height, width = latent_shape
    return min(LARGEST_BATCH, max(1, LATENT_CELLS_PER_BATCH // (height * width)), most or LARGEST_BATCH)


def draw_in_steps(
    model: GeneratorModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    base: bool = False,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> dict[NumSteps, np.ndarray]:
    """By number of steps, images uint8 [B, H, W, 3] of each prompt, as stock diffusers draws them in so many.

    By the model with its adapter, or by the frozen base where `base` is set.

    What the numbers have in common comes from one pass: of an LCM, a single-step sample uses the first noise at
    timestep 999 and ends there, which is exactly the clean latent that the two-step sampler noises again. Raises
    NonFiniteError naming the prompt.
    """
    noises = [noise.to(model.device) for noise in diffusers_noises(seeds, model.latent_shape, steps=max(steps))]
    with torch.no_grad(), device_memory(f"drawing {len(prompts)} images at once", MEMORY_ADVICE):
        conditioning = model.embed(list(prompts), base)
        found = sample_latents(model, noises, conditioning, base, steps)
        for prompt, *latents in zip(prompts, *found, strict=True):
            # A decoder turns NaN into a black image, which a reward would score like any other.
            if not all(part.isfinite().all() for part in latents):
                raise NonFiniteError(f"latents of {prompt[:60]!r} are not finite; the adapter or model is broken")
        return {num_steps: model.decode(z_BCHW) for num_steps, z_BCHW in zip(steps, found, strict=True)}


def evaluate(
    model: GeneratorModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[str],
    client: RewardClient,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    base: bool = False,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> Evaluation:
    """Score images of all prompts in each of `steps`, rising, with any registered rewards.

    Prompt i is drawn with seed + i.

    By the model with its adapter, or by the frozen base where `base` is set.

    Images go to `folder`/one, /two, ... as 00000.png ... where a folder is given. An item that a reward could not
    score stays None and is counted in `failures`; whole requests that fail raise what the client raises.
    """
    items: dict[NumSteps, list[ScoredItem]] = {num_steps: [] for num_steps in steps}
    size = batch_size(model.latent_shape, model.settings.max_batch)
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        seeds = range(seed + start, seed + start + len(batch))
        images = draw_in_steps(model, [prompt.text for prompt in batch], seeds, base, steps)
        for num_steps, images_BHWC in images.items():
            pngs = [png_bytes(image) for image in images_BHWC]
            if folder is not None:
                _save(folder / IMAGE_FOLDERS[num_steps], start, pngs)
            items[num_steps] += score_images(client, batch, pngs, rewards)
        if progress is not None:
            progress(start + len(batch), len(prompts))
    return _gather([prompt.text for prompt in prompts], seed, rewards, items)


def _save(folder: Path, start: int, pngs: Sequence[bytes]) -> None:
    for index, png in enumerate(pngs, start):
        write_atomically(folder / f"{index:05d}.png", png)


def score_images(
    client: RewardClient, batch: Sequence[Prompt], pngs: Sequence[bytes], rewards: Sequence[str], fresh: bool = False
) -> list[ScoredItem]:
    """One item per image, each with a score or failure of every reward; `fresh` passes the cache by.

    Raises WireError for an answer that lacks any of them, and what the client raises.
    """
    request = ScoreRequest(
        prompts=[prompt.text for prompt in batch],
        images=list(pngs),
        rewards=list(rewards),
        metadata=[prompt.metadata for prompt in batch],
        objective=None,
        fresh=fresh,
    )
    items = client.score(request).items
    if len(items) != len(batch):
        raise WireError(f"score: got {len(items)} items for {len(batch)} images, expected one each")
    if missing := [name for name in rewards if any(name not in item.scores for item in items)]:
        raise WireError(f"score: got no score of {missing}, expected every reward asked for")
    return items


def _gather(
    prompts: list[str], seed: int, rewards: Sequence[str], items: dict[NumSteps, list[ScoredItem]]
) -> Evaluation:
    scores = {name: {n: scores_of(found, name) for n, found in items.items()} for name in rewards}
    failed = failures_of([item for found in items.values() for item in found], rewards)
    return Evaluation(
        prompts=prompts,
        seed=seed,
        rewards=scores,
        failures={name: dict(each.statuses) for name, each in failed.items()},
        errors={name: str(each) for name, each in failed.items()},
    )

"""What `model.tiny_vae` changes of the rewards: measured before the first round, printed in one line, kept as a file.

A few training prompts' samples of the base, the same latents, are decoded by the tiny VAE and by the model's own, and
both are scored, past the cache. So what is printed is the change of the reward itself, on what a run ranks: samples of
the same prompt. These calls are no group's, so that no budget counts them.

Shape legend: G prompts, N samples of one, B of all, hwC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lasro.config import RunSettings
from lasro.files import write_json
from lasro.functional.drift import mean_square_difference
from lasro.functional.pair_order import same_order
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_prompts, generator_for, sample_groups
from lasro.wire import scores_of
from lasro_client.evaluation.score_prompts import LARGEST_BATCH, score_images
from lasro_client.run.observer import Observer
from lasro_client.services.reward_client import RewardClient

FILE = "tiny_vae.json"
PROMPTS = 4


def check_tiny_vae(
    config: RunSettings,
    folder: Path,
    model: GeneratorModel,
    prompts: list[Prompt],
    client: RewardClient,
    observer: Observer,
) -> None:
    """Measure and print it, unless the settings name no tiny VAE or an earlier life of the run has done so."""
    path = folder / FILE
    if config.model.tiny_vae is None or path.exists():
        return
    observer.activity("scoring the same samples by the tiny VAE and by the model's own")
    chosen = draw_prompts(prompts, PROMPTS, generator_for(config.seed, "tiny VAE prompts"))
    groups = sample_groups(model, chosen, config.train, config.seed, "tiny VAE", base=True)
    latents = [group.latents_BCHW.to(model.device) for group in groups]
    decoded = [[model.decode_to_score(z) for z in latents], [model.decode(z, mixed=True) for z in latents]]
    names = list(config.weights)
    by_tiny, by_own = (
        [_scores(client, prompt, images, names) for prompt, images in zip(chosen, of_each, strict=True)]
        for of_each in decoded
    )
    found = {
        "samples": sum(len(images) for images in decoded[0]),
        "rms_255": _pixel_difference(*(np.concatenate(of_each) for of_each in decoded)),
        "rewards": {
            name: _compared([scores[name] for scores in by_tiny], [scores[name] for scores in by_own]) for name in names
        },
    }
    write_json(path, found)
    observer.activity(None)
    observer.note(_line(found))


def _scores(
    client: RewardClient, prompt: Prompt, images_NhwC: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    items, pngs = [], [png_bytes(image) for image in images_NhwC]
    for start in range(0, len(pngs), LARGEST_BATCH):
        part = pngs[start : start + LARGEST_BATCH]
        items += score_images(client, [prompt] * len(part), part, names, fresh=True)
    return {name: np.array(scores_of(items, name), dtype=float) for name in names}


def _compared(tiny_GN: Sequence[np.ndarray], own_GN: Sequence[np.ndarray]) -> dict[str, Any]:
    """Means over samples that both have a score of, and how many pairs within prompts are ranked alike."""
    counted = [same_order(own_N, tiny_N) for own_N, tiny_N in zip(own_GN, tiny_GN, strict=True)]
    same, pairs = sum(same for same, _ in counted), sum(pairs for _, pairs in counted)
    tiny, own = np.concatenate(tiny_GN), np.concatenate(own_GN)
    known = np.isfinite(tiny) & np.isfinite(own)
    return {
        "n": int(known.sum()),
        "tiny_vae": float(tiny[known].mean()) if known.any() else None,
        "own_vae": float(own[known].mean()) if known.any() else None,
        "same_order": same / pairs if pairs else None,
    }


def _pixel_difference(a_BhwC: np.ndarray, b_BhwC: np.ndarray) -> float:
    """Root of the mean square, 0 to 255."""
    return mean_square_difference(torch.from_numpy(a_BhwC), torch.from_numpy(b_BhwC)) ** 0.5


def _line(found: dict[str, Any]) -> str:
    rewards = [
        f"{name} is {each['tiny_vae']:.4g} by it and {each['own_vae']:.4g} by the model's own"
        + ("" if each["same_order"] is None else f", which rank {each['same_order']:.0%} of pairs alike")
        if each["n"]
        else f"{name} has no score of either"
        for name, each in found["rewards"].items()
    ]
    return (
        f"tiny_vae, on {found['samples']} samples: {'; '.join(rewards)}; pixels differ by {found['rms_255']:.3g} of 255"
    )

"""Images of a prompt file, pixel for pixel as stock diffusers draws them, but in batches.

Shape legend: B images of a batch, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lasro.config import ModelSettings
from lasro.errors import ConflictError, StorageError
from lasro.files import write_atomically, write_json
from lasro.images import png_bytes
from lasro.models.adapter import AdapterKeys
from lasro.models.base import GeneratorModel
from lasro.models.device import device_memory
from lasro.models.latent_codec import MEMORY_ADVICE
from lasro.num_steps import NumSteps
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_latents
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.evaluation.diffusers_noise import diffusers_noises
from lasro_client.evaluation.score_prompts import Progress, batch_size

INDEX = "index.json"


class Generated(NamedTuple):
    """The images' index.json, and how much of the adapter was loaded; None without one."""

    index_file: Path
    adapter_keys: AdapterKeys | None


def draw(model: GeneratorModel, prompts: Sequence[str], seeds: Sequence[int], steps: NumSteps) -> np.ndarray:
    """Images uint8 [B, H, W, 3]; row i is what a stock pipeline draws with a CPU generator seeded `seeds[i]`."""
    noises = [noise.to(model.device) for noise in diffusers_noises(seeds, model.latent_shape, steps)]
    with torch.no_grad(), device_memory(f"drawing {len(prompts)} images at once", MEMORY_ADVICE):
        conditioning = model.embed(list(prompts))
        return model.decode(sample_latents(model, noises, conditioning)[-1])


def generate(
    settings: ModelSettings,
    adapter: Path | None,
    prompts: Sequence[Prompt],
    seed: int,
    steps: NumSteps,
    out: Path,
    batch: int | None = None,
    progress: Progress | None = None,
    partial: bool = False,
) -> Generated:
    """Draw prompt i with `seed + i` to `out`/00000.png ... and tell of them in `out`/index.json, written last.

    `batch` images are drawn together (absent: as many as fit); it changes no image by more than rounding. `partial`
    is that of `GeneratorModel.load_lora`. A folder of an earlier call is replaced; one with anything else in it is
    refused. Raises ConflictError, ModelError, PromptTooLongError before anything is written, StorageError when the
    disk is full.
    """
    clear = _own_files(out)
    model, keys = load_adapted(settings, adapter, partial)
    step = batch or batch_size(model.latent_shape, settings.max_batch)
    starts = range(0, len(prompts), step)
    model.check_prompts([prompt.text for prompt in prompts])
    model.embed_ahead([prompt.text for prompt in prompts])
    for path in clear:
        path.unlink(missing_ok=True)
    for start in starts:
        texts = [prompt.text for prompt in prompts[start : start + step]]
        seeds = range(seed + start, seed + start + len(texts))
        for index, image in enumerate(draw(model, texts, seeds, steps), start):
            write_atomically(out / f"{index:05d}.png", png_bytes(image))
        if progress is not None:
            progress(start + len(texts), len(prompts))
    about: dict[str, Any] = {"model": settings.path, "adapter": None if adapter is None else str(adapter)}
    if keys is not None:
        about["adapter_keys"] = keys.as_dict()
    write_json(out / INDEX, about | {"images": _index(settings, prompts, seed, steps)})
    return Generated(out / INDEX, keys)


def _own_files(out: Path) -> list[Path]:
    """Files that an earlier call left in `out`, the index first."""
    try:
        found = sorted(out.iterdir(), key=lambda path: path.name != INDEX) if out.exists() else []
    except OSError as error:
        raise StorageError(f"{out}: not a readable folder ({error.strerror}); choose another") from error
    strange = [path.name for path in found if path.name != INDEX and not _is_image_name(path)]
    if strange:
        raise ConflictError(f"{out}: holds {strange[0]!r}, expected a new folder or one of an earlier `lasro generate`")
    return found


def _is_image_name(path: Path) -> bool:
    return path.suffix == ".png" and len(path.stem) >= 5 and path.stem.isdecimal()


def _index(settings: ModelSettings, prompts: Sequence[Prompt], seed: int, steps: NumSteps) -> list[dict[str, Any]]:
    return [
        {
            "file": f"{index:05d}.png",
            "prompt": prompt.text,
            "seed": seed + index,
            "steps": steps,
            "guidance": settings.guidance,
            "metadata": prompt.metadata,
        }
        | ({} if settings.timesteps is None else {"timesteps": settings.timesteps[:steps]})
        for index, prompt in enumerate(prompts)
    ]

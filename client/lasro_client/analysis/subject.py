"""What is analysed: a few-step model, its adapter where it has one, and some prompts. `lasro analyze`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lasro.config import ModelSettings
from lasro.errors import NonFiniteError
from lasro.models.adapter_file import read_adapter
from lasro.models.base import GeneratorModel
from lasro.num_steps import NumSteps
from lasro.training.prompts import Prompt
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.evaluation.score_prompts import batch_size

BASE, ADAPTED = "base", "adapted"


class Subject(NamedTuple):
    """A loaded model and the prompts that it is asked for; prompt i draws its noise from (`seed`, i)."""

    model: GeneratorModel
    prompts: Sequence[Prompt]
    seed: int
    policies: tuple[str, ...]
    """`base` and, with an adapter, `adapted`."""
    about: dict[str, Any]
    """Of the result: which model, adapter, prompts and seed."""

    def batches(self, count: int) -> Iterator[slice]:
        """Parts of `count` samples that fit the device together."""
        size = batch_size(self.model.latent_shape, self.model.settings.max_batch)
        return (slice(start, start + size) for start in range(0, count, size))


def load_subject(
    settings: ModelSettings,
    adapter: Path | None,
    prompts: Sequence[Prompt],
    seed: int,
    steps: Sequence[NumSteps],
    partial: bool = False,
) -> Subject:
    """The model with its adapter; raises ModelError, also where its sampler lacks one of these numbers of steps."""
    # Read first: a large model need not be loaded for one that is broken.
    digest = None if adapter is None else sha256(read_adapter(adapter).path.read_bytes()).hexdigest()
    model, keys = load_adapted(settings, adapter, partial)
    for num_steps in steps:
        model.steps(num_steps)
    texts = [prompt.text for prompt in prompts]
    model.check_prompts(texts)
    model.embed_ahead(texts)
    about: dict[str, Any] = {
        "model": settings.path,
        "adapter": None if adapter is None else str(adapter),
        "adapter_sha256": digest,
        "prompts": texts,
        "seed": seed,
        "device": model.device.type,
        "settings": settings.model_dump(mode="json", exclude_defaults=True) | {"timesteps": settings.timesteps},
    }
    if keys is not None:
        about["adapter_keys"] = keys.as_dict()
    return Subject(model, prompts, seed, (BASE,) if adapter is None else (BASE, ADAPTED), about)


def check_finite(latents_BCHW: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """The same latents; raises NonFiniteError naming the prompt."""
    if not latents_BCHW.isfinite().all():
        raise NonFiniteError(f"latents of {prompt.text[:60]!r} are not finite; the adapter or model is broken")
    return latents_BCHW

"""What is measured, at its true size on a GPU or as small as can be for a smoke test, and the settings of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lasro.config import RunSettings

PROMPTS = [
    f"a photo of a {thing}" for thing in ("cat", "red house", "blue tree", "dog on the left", "cat on the right")
]
REWARD = {"name": "jpeg-compressibility", "serve": "lasro_rewards.jpeg:compressibility"}
"""Takes next to no time, needs no weights, and differs between any two images."""
RECIPE = {
    "train": {"prompts_per_round": 8, "batch_size": 8, "micro_batch_size": 4, "mode": "gradient"},
    "surrogate": {"groups_per_step": 6},
}
"""Of the recipes in `configs/`, but for fewer micro-batches of the same size."""
LARGE_RECIPE = {
    "train": {"prompts_per_round": 2, "batch_size": 4, "micro_batch_size": 2, "mode": "gradient"},
    "surrogate": {"groups_per_step": 2},
}
"""The same, of the largest models."""
TINY_RECIPE = {
    "train": {
        "prompts_per_round": 1,
        "seeds_per_prompt": 2,
        "batch_size": 2,
        "micro_batch_size": 1,
        "mode": "gradient",
    },
    "surrogate": {"groups_per_step": 1},
}


class Trained(NamedTuple):
    """A model whose memory is measured, and what a card has that it should be trained on."""

    architecture: str
    card_gb: int
    guidance: float
    recipe: dict[str, dict[str, Any]]


class Sizes(NamedTuple):
    """Names are those of `benchmarks/architectures`."""

    model: str
    tiny_vae: str
    trained: tuple[Trained, ...]
    dtype: str
    batch: int
    """Images drawn together, and prompts of an update."""
    groups: int
    """Of a round, and of a step of the surrogate."""


FULL = Sizes(
    "ssd-1b",
    "taesdxl",
    (
        Trained("ssd-1b", 24, 8.0, RECIPE),
        Trained("sdxl", 40, 8.0, RECIPE),
        Trained("z-image-turbo", 80, 1.0, LARGE_RECIPE),
    ),
    "bfloat16",
    batch=4,
    groups=2,
)
TINY = Sizes(
    "tiny-sdxl",
    "tiny-taesdxl",
    (
        Trained("tiny-sdxl", 24, 8.0, TINY_RECIPE),
        Trained("tiny-sdxl", 40, 8.0, TINY_RECIPE),
        Trained("tiny-z-image", 80, 1.0, TINY_RECIPE),
    ),
    "float32",
    batch=2,
    groups=1,
)


def run_settings(sizes: Sizes, folder: Path, model: dict[str, Any] | None = None, **tables: Any) -> RunSettings:
    """A run of the model in `folder / "model"`, as the recipes are: adapters as trunk, activations computed twice.

    Its prompts are written into the folder.
    """
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    chosen = {"path": str(folder / "model"), "dtype": sizes.dtype, "guidance": 8.0, "gradient_checkpointing": True}
    train = {"batch_size": sizes.batch, "prompts_per_round": sizes.groups, "seeds_per_prompt": 2, "warmup_rounds": 0}
    return RunSettings.model_validate(
        {
            "name": "bench-gpu",
            "model": chosen | (model or {}),
            "prompts": {"train": str(prompts), "held_out": str(prompts)},
            "rewards": [REWARD],
            "surrogate": {"trunk": "adapter", "groups_per_step": sizes.groups} | tables.pop("surrogate", {}),
            "train": train | tables.pop("train", {}),
            "evaluation": {"prompts": 1, "drift_prompts": 0},
        }
        | tables
    )

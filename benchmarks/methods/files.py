"""What some runs need besides settings, made once in the folder of the benchmark."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from benchmarks.easy_reward import teacher_folder, write_latents
from benchmarks.methods.prompts import shapes
from benchmarks.methods.variants import FILES, RANDOM_TRUNK, TEACHER_LATENTS, Variant

LATENTS = 64
"""How many samples are distilled on."""


def make_files(variant: Variant, out: Path) -> None:
    """Those that a variant's settings name, in `out`/files; what is there already stays."""
    folder = out / Path(FILES).name
    for name, write in ((TEACHER_LATENTS, _write_latents), (RANDOM_TRUNK, _write_random_trunk)):
        if f"{FILES}/{name}" not in variant.settings.values() or (folder / name).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            write(Path(unfinished) / name)
            (Path(unfinished) / name).rename(folder / name)


def _write_latents(file: Path) -> None:
    """Of the bundled model itself, as its teacher is: what distilled it is not shipped."""
    write_latents("bundled", file, [prompt.text for prompt in shapes().train[:LATENTS]])


def _write_random_trunk(folder: Path) -> None:
    """The bundled model with a UNet as torch initialises it, seed 0."""
    shutil.copytree(teacher_folder("bundled"), folder)
    config: Any = UNet2DConditionModel.load_config(folder / "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel.from_config(config)
    unet.save_pretrained(folder / "unet")

"""Stage 4: a diffusers folder of a StableDiffusionXLPipeline in half precision, with its model card."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lasro.errors import ModelError, StorageError
from tiny_recipe.card import write_card
from tiny_recipe.lcm import finished_student
from tiny_recipe.networks import saved_tokenizer, scheduler
from tiny_recipe.teacher import finished_encoders
from tiny_recipe.vae import finished_vae, fix_deviation
from tiny_recipe.work_dir import WorkDir

LARGEST_MODEL_BYTES = 32_000_000


def export(work_dir: WorkDir) -> Path:
    """Write the model to `model/` in the work directory; raises ModelError where it grew over its limit."""
    recipe, cpu = work_dir.recipe, torch.device("cpu")
    vae, student = finished_vae(work_dir, cpu), finished_student(work_dir, cpu)
    fix_deviation(vae.network, recipe.vae.deviation / vae.scaling_factor)
    vae.network.register_to_config(scaling_factor=vae.scaling_factor)
    tokenizers = [saved_tokenizer(recipe, work_dir.tokenizer) for _ in range(2)]
    encoders = finished_encoders(work_dir, tokenizers[0], cpu)
    diffusers: Any = importlib.import_module("diffusers")  # its annotations refuse what it documents
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae.network.half(), encoders["text_encoder"].half(), encoders["text_encoder_2"].half(), *tokenizers,
        student.half(), scheduler(recipe), force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip
    folder = work_dir.folder / "model"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        pipeline.save_pretrained(folder)
        _tidy(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}); free the disk or choose another"
        ) from error
    write_card(work_dir, folder)
    size_bytes = folder_bytes(folder)
    if size_bytes > LARGEST_MODEL_BYTES:
        raise ModelError(f"{folder}: {size_bytes} bytes, expected at most {LARGEST_MODEL_BYTES}; narrow the channels")
    return folder


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tidy(folder: Path) -> None:
    """Leave out where the parts lay on this machine, and the indentation that doubles a tokenizer's size."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        elif path.name == "tokenizer.json":
            path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

"""A UNet that stands alone: the setting `model.unet`, a teacher, or what is in a single file.

A file has no configuration. That of a UNet in diffusers' own names lies next to it, or is taken from the folder that
`model.config` or `model.path` names; the original names of Stable Diffusion are converted by diffusers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from lasro.errors import ModelError
from lasro.models.files import check_weights_file, is_single_file, local_source, looks_local, read_json
from lasro.models.loading import check_finite, load_network, load_part, loading, unread_part

GUIDANCE_WEIGHT = "time_embedding.cond_proj.weight"
ORIGINAL_GUIDANCE_WEIGHT = "model.diffusion_model.time_embed.cond_proj.weight"


def load_unet(source: str, where: str, dtype: torch.dtype, config: str | None = None, unread: bool = False) -> Any:
    """The UNet of a folder (its own or a pipeline's), a hub id, or a file with the configuration that `config` names.

    With `unread` that of a folder is on the meta device. Raises ModelError that begins with `where`.
    """
    path, config = Path(local_source(source)), None if config is None else local_source(config)
    if is_single_file(source):
        return unet_of_file(path, where, dtype, config)
    with loading(where):  # a path may be one that the system refuses to look at
        folder = next((folder for folder in (path / "unet", path) if folder.is_dir()), None)
    if folder is not None:
        load = unread_part if unread else load_part
        return load(UNet2DConditionModel, folder, f"{where}: unet", dtype)
    if looks_local(source):
        raise ModelError(f"{where}: no such folder; expected a UNet's folder, its file or a hub id")
    return load_network(UNet2DConditionModel, source, f"{where}: unet", dtype)


def unet_of_file(path: Path, where: str, dtype: torch.dtype, config: str | None) -> Any:
    """The UNet in a single file, in diffusers' names or those of Stable Diffusion."""
    where = f"{where}: unet"
    check_weights_file(path, where)
    with loading(where), safe_open(path, "pt") as file:
        names = set(file.keys())
        guidance = {name: file.get_tensor(name) for name in names & {GUIDANCE_WEIGHT, ORIGINAL_GUIDANCE_WEIGHT}}
    if "conv_in.weight" in names:
        return _in_names_of_diffusers(path, where, dtype, config, guidance.get(GUIDANCE_WEIGHT))
    if config is None:
        raise ModelError(f"{where}: a file has no configuration; set model.config to a diffusers folder of its kind")
    with loading(where):
        unet: Any = UNet2DConditionModel.from_single_file(
            str(path), config=config, subfolder="unet", dtype=dtype, time_cond_proj_dim=None
        )
    if ORIGINAL_GUIDANCE_WEIGHT in guidance:
        _add_guidance(unet, guidance[ORIGINAL_GUIDANCE_WEIGHT], dtype)
    check_finite(unet, where)
    return unet


def _in_names_of_diffusers(
    path: Path, where: str, dtype: torch.dtype, config: str | None, guidance: Tensor | None
) -> Any:
    """As from a folder, so that what is missing or left over is found."""
    settings = _configuration(path, where, config)
    if guidance is not None:  # as where the distilled UNet of a base is published as a file
        settings["time_cond_proj_dim"] = guidance.shape[1]
    with tempfile.TemporaryDirectory(prefix="lasro-") as folder:
        Path(folder, "config.json").write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, "diffusion_pytorch_model.safetensors").symlink_to(path.resolve())
        return load_network(UNet2DConditionModel, folder, where, dtype)


def _configuration(path: Path, where: str, config: str | None) -> dict[str, Any]:
    nearby = path.with_name("config.json")
    if nearby.is_file() and (found := read_json(nearby, where)).get("_class_name") == UNet2DConditionModel.__name__:
        return found
    if config is None:
        raise ModelError(f"{where}: no config.json next to {path.name}; set model.config to a diffusers folder")
    with loading(where):
        found: Any = UNet2DConditionModel.load_config(config, subfolder="unet")
        return dict(found)


def _add_guidance(unet: Any, weight: Tensor, dtype: torch.dtype) -> None:
    """The guidance embedding of a consistency model, which diffusers' converter leaves out."""
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        projection.weight.copy_(weight)
    unet.time_embedding.cond_proj = projection
    unet.register_to_config(time_cond_proj_dim=weight.shape[1])

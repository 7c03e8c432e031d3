"""A diffusers folder of the SD1.5 class as one file, its UNet in the names that Stable Diffusion was published with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from changed_model import UNET_WEIGHTS, VAE_WEIGHTS
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = (
    (r"(down|up)(?:_blocks)?\.(\d)\.resnets\.(\d)", r"\1.\2.block.\3"),
    (r"(down|up)(?:_blocks)?\.(\d)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)


def _blocks(names: set[str]) -> dict[str, str]:
    """Prefixes of the down and up blocks' modules: diffusers' to Stable Diffusion's."""
    found: dict[str, str] = {}
    for side, ours, theirs, resampler in (
        ("down_blocks", "input_blocks", 1, "downsamplers.0.conv"),
        ("up_blocks", "output_blocks", 0, "upsamplers.0.conv"),
    ):
        number = theirs
        for block in sorted(_numbers(names, side)):
            prefix = f"{side}.{block}"
            for index in sorted(_numbers(names, f"{prefix}.resnets")):
                found[f"{prefix}.resnets.{index}"] = f"{ours}.{number}.0"
                found[f"{prefix}.attentions.{index}"] = f"{ours}.{number}.1"
                number += 1
            if not any(name.startswith(f"{prefix}.{resampler}") for name in names):
                continue
            if side == "down_blocks":
                found[f"{prefix}.{resampler}"] = f"{ours}.{number}.0.op"
                number += 1
            else:
                place = 2 if any(name.startswith(f"{prefix}.attentions") for name in names) else 1
                found[f"{prefix}.{resampler}"] = f"{ours}.{number - 1}.{place}.conv"
    return found


def ldm_name(name: str, prefixes: dict[str, str]) -> str:
    """A UNet weight's name as Stable Diffusion has it."""
    prefix = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))
    rest = name.removeprefix(f"{prefix}.")
    part, _, end = rest.partition(".")
    if ".resnets." in f".{prefix}." and part in RESNET:
        rest = f"{RESNET[part]}.{end}"
    return f"model.diffusion_model.{prefixes[prefix]}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """A VAE weight's name as Stable Diffusion has it; its up blocks are counted from the other end."""
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    for ours, theirs in VAE:
        name = re.sub(ours, theirs, name)
    return f"first_stage_model.{name}"


def _as_convolution(name: str, weight: Tensor) -> Tensor:
    is_linear = ".attentions.0.to_" in name and name.endswith("weight")
    return weight[:, :, None, None] if is_linear else weight


def _numbers(names: Iterable[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix).split(".")[1] for name in names if name.startswith(prefix)}


def write_single_file(folder: Path, path: Path) -> Path:
    """UNet, VAE and text encoder of a folder in one file."""
    unet = load_file(folder / UNET_WEIGHTS)
    prefixes = WHOLE | _blocks(set(unet))
    weights = {ldm_name(name, prefixes): tensor for name, tensor in unet.items()}
    vae = load_file(folder / VAE_WEIGHTS)
    weights |= {
        vae_name(name, len(_numbers(vae, "decoder.up_blocks"))): _as_convolution(name, vae[name]) for name in vae
    }
    encoder = load_file(folder / "text_encoder/model.safetensors")
    for name, tensor in encoder.items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    return path

"""LoRA files in every form in which people have them, all of the same LoRA of the tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module to `down` [rank, in, ...] and `up` [out, rank, ...]; `up @ down` is added to its weight."""
State = dict[str, torch.Tensor]

UNET = "unet/diffusion_pytorch_model.safetensors"
PLAIN = "pytorch_lora_weights.safetensors"
PEFT = "adapter_model.safetensors"
RANK = 4
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SGM_BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0": "input_blocks.2.0",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""By hand, for the UNet of `write_tiny_model`."""
SGM_INNER = {
    "resnets": {
        "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}  # fmt: skip


def random_factors(weights: Path, endings: tuple[str, ...] = (), scale: float = 0.1, rank: int = RANK) -> Factors:
    """For the linear and convolution layers in a file of weights, those with one of these endings where there are any.

    Float32, of values that float16 has too. The guidance embedding's layer is left out: no layout but diffusers' has a
    name for it.
    """
    draws = torch.Generator().manual_seed(1)
    factors = {}
    for name, weight in sorted(load_file(weights).items()):
        module = name.removesuffix(".weight")
        if (
            not name.endswith(".weight")
            or weight.ndim not in (2, 4)
            or "cond_proj" in module
            or "_embedding." in module
        ):
            continue
        if not endings or module.endswith(endings):
            kernel = (1,) * (weight.ndim - 2)
            shapes = ((rank, *weight.shape[1:]), (len(weight), rank, *kernel))
            down, up = ((torch.randn(shape, generator=draws) * scale).half().float() for shape in shapes)
            factors[module] = (down, up)
    return factors


def diffusers_form(factors: Factors, prefix: str = "unet.", name: str = "") -> State:
    """As stock diffusers and peft write it; `name`: of the adapter, as in `.default`."""
    state = {}
    for module, (down, up) in factors.items():
        state |= {f"{prefix}{module}.lora_A{name}.weight": down, f"{prefix}{module}.lora_B{name}.weight": up}
    return state


def processor_form(factors: Factors, prefix: str = "unet.") -> State:
    """As diffusers wrote attention layers before it used peft."""
    state = {}
    for module, (down, up) in factors.items():
        for factor, tensor in (("down", down), ("up", up)):
            key = f"{module}.lora.{factor}.weight"
            for layer in ATTENTION:
                attention = f".processor.{layer.removesuffix('.0')}_lora.{factor}.weight"
                key = key.replace(f".{layer}.lora.{factor}.weight", attention)
            state[prefix + key] = tensor
    return state


def kohya_form(factors: Factors, prefix: str = "lora_unet_", alpha: Callable[[int], float] = lambda _: 2.0) -> State:
    """As sd-scripts writes it; `alpha` of the i-th module is taken out of `up` again."""
    state = {}
    for i, (module, (down, up)) in enumerate(factors.items()):
        flat = prefix + module.replace(".", "_")
        state[f"{flat}.lora_down.weight"] = down
        state[f"{flat}.lora_up.weight"] = up / (alpha(i) / len(down))
        state[f"{flat}.alpha"] = torch.tensor(alpha(i))
    return state


def sgm_names(factors: Factors) -> Factors:
    """The same under the names of the first published UNet, on which sd-scripts trains SDXL."""
    renamed = {}
    for module, pair in factors.items():
        block = next(block for block in SGM_BLOCKS if module == block or module.startswith(f"{block}."))
        inner = module.removeprefix(block).removeprefix(".")
        kind = next((names for part, names in SGM_INNER.items() if part in block), {})
        renamed[".".join(filter(None, (SGM_BLOCKS[block], kind.get(inner, inner))))] = pair
    return renamed


def write_adapter(
    path: Path, state: State, config: dict[str, Any] | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """A file of that name, in a folder of its own with peft's configuration where there is one; returns the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt"} | (metadata or {}))
    if config is not None:
        (path.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    return path.parent

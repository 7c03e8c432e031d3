"""Which modules ComfyUI and A1111 find in a LoRA file, by the rules of their loaders, for UNets of known layout.

Written from their rules, not from ours: `lora.py` and `utils.py` of ComfyUI, `networks.py` of A1111's Lora extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

RESNET = {
    "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*(f"attn{i}.{name}" for i in (1, 2) for name in PROJECTIONS), "ff.net.0.proj", "ff.net.2")
TOP = {
    "input_blocks.0.0": "conv_in", "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
}  # fmt: skip
LABELS = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}


class Layout(NamedTuple):
    """Of a UNet as it was first published: its number of resolutions, and how deep the transformers are."""

    resnets: int
    """Of each resolution on the way down; one more on the way up."""
    depths_down: tuple[tuple[int, ...], ...]
    """By resolution and resnet; 0: no transformer."""
    depth_middle: int | None
    """None: the middle is one resnet alone."""
    depths_up: tuple[tuple[int, ...], ...]
    has_labels: bool = True


BUNDLED = Layout(1, ((0,), (1,), (1,)), 1, ((1, 1), (1, 1), (0, 0)))
SDXL = Layout(2, ((0, 0), (2, 2), (10, 10)), 10, ((10, 10, 10), (2, 2, 2), (0, 0, 0)))
SSD_1B = Layout(2, ((0, 0), (2, 2), (4, 4)), None, ((4, 4, 10), (2, 1, 1), (0, 0, 0)))
SD15 = Layout(2, ((1, 1), (1, 1), (1, 1), (0, 0)), 1, ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)), False)


def modules(layout: Layout) -> dict[str, str]:
    """Each module's name in the first published UNet, and in diffusers."""
    found = TOP | (LABELS if layout.has_labels else {})
    found |= dict(_down(layout)) | dict(_middle(layout)) | dict(_up(layout))
    return found


def _down(layout: Layout) -> Iterator[tuple[str, str]]:
    for x, depths in enumerate(layout.depths_down):
        first = 1 + (layout.resnets + 1) * x
        for i, depth in enumerate(depths):
            yield from _resnet(f"input_blocks.{first + i}.0", f"down_blocks.{x}.resnets.{i}")
            yield from _transformer(f"input_blocks.{first + i}.1", f"down_blocks.{x}.attentions.{i}", depth)
        if x < len(layout.depths_down) - 1:
            yield f"input_blocks.{first + layout.resnets}.0.op", f"down_blocks.{x}.downsamplers.0.conv"


def _middle(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    if layout.depth_middle is not None:
        yield from _transformer("middle_block.1", "mid_block.attentions.0", layout.depth_middle)
        yield from _resnet("middle_block.2", "mid_block.resnets.1")


def _up(layout: Layout) -> Iterator[tuple[str, str]]:
    for x, depths in enumerate(layout.depths_up):
        first = (layout.resnets + 1) * x
        for i, depth in enumerate(depths):
            yield from _resnet(f"output_blocks.{first + i}.0", f"up_blocks.{x}.resnets.{i}")
            yield from _transformer(f"output_blocks.{first + i}.1", f"up_blocks.{x}.attentions.{i}", depth)
        if x < len(layout.depths_up) - 1:
            place = 2 if depths[-1] else 1
            yield f"output_blocks.{first + layout.resnets}.{place}.conv", f"up_blocks.{x}.upsamplers.0.conv"


def _resnet(first: str, diffusers: str) -> Iterator[tuple[str, str]]:
    return ((f"{first}.{theirs}", f"{diffusers}.{ours}") for theirs, ours in RESNET.items())


def _transformer(first: str, diffusers: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth == 0:
        return
    inner = ["proj_in", "proj_out", *(f"transformer_blocks.{i}.{name}" for i in range(depth) for name in TRANSFORMER)]
    yield from ((f"{first}.{name}", f"{diffusers}.{name}") for name in inner)


def comfy_modules(layout: Layout, keys: Iterable[str]) -> set[str]:
    """Modules, by diffusers' names, for which ComfyUI finds both factors among these keys.

    For each prefix that it knows it looks for its factors, in the order of the pairs below.
    """
    keys, found = set(keys), set()
    pairs = (
        (".lora_up.weight", ".lora_down.weight"), ("_lora.up.weight", "_lora.down.weight"),
        (".lora_B.weight", ".lora_A.weight"), (".lora.up.weight", ".lora.down.weight"),
    )  # fmt: skip
    for prefix, module in _comfy_prefixes(layout).items():
        up = next((pair for pair in pairs if prefix + pair[0] in keys), None)
        if up is not None and prefix + up[1] in keys:
            found.add(module)
    return found


def _comfy_prefixes(layout: Layout) -> dict[str, str]:
    prefixes = {}
    for first, diffusers in modules(layout).items():
        prefixes[f"lora_unet_{_flat(first)}"] = prefixes[f"diffusion_model.{first}"] = diffusers
        prefixes[f"lora_unet_{_flat(diffusers)}"] = prefixes[f"lycoris_{_flat(diffusers)}"] = diffusers
        of_old = re.sub(r"\.to_out\.0$", ".to_out", diffusers).replace(".to_", ".processor.to_")
        prefixes[of_old] = prefixes[f"unet.{of_old}"] = diffusers
    return prefixes


def a1111_modules(layout: Layout, keys: Iterable[str]) -> set[str]:
    """Modules, by diffusers' names, that A1111 finds for keys in kohya's form.

    It takes diffusers' names for those of SD1.5, whatever the model; what is none of these it looks up as it is.
    """
    theirs = {f"lora_unet_{_flat(first)}": name for first, name in modules(layout).items()}
    widest = Layout(2, ((10, 10),) * 4, 10, ((10, 10, 10),) * 4, has_labels=False)
    as_sd15 = {f"lora_unet_{_flat(name)}": f"lora_unet_{_flat(first)}" for first, name in modules(widest).items()}
    as_sd15["lora_unet_up_blocks_0_upsamplers_0_conv"] = "lora_unet_output_blocks_2_1_conv"  # SD1.5 has none before it
    names = {key.split(".")[0] for key in keys}
    asked = {as_sd15.get(name, name) for name in names}
    return {theirs[name] for name in asked if name in theirs}


def kohya_keys(names: Mapping[str, str]) -> list[str]:
    """The keys of a file in kohya's form, of module names there."""
    return [f"{name}.{key}" for name in names.values() for key in ("lora_down.weight", "lora_up.weight", "alpha")]


def _flat(name: str) -> str:
    return name.replace(".", "_")

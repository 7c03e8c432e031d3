"""Which module of a network a key of a LoRA file means, in all the ways in which people write it.

Names are looked up among those of the network's own modules: what is not there has no place, and is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import nn

UNET, TRANSFORMER = "unet", "transformer"
NETWORKS = {UNET: "UNet", TRANSFORMER: "transformer"}
"""Parts that are trained, as people call them."""
# What a wrapper of the network, or a format for whole models, puts in front; a part's name may come before or after it.
WRAPPER = re.compile(
    r"(?P<part>unet\.|transformer\.|text_encoder(?:_2)?\.|)"
    r"(?:(?:base_model\.model|module|_orig_mod|(?:model\.)?diffusion_model)\.)+"
)
KOHYA_NETWORK = ("lora_unet_", "lora_transformer_", "lycoris_")
KOHYA_PARTS = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
FACTORS = {
    "lora_A": "A",
    "lora_down": "A",
    "lora_B": "B",
    "lora_up": "B",
    "lora_mid": "mid",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
}
# An adapter's name may follow the factor's, as in `to_q.lora_A.default.weight`; a bias of a factor is not supported.
KEY = re.compile(rf"(.+)\.({'|'.join(FACTORS)})(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?")
SGM_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNSUPPORTED = {
    r"hada_": "LoHa",
    r"lokr_": "LoKr",
    r"oft_": "OFT",
    r"on_input": "IA3",
    r"controlnet|control_model": "a ControlNet",
    r"emb_params|string_to_param": "a textual inversion",
    r"^(lora_)?transformer[._]|(double|single|joint)_(transformer_)?blocks": "a LoRA of a transformer (FLUX, SD3)",
    r"^diffusion_model\.(blocks|layers)\.": "a LoRA of a transformer (Wan, Lumina)",
    r"lora.*\.bias$": "a bias of a LoRA",
    r"\.(diff(_b)?|[wb]_norm)$|^(?!.*lora).*\.(weight|bias)$": "whole weights of modules, in place of factors",
}
"""What keys of other adapters and models look like."""


class Place(NamedTuple):
    """Part of the pipeline, module in it, and one of A, B, mid, alpha, magnitude."""

    part: str
    module: str
    factor: str


class ModuleNames:
    """The modules of a pipeline's networks that may carry a LoRA, by every name that files give them."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        """`networks`: without adapters, by part: `unet` or `transformer`, and the text encoders."""
        self._network = next((part for part in NETWORKS if part in networks), UNET)
        self._kohya_parts = dict.fromkeys(KOHYA_NETWORK, self._network) | KOHYA_PARTS
        self.modules: dict[str, dict[str, nn.Linear | nn.Conv2d]] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._flat_names: dict[str, dict[str, str]] = {}
        for part, network in networks.items():
            found = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
            aliases = _aliases(part, network, found)
            names = aliases | {name: name for name in found}
            self.modules[part], self._names[part] = found, names
            self._flat_names[part] = {alias.replace(".", "_"): name for alias, name in names.items()}

    def find(self, key: str) -> Place | None:
        """None for a key that means nothing here."""
        key = WRAPPER.sub(r"\g<part>", key, count=1) if WRAPPER.match(key) else key
        for prefix, part in self._kohya_parts.items():
            if key.startswith(prefix):
                return self._place(part, key.removeprefix(prefix), self._flat_names)
        part = next((part for part in self._names if key.startswith(f"{part}.")), self._network)
        return self._place(part, _peft_key(part, key.removeprefix(f"{part}.")), self._names)

    def _place(self, part: str, key: str, names: Mapping[str, Mapping[str, str]]) -> Place | None:
        found = KEY.fullmatch(key)
        module = names.get(part, {}).get(found[1]) if found else None
        return Place(part, module, FACTORS[found[2]]) if found and module is not None else None


def unsupported_kind(keys: list[str]) -> str | None:
    """What sort of adapter keys without a place are of, where that is known."""
    return next((kind for mark, kind in UNSUPPORTED.items() if any(re.search(mark, key) for key in keys)), None)


def _peft_key(part: str, key: str) -> str:
    """As peft names it, from any of the names that diffusers gave it over time."""
    keys: dict[str, Any] = {key: None}
    if part in NETWORKS:
        keys = convert_unet_state_dict_to_peft(keys)
    else:
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            keys = convert_state_dict_to_peft(keys, original_type=kind)
    return next(iter(keys))


def _aliases(part: str, network: nn.Module, found: Iterable[str]) -> dict[str, str]:
    if part == TRANSFORMER:  # the names of its tools are those of diffusers, or are refused
        return {}
    return sgm_names(network, found) if part == UNET else _clip_names(found)


def _clip_names(found: Iterable[str]) -> dict[str, str]:
    """With and without `text_model.`, which some versions of transformers have in front and some not."""
    bare = {name.removeprefix("text_model."): name for name in found}
    return bare | {f"text_model.{short}": name for short, name in bare.items()}


def sgm_names(unet: Any, found: Iterable[str]) -> dict[str, str]:
    """Names of the UNet's modules in the layout of its first publication, in which SDXL adapters are often trained."""
    aliases = {sgm: name for name, sgm in SGM_TOP.items() if name in found}
    for block, sgm in _sgm_blocks(unet):
        for name in found:
            if name.startswith(f"{block}."):
                inner = name.removeprefix(f"{block}.")
                if "resnets" in block:
                    inner = SGM_RESNET.get(inner, inner)
                elif "downsamplers" in block:
                    inner = inner.replace("conv", "op")
                aliases[f"{sgm}.{inner}"] = name
    return aliases


def _sgm_blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Prefixes of diffusers' names and of the same modules' there, which are counted through all resolutions."""
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j, has_attention in enumerate(_has_attention(block)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0"
            if has_attention:
                yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{i}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    for number, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"mid_block.{name}", f"middle_block.{number}"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j, has_attention in enumerate(_has_attention(block)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0"
            if has_attention:
                yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            if block.upsamplers and j == len(block.resnets) - 1:
                yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{number}.{1 + has_attention}"
            number += 1


def _has_attention(block: Any) -> list[bool]:
    """For each layer of a block."""
    return [hasattr(block, "attentions")] * len(block.resnets)

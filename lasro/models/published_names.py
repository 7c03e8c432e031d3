"""What other tools call a model and its modules: kohya's names, which ComfyUI and A1111 read, and architecture ids.

ComfyUI knows a UNet's modules as `lora_unet_` and the module's path with `_` for each dot, by the names of the first
published UNet and by diffusers' alike. Of diffusers' own names it knows an attention's projections as those of the
processors of old alone (`attn1.processor.to_q_lora.up`), so of a file in peft's names (`attn1.to_q.lora_B`) it leaves
them out. sd-scripts trains SDXL by the first names and SD1.5 by diffusers'. A1111 counts the blocks of diffusers'
names as SD1.5 has them, and misses SDXL's first upsampler by these: so each class is written as sd-scripts does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from lasro.models.adapter_names import UNET, sgm_names

SD2_CROSS_ATTENTION = 1024
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""diffusers' names of them and those of the model metadata standard."""


class PublishedNames(NamedTuple):
    """Of a model, for the files and cards of its adapters."""

    pipeline: str
    """Class of diffusers that draws with it."""
    architecture: str
    """Id of the model metadata standard, https://github.com/Stability-AI/ModelSpec."""
    base_version: str
    """`ss_base_model_version` of sd-scripts."""
    prediction: str | None
    """`epsilon` or `v`; None for another."""
    modules: Mapping[str, Mapping[str, str]]
    """Part of the pipeline -> module -> its name in kohya's form; a module that has none there is not listed."""


def published_names(pipeline: Any, networks: Mapping[str, Any], prediction: str) -> PublishedNames:
    """Of a stock pipeline with a UNet of the class of SDXL, SD1.5 or SD2. `networks`: without adapters, by part.

    `prediction`: diffusers' `prediction_type`.
    """
    unet = networks[UNET]
    is_sdxl = unet.config.addition_embed_type == "text_time"
    is_sd2 = unet.config.cross_attention_dim == SD2_CROSS_ATTENTION
    if is_sdxl:
        architecture, version = "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"
    elif is_sd2:
        architecture = "stable-diffusion-v2-768-v" if prediction == "v_prediction" else "stable-diffusion-v2-512"
        version = "sd_v2"
    else:
        architecture, version = "stable-diffusion-v1", "sd_v1"
    modules = {UNET: _unet_names(unet, is_sdxl)}
    encoders = [part for part in networks if part != UNET]
    for number, part in enumerate(encoders, 1):
        modules[part] = _encoder_names(networks[part], f"lora_te{number if len(encoders) > 1 else ''}_")
    return PublishedNames(type(pipeline).__name__, architecture, version, PREDICTIONS.get(prediction), modules)


def _unet_names(unet: Any, by_first_names: bool) -> dict[str, str]:
    first = {name: alias for alias, name in sgm_names(unet, _adaptable(unet)).items()}
    return {name: f"lora_unet_{_flat(alias if by_first_names else name)}" for name, alias in first.items()}


def _encoder_names(encoder: nn.Module, prefix: str) -> dict[str, str]:
    """All but a final projection is below `text_model`, whether this version of transformers says so or not."""
    names = {}
    for module in _adaptable(encoder):
        bare = module.removeprefix("text_model.")
        names[module] = prefix + _flat(bare if bare == "text_projection" else f"text_model.{bare}")
    return names


def _adaptable(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _flat(name: str) -> str:
    return name.replace(".", "_")

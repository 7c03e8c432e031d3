"""The names by which ComfyUI, A1111 and stock diffusers find every module of an adapter in kohya's form."""

from __future__ import annotations

import json
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from other_tools import BUNDLED, SD15, SDXL, SSD_1B, Layout, a1111_modules, comfy_modules, kohya_keys, modules
from tiny_model import BUNDLED as BUNDLED_FOLDER
from tiny_model import diffusers

from lasro.config.model import UNET_TARGETS
from lasro.models.adapter_names import UNET
from lasro.models.published_names import published_names

XL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "time_cond_proj_dim": 256,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "SDXL": {**XL, "transformer_layers_per_block": (1, 2, 10)},
    "SSD-1B": {
        **XL, "transformer_layers_per_block": (1, (2, 2), (4, 4)), "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    },
    "SD1.5": {"cross_attention_dim": 768},
}  # fmt: skip
LAYOUTS = {"bundled": BUNDLED, "SDXL": SDXL, "SSD-1B": SSD_1B, "SD1.5": SD15}


@lru_cache
def unet(name: str) -> Any:
    """Of the true architecture, on no device: nothing but names is asked for."""
    config = CONFIGS.get(name) or json.loads((BUNDLED_FOLDER / "unet" / "config.json").read_text())
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(config)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> tuple[str, Layout, Any]:
    return request.param, LAYOUTS[request.param], unet(request.param)


def names_of(network: Any) -> dict[str, str]:
    return dict(published_names(SimpleNamespace(), {UNET: network}, "epsilon").modules[UNET])


def trained(network: Any) -> set[str]:
    """What a run puts its LoRA on where the settings name nothing."""
    return {name for name, _ in network.named_modules() if name.endswith(UNET_TARGETS)}


def test_the_other_tools_know_these_modules(model: tuple[str, Layout, Any]) -> None:
    """Guards against rules of theirs that were written for another network than the true one."""
    _, layout, network = model
    ours = {n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    known = set(modules(layout).values())
    assert ours - known <= {"time_embedding.cond_proj"}
    assert all(name.endswith("conv_shortcut") for name in known - ours)  # their rule has one for each resnet


def test_no_module_is_dropped_by_comfyui_or_a1111(model: tuple[str, Layout, Any]) -> None:
    """Bug: ComfyUI left out all attention projections of an adapter in diffusers' names, 56 of 129 modules."""
    name, layout, network = model
    names = names_of(network)
    keys = kohya_keys(names)
    assert trained(network) <= names.keys()
    assert comfy_modules(layout, keys) == names.keys()
    if name != "bundled":  # no such checkpoint could be opened there: A1111 counts three layers a block
        assert a1111_modules(layout, keys) == names.keys()


def test_why_comfyui_drops_modules_of_diffusers_names() -> None:
    """Guards against a rule that is looser than theirs, by which the test above would pass for any names."""
    network = unet("bundled")
    keys = [f"unet.{name}.lora_{factor}.weight" for name in trained(network) for factor in "AB"]
    dropped = trained(network) - comfy_modules(BUNDLED, keys)
    assert (len(dropped), len(trained(network))) == (56, 129)
    assert dropped == {name for name in trained(network) if ".attn" in name}
    by_diffusers = [key.replace("unet.", "lora_unet_").replace(".", "_") for key in sorted(trained(unet("SDXL")))]
    missed = trained(unet("SDXL")) - a1111_modules(SDXL, [f"lora_unet_{key}.alpha" for key in by_diffusers])
    assert missed == {"up_blocks.0.upsamplers.0.conv"}


def test_stock_diffusers_finds_them_all(model: tuple[str, Layout, Any]) -> None:
    """Guards against names that `load_lora_weights` maps to another module, or to none."""
    name, _, network = model
    names = names_of(network)
    state = {key: torch.ones(()) for key in kohya_keys(names)}
    kind = diffusers.StableDiffusionPipeline if name == "SD1.5" else diffusers.StableDiffusionXLPipeline
    found, alphas = kind.lora_state_dict(state, unet_config=network.config)
    peft = diffusers.utils.state_dict_utils.convert_unet_state_dict_to_peft(found)
    assert {key.removeprefix("unet.").rpartition(".lora_")[0] for key in peft} == names.keys()
    assert len(alphas) == len(names)


def test_sd15_has_the_names_of_diffusers_own_converter() -> None:
    """Guards against a spelling of ours: stock's converter writes the same for SD1.5."""
    names = names_of(unet("SD1.5"))
    state = {f"unet.{name}.lora_{factor}.weight": torch.ones(4, 4) for name in names for factor in "AB"}
    converted = diffusers.utils.state_dict_utils.convert_state_dict_to_kohya(state)
    assert sorted(converted) == sorted(kohya_keys(names))


@pytest.mark.parametrize(
    ("config", "prediction", "expected"),
    [
        ({"addition_embed_type": "text_time"}, "epsilon", ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "epsilon")),
        ({"cross_attention_dim": 768}, "epsilon", ("stable-diffusion-v1", "sd_v1", "epsilon")),
        ({"cross_attention_dim": 1024}, "v_prediction", ("stable-diffusion-v2-768-v", "sd_v2", "v")),
        ({"cross_attention_dim": 1024}, "epsilon", ("stable-diffusion-v2-512", "sd_v2", "epsilon")),
        ({"cross_attention_dim": 768}, "sample", ("stable-diffusion-v1", "sd_v1", None)),
    ],
)
def test_architectures(config: dict[str, Any], prediction: str, expected: tuple[str, ...]) -> None:
    """Guards against a LoRA that a tool files under another family than its own."""
    blank = {"addition_embed_type": None, "cross_attention_dim": 768}
    network: Any = torch.nn.Module()
    network.config = SimpleNamespace(**(blank | config))
    for blocks in ("down_blocks", "up_blocks"):
        setattr(network, blocks, torch.nn.ModuleList())
    found = published_names(SimpleNamespace(), {UNET: network}, prediction)
    assert (found.architecture, found.base_version, found.prediction) == expected

"""Adapters in all forms that people have: each draws what stock diffusers draws with the same LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import base_latents, latents, load, settings, stock_latents
from adapters import (
    ATTENTION,
    PEFT,
    PLAIN,
    RANK,
    UNET,
    Factors,
    State,
    diffusers_form,
    kohya_form,
    processor_form,
    random_factors,
    sgm_names,
    write_adapter,
)
from safetensors.torch import load_file
from tiny_sd15 import write_tiny_sd15

from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator

KINDS = (
    "to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv",
    "conv_in", "conv_out", "linear_1", "linear_2",
)  # fmt: skip


@pytest.fixture(scope="module")
def sd15_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="module")
def factors(tiny_model_path: Path) -> Factors:
    """On every kind of layer of the UNet."""
    return random_factors(tiny_model_path / UNET, KINDS)


@pytest.fixture(scope="module")
def good(tiny_model_path: Path, factors: Factors, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What stock diffusers draws with them, far from what the base draws."""
    folder = write_adapter(tmp_path_factory.mktemp("adapters") / PLAIN, diffusers_form(factors))
    expected = stock_latents(tiny_model_path, folder)
    assert (expected - base_latents(tiny_model_path)).abs().max() > 0.1
    return expected


def scaled(state: State, by: float) -> State:
    """With the second factors divided, so that a configuration has to scale them."""
    return {key: tensor / by if "lora_B" in key else tensor for key, tensor in state.items()}


def in_peft(factors: Factors, config: dict[str, Any], by: float, name: str = "") -> tuple[str, State, dict[str, Any]]:
    return PEFT, scaled(diffusers_form(factors, "base_model.model.", name), by), config


def patterned(factors: Factors) -> tuple[str, State, dict[str, Any]]:
    """One module of another alpha, one of another rank."""
    state = in_peft(factors, {}, 2.0)[1]
    changed, padded = [key for key in state if "lora_B" in key][:2]
    state[changed] = state[changed] * 2
    state[padded] = torch.cat([state[padded], torch.zeros_like(state[padded])], 1) * 2
    down = padded.replace("lora_B", "lora_A")
    state[down] = torch.cat([state[down], torch.ones_like(state[down])])
    modules = [key.removeprefix("base_model.model.").removesuffix(".lora_B.weight") for key in (changed, padded)]
    return PEFT, state, {
        "r": RANK, "lora_alpha": 2 * RANK, "rank_pattern": {modules[1]: 2 * RANK},
        "alpha_pattern": {modules[0]: RANK, modules[1]: 2 * RANK},
    }  # fmt: skip


FORMS: dict[str, Callable[[Factors], tuple[Any, ...]]] = {
    "no prefix": lambda f: (PLAIN, diffusers_form(f, "")),
    "any file name": lambda f: ("my style v2.safetensors", diffusers_form(f)),
    "half precision": lambda f: (PLAIN, {k: t.half() for k, t in diffusers_form(f).items()}),
    "peft": lambda f: in_peft(f, {"r": RANK, "lora_alpha": RANK}, 1.0),
    "peft alpha": lambda f: in_peft(f, {"r": RANK, "lora_alpha": 2 * RANK}, 2.0),
    "peft adapter name": lambda f: in_peft(f, {"r": RANK, "lora_alpha": RANK}, 1.0, ".default"),
    "peft rslora": lambda f: in_peft(f, {"r": RANK, "lora_alpha": 4, "use_rslora": True}, 2.0),
    "peft patterns": patterned,
    "diffusers metadata": lambda f: (
        PLAIN,
        scaled(diffusers_form(f), 3.0),
        None,
        {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 3 * RANK})},
    ),
    "attention processors": lambda f: (PLAIN, processor_form(f)),
    "attention processors, no prefix": lambda f: (PLAIN, processor_form(f, "")),
    "mixed": lambda f: (PLAIN, mixed(f)),
    "peft, saved by diffusers": lambda f: (PLAIN, diffusers_form(f, "unet.base_model.model.")),
    "distributed": lambda f: (PLAIN, diffusers_form(f, "module.")),
    "compiled": lambda f: (PLAIN, diffusers_form(f, "_orig_mod.")),
    "ComfyUI": lambda f: ("comfy.safetensors", diffusers_form(sgm_names(f), "diffusion_model.")),
    "LyCORIS": lambda f: ("lycoris.safetensors", kohya_form(f, "lycoris_")),
    "kohya": lambda f: ("kohya.safetensors", kohya_form(f)),
    "kohya, alpha as an integer": lambda f: (
        "kohya.safetensors",
        {k: t.long() if k.endswith("alpha") else t for k, t in kohya_form(f).items()},
    ),
    "kohya, an alpha a module": lambda f: ("kohya.safetensors", kohya_form(f, alpha=lambda i: 1.0 + i % 3)),
    "sgm": lambda f: ("sgm.safetensors", kohya_form(sgm_names(f))),
}


def mixed(factors: Factors) -> State:
    """Half of it in one form and half in another, peft's first: diffusers leaves out the others."""
    names = sorted(factors)
    first = {name: factors[name] for name in names[::2]}
    rest = {name: factors[name] for name in names[1::2]}
    return diffusers_form(first) | kohya_form(rest)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_draws_the_same(
    tiny_model_path: Path, factors: Factors, good: torch.Tensor, tmp_path: Path, form: str
) -> None:
    """Guards against an adapter of which nothing, or not all, is applied: the base's pixels came out with status 0."""
    name, *arguments = FORMS[form](factors)
    folder = write_adapter(tmp_path / name, *arguments)
    model = load(tiny_model_path)
    assert model.load_lora(folder).loaded == len(load_file(folder / name))
    assert (latents(model) - good).abs().max() <= 1e-4
    assert (latents(model, base=True) - good).abs().max() > 0.1


def test_our_names_of_the_first_unet_are_those_of_stock_diffusers(
    tiny_model_path: Path, factors: Factors, good: torch.Tensor, tmp_path: Path
) -> None:
    """Guards against a table of names that is wrong in the test and in the code alike."""
    attention = {name: pair for name, pair in factors.items() if name.endswith(ATTENTION)}
    folder = write_adapter(tmp_path / PLAIN, kohya_form(sgm_names(attention)))
    model = load(tiny_model_path)
    model.load_lora(folder)
    assert (latents(model) - stock_latents(tiny_model_path, folder)).abs().max() <= 1e-4
    assert (latents(model) - good).abs().max() > 1e-2


@pytest.mark.parametrize("layer", ["conv1", "proj_in"])
def test_a_convolution_may_come_in_two_parts_or_as_a_matrix(sd15_path: Path, tmp_path: Path, layer: str) -> None:
    """Guards against a LoCon that is refused or half applied, and against a matrix for a convolution of one pixel."""
    factors = random_factors(sd15_path / UNET, (layer,))
    state = kohya_form(factors)
    whole = write_adapter(tmp_path / "whole" / PLAIN, state)
    split: State = {}
    for key, tensor in state.items():
        if layer == "proj_in":
            split[key] = tensor.flatten(1) if tensor.ndim == 4 else tensor
        elif key.endswith("lora_down.weight"):
            inputs = tensor.shape[1]
            split[key] = torch.eye(inputs)[:, :, None, None]
            split[key.replace("lora_down", "lora_mid")] = tensor
        else:
            split[key] = tensor
    drawn = []
    for folder in (whole, write_adapter(tmp_path / "split" / PLAIN, split)):
        model = load(sd15_path)
        assert model.load_lora(folder).loaded == len(load_file(folder / PLAIN))
        drawn.append(latents(model))
        assert (drawn[-1] - latents(model, base=True)).abs().max() > 1e-2
    assert (drawn[0] - drawn[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector"])
def test_dora_is_applied(tiny_model_path: Path, tmp_path: Path, name: str) -> None:
    """Guards against `dora_scale` left out: each row of the sum has the norm that the file says."""
    factors = random_factors(tiny_model_path / UNET, ("to_q", "conv1"))
    weights = load_file(tiny_model_path / UNET)
    state = diffusers_form(factors, "") if name == "lora_magnitude_vector" else kohya_form(factors)
    expected = {}
    for i, (module, (down, up)) in enumerate(factors.items()):
        weight = weights[f"{module}.weight"]
        total = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        magnitude = torch.linspace(0.5, 1.5, len(weight)) * (1 + i)
        norms = total.flatten(1).norm(dim=1)
        expected[module] = total * (magnitude / norms).reshape(-1, *[1] * (weight.ndim - 1))
        if name == "dora_scale":
            state[f"lora_unet_{module.replace('.', '_')}.dora_scale"] = magnitude.reshape(-1, *[1] * (weight.ndim - 1))
        else:
            state[f"{module}.{name}"] = magnitude
    model, by_hand = load(tiny_model_path), load_model(settings(tiny_model_path))
    assert isinstance(by_hand, UNetGenerator)
    model.load_lora(write_adapter(tmp_path / PLAIN, state))
    for module, weight in expected.items():
        by_hand.unet.get_submodule(module).weight.data = weight
    assert (latents(model) - latents(by_hand)).abs().max() <= 1e-4
    assert (latents(model) - latents(model, base=True)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "form"),
    [*product(["sdxl", "sd15"], ["kohya", "diffusers"]), ("sd15", "kohya sdxl"), ("sd15", "bare"), ("sd15", "old")],
)
def test_text_encoders_are_adapted_and_the_base_is_drawn_without(
    tiny_model_path: Path, sd15_path: Path, tmp_path: Path, family: str, form: str
) -> None:
    """Guards against a *base* row that is drawn with the adapter's text encoders, and against embeddings of the one
    handed to the other by the cache."""
    folder, part = (tiny_model_path, "text_encoder_2") if family == "sdxl" else (sd15_path, "text_encoder")
    weights = folder / part / "model.safetensors"
    factors = random_factors(weights, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), scale=0.5)
    factors = {name.removeprefix("text_model."): pair for name, pair in factors.items()}
    named = {f"text_model.{name}": pair for name, pair in factors.items()}
    kohya = {"text_encoder_2": "lora_te2_", "text_encoder": "lora_te1_" if form == "kohya sdxl" else "lora_te_"}[part]
    state = {
        "kohya": lambda: kohya_form(named, kohya),
        "kohya sdxl": lambda: kohya_form(named, kohya),
        "diffusers": lambda: diffusers_form(named, f"{part}."),
        "bare": lambda: diffusers_form(factors, f"{part}."),
        "old": lambda: {
            k.replace(".lora.", ".lora_linear_layer."): t for k, t in processor_form(named, f"{part}.").items()
        },
    }[form]()
    unet = diffusers_form(random_factors(folder / UNET, ATTENTION))
    adapter = write_adapter(tmp_path / PLAIN, state | ({} if form.startswith("kohya") else unet))
    model = load(folder)
    before = base_latents(folder)
    assert model.load_lora(adapter).loaded == len(load_file(adapter / PLAIN))
    for _ in range(2):  # the second time from the cache
        assert torch.equal(latents(model, base=True), before)
        assert (latents(model) - before).abs().max() > 1e-3
    if form in ("kohya", "diffusers"):
        assert (latents(model) - stock_latents(folder, adapter)).abs().max() <= 1e-4


def test_an_exported_model_holds_its_text_encoders_too(sd15_path: Path, tmp_path: Path) -> None:
    """Guards against an export that draws other pictures than the adapter did."""
    weights = sd15_path / "text_encoder" / "model.safetensors"
    state = diffusers_form(random_factors(weights, ("q_proj", "fc1"), scale=0.5), "text_encoder.")
    state |= diffusers_form(random_factors(sd15_path / UNET, ("to_q", "conv1")))
    model = load(sd15_path)
    model.load_lora(write_adapter(tmp_path / "adapter" / PLAIN, state))
    expected = latents(model)
    model.save_fused(tmp_path / "fused")
    assert (latents(load(tmp_path / "fused")) - expected).abs().max() <= 1e-4

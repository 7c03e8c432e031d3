"""Clean latents under bfloat16, against float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings
from lasro.models.float32_convolutions import Float32Conv2d, Float32OutputConv2d
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator

PROMPTS = ["a red circle left of a blue square", "dog face, noto style"]


def load(**settings: object) -> UNetGenerator:
    model = load_model(ModelSettings.model_validate({"device": "cpu"} | settings))
    assert isinstance(model, UNetGenerator)
    return model


def changed(model: UNetGenerator) -> list[nn.Module]:
    """The convolutions that compute in float32, of the UNet and of its base."""
    return [each for unet in (model.unet, model.base) for each in unet.modules() if isinstance(each, Float32Conv2d)]


def both_steps(model: UNetGenerator, autocast: str, base: bool = False) -> list[Tensor]:
    """z1, and z2 from a noise that is the same for any precision."""
    model.settings = model.settings.model_copy(update={"autocast": autocast})
    draws = torch.Generator().manual_seed(0)
    conditioning = model.embed(PROMPTS)
    noises = [torch.randn(len(PROMPTS), *model.latent_shape, generator=draws) for _ in range(2)]
    return [
        model.predict_clean(x_t, step, conditioning, base) for x_t, step in zip(noises, model.steps(2), strict=True)
    ]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).square().mean() / expected.square().mean()).sqrt().item()


@torch.no_grad()
def test_bfloat16_draws_nearly_what_float32_draws() -> None:
    """Bug: rounding to bfloat16 comes out 14.6 times as large, and z1 was off by 0.04 of its size."""
    model = load()
    expected, got = both_steps(model, "none"), both_steps(model, "bfloat16")
    for each in changed(model):
        each.__class__ = nn.Conv2d
    assert all(torch.equal(*pair) for pair in zip(both_steps(model, "none"), expected, strict=True)), "in float32"
    without = both_steps(model, "bfloat16")
    errors = [relative_error(z, exact) for z, exact in zip(got, expected, strict=True)]
    earlier = [relative_error(z, exact) for z, exact in zip(without, expected, strict=True)]
    assert errors[0] < 0.02 < 0.03 < earlier[0], "the convolutions do it"
    assert errors[1] < 0.8 * earlier[1]


@torch.no_grad()
@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_weights_of_16_bits_are_not_rounded_once_more(tiny_model_path: Path, autocast: str) -> None:
    """Bug: an output of 16 bits, divided by sqrt(abar). Guards against float32 where a CPU's norm layers refuse it."""
    model, dtypes = load(path=str(tiny_model_path), dtype="bfloat16"), list[torch.dtype]()
    model.unet.conv_out.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    latents = both_steps(model, autocast)
    assert all(z.isfinite().all() for z in latents)
    assert dtypes == [torch.float32] * 2
    assert all(p.dtype == torch.bfloat16 for p in model.unet.parameters())


def test_adapters_the_base_and_checkpointing_go_along(tiny_model_path: Path) -> None:
    """Guards against renamed weights, a base with copies of its own, and a recomputed block of another precision."""
    gradients = []
    targets = ("conv_in", "conv_shortcut", "conv_out", "to_q")
    for checkpointing in (False, True):
        model = load(path=str(tiny_model_path), gradient_checkpointing=checkpointing)
        names = set(model.unet.state_dict())
        stock = type(model.unet).from_config(model.unet.config).state_dict()
        assert names == set(stock)
        assert len(changed(model)) == 2 * 4, "first, last, and the two shortcuts of the last up block"
        assert sum(isinstance(each, Float32OutputConv2d) for each in changed(model)) == 2
        owned = {p.data_ptr() for p in model.unet.parameters()}
        assert {p.data_ptr() for p in model.base.parameters()} <= owned
        parameters = model.add_lora(LoraSettings(rank=2, targets=targets), seed=0)
        before = both_steps(model, "bfloat16", base=True)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.05)
        model.unet.train()
        latents = both_steps(model, "bfloat16")
        assert all(torch.equal(*pair) for pair in zip(both_steps(model, "bfloat16", base=True), before, strict=True))
        torch.stack([z.square().mean() for z in latents]).sum().backward()
        gradients.append([p.grad for p in parameters])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().max() > 0
        torch.testing.assert_close(recomputed, plain)

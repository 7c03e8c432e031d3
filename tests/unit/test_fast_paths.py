"""What makes networks fast without a setting: attention by torch's fused kernels, convolutions with channels last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from lasro.config import LoraSettings, ModelSettings, SurrogateSettings
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.models.unet_generator import UNetGenerator


class Counted:
    """`scaled_dot_product_attention`, and how often it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._attention, self._calls = nn.functional.scaled_dot_product_attention, 0
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", self)

    def __call__(self, *arguments: torch.Tensor, **options: object) -> torch.Tensor:
        self._calls += 1
        return self._attention(*arguments, **options)  # type: ignore[arg-type]

    def since(self) -> int:
        """Calls since the last time."""
        calls, self._calls = self._calls, 0
        return calls


def attentions(network: nn.Module) -> int:
    return sum(isinstance(each, Attention) for each in network.modules())


def loaded(path: Path) -> UNetGenerator:
    model = load_model(ModelSettings(path=str(path), device="cpu"))
    assert isinstance(model, UNetGenerator)
    return model


@torch.no_grad()
def test_all_attention_is_fused(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a part, such as the surrogate's trunk or the network with adapters, that holds N x N scores."""
    model = loaded(tiny_model_path)
    model.add_lora(LoraSettings(rank=2), seed=0)
    conditioning, noise_BCHW = model.embed(["a red star"]), torch.zeros(1, *model.latent_shape)
    surrogate = build_surrogate(model, SurrogateSettings(head_channels=8))
    counted = Counted(monkeypatch)
    for base, network in ((False, model.unet), (True, model.base)):
        model.predict_clean(noise_BCHW, model.steps(1)[0], conditioning, base)
        assert counted.since() == attentions(network) > 0
    surrogate(noise_BCHW, torch.zeros(1, dtype=torch.int64), noise_BCHW, conditioning)
    assert counted.since() == attentions(surrogate.trunk) > 0
    model.decode(noise_BCHW)
    assert counted.since() == attentions(model.pipeline.vae.decoder) > 0


@torch.no_grad()
def test_convolutions_have_channels_last(tiny_model_path: Path) -> None:
    """Guards against a convolution, such as one in float32 or of the surrogate, that has its input copied each time."""
    model = loaded(tiny_model_path)
    surrogate = build_surrogate(model, SurrogateSettings(trunk="full", head_channels=8))
    for network in (model.unet, model.base, surrogate.trunk, model.pipeline.vae):
        convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
        kernels = [each.weight for each in convolutions if max(each.kernel_size) > 1]
        assert kernels
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)

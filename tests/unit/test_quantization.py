"""A frozen base in 8 or 4 bits: what it computes, what it takes, and what is trained on top of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from few_step_models import SDXL_BASE, with_scheduler
from tiny_model import write_tiny_model
from tiny_transformers import write_tiny_z_image
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lasro.config import LoraSettings, ModelSettings, SurrogateRun, SurrogateSettings
from lasro.errors import ModelError
from lasro.models.backbone import trunk_of
from lasro.models.base import GeneratorModel
from lasro.models.quantization import QuantizedLinear, float32_values, quantize, quantized_bytes
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import sample_latents
from lasro_client.doctor.shapes import shapes_of

pytest.importorskip("torchao", reason="an extra: pip install 'lasro[quantize]'")

PROMPTS = ["a red star", "a blue square"]
KINDS = ["8bit", "4bit"]


def load(path: Path | str, kind: str, **settings: Any) -> UNetGenerator:
    table = {"path": str(path), "device": "cpu", "quantization": kind} | settings
    model = load_model(ModelSettings.model_validate(table))
    assert isinstance(model, UNetGenerator)
    return model


def held_bytes(network: nn.Module) -> int:
    """Of what a quantised weight consists of, too."""

    def size(weight: Any) -> int:
        if not is_traceable_wrapper_subclass(weight):
            return 0 if weight.is_meta else weight.nbytes
        return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])

    return sum(size(weight.data) for weight in network.parameters())


def samples(model: GeneratorModel, base: bool = False) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    noises = [torch.randn(len(PROMPTS), *model.latent_shape, generator=draws) for _ in range(2)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed(PROMPTS), base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_is_that_of_its_rounded_weight(kind: str, autocast: bool) -> None:
    """Guards against a gradient that stops at, or differs by, a quantised layer, and a widened weight kept for it."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96), torch.randn(5, 64)
    quantize(layers := nn.Sequential(layer), ModelSettings.model_validate({"quantization": kind}))
    plain, quantised = nn.Linear(64, 96), cast(Any, layers[0])
    plain.load_state_dict({"weight": float32_values(quantised.weight), "bias": quantised.bias.detach()})
    saved: list[int] = []
    outputs = []
    for network in (layers, plain.requires_grad_(False)):
        leaf = x.clone().requires_grad_()
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hooks:
            output = network(leaf)
        outputs.append((output, *torch.autograd.grad(output.float().square().sum(), leaf)))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if autocast else 1e-4, atol=1e-1 if autocast else 1e-4)
    assert saved.count(64 * 96) <= 1, "of the plain layer alone"


def test_four_bits_by_hand() -> None:
    """Guards against values in another order than they were packed in, and a scale of another block.

    Each block of 64 has one of the 16 values of NF4 four times each, times a scale of its own, so that all that is lost
    is in the scales: a 128th, at most, of the largest difference of a scale from their mean, which is 7.5 here.
    """
    values = torch.tensor(
        [
            -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
            0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1.0,
        ]
    )  # fmt: skip
    weight = values.repeat(16, 4) * torch.arange(1.0, 17)[:, None]
    layer = nn.Linear(64, 16)
    layer.weight.data.copy_(weight)
    quantize(layers := nn.Sequential(layer), ModelSettings(quantization="4bit"))
    error = (float32_values(layers[0].weight) - weight).abs()
    assert error.max() <= 7.5 / 128 + 1e-5
    assert held_bytes(layers) == quantized_bytes(weight, "4bit") + layer.bias.nbytes
    quantize(odd := nn.Sequential(nn.Linear(64, 15)), ModelSettings(quantization="4bit"))
    assert type(odd[0]) is nn.Linear, "15 scales have none in common"


@pytest.fixture(scope="module")
def bundled() -> tuple[UNetGenerator, list[torch.Tensor]]:
    """The whole model, and its samples."""
    whole = load_model(ModelSettings(device="cpu"))
    assert isinstance(whole, UNetGenerator)
    return whole, samples(whole)


@pytest.mark.parametrize(("kind", "least_saved", "worst"), [("8bit", 0.7, 0.05), ("4bit", 0.8, 0.3)])
def test_the_bundled_model(
    bundled: tuple[UNetGenerator, list[torch.Tensor]], kind: str, least_saved: float, worst: float
) -> None:
    """Guards against weights that only seem smaller, and against a base that draws something else."""
    (whole, expected), model = bundled, load("bundled", kind)
    linear = sum(each.weight.nbytes for each in whole.unet.modules() if type(each) is nn.Linear)
    saved = held_bytes(whole.unet) - held_bytes(model.unet)
    pairs = zip(samples(model), expected, strict=True)
    errors = [((ours - true).norm() / true.norm()).item() for ours, true in pairs]
    print(f"UNet {held_bytes(whole.unet):,} to {held_bytes(model.unet):,} bytes; errors of z1, z2: {errors}")
    assert saved > least_saved * linear
    [computed] = [part.bytes for part in shapes_of(model.settings).parts if part.name == "unet"]
    assert computed == pytest.approx(held_bytes(model.unet), rel=0.01)
    assert all(0 < error < worst for error in errors)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_adapter_alone(tmp_path: Path, tiny_model_path: Path, kind: str) -> None:
    """Guards against an adapter that does not learn, a base that moves, and an adapter that whole weights refuse."""
    model, settings = load(tiny_model_path, kind), LoraSettings(rank=2)
    before = samples(model)
    parameters = model.add_lora(settings, seed=0)
    torch.testing.assert_close(samples(model), before)
    step, x_t = model.steps(1)[0], torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    model.predict_clean(x_t, step, model.embed(PROMPTS)).square().sum().backward()
    assert any(type(module) is QuantizedLinear for module in model.base.modules())
    assert all(p.grad is not None and p.dtype == torch.float32 for p in parameters)
    assert {id(p) for p in model.unet.parameters() if p.grad is not None} == {id(p) for p in parameters}
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.02)
    torch.testing.assert_close(samples(model, base=True), before)
    model.save_lora(tmp_path, settings)
    on_whole = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    on_whole.load_lora(tmp_path)
    ours, theirs = samples(model)[-1], samples(on_whole)[-1]
    assert (ours - theirs).norm() < (0.1 if kind == "8bit" else 0.7) * (ours - before[-1]).norm()
    with pytest.raises(ModelError, match=f"quantization: got {kind}, but an adapter is added to whole weights; leave"):
        model.save_fused(tmp_path / "fused")


@pytest.mark.parametrize(("kind", "own"), [("8bit", True), ("8bit", False), ("4bit", True)])
def test_surrogates_stand_on_it(tmp_path: Path, tiny_model_path: Path, kind: str, own: bool) -> None:
    """Guards against a trunk that is not the quantised base's, in full or by adapters, and one that does not train."""
    plain = tiny_model_path if own else write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    backbone = None if own else str(with_scheduler(plain, tmp_path / "sdxl", SDXL_BASE))
    generator = load(tiny_model_path, kind)
    features = []
    for trunk in ("adapter", "full"):
        settings = SurrogateSettings.model_validate(
            {"trunk": trunk, "backbone": backbone, "adapter_rank": 2, "head_channels": 8, "device": "cpu"}
        )
        model = trunk_of(SurrogateRun(model=generator.settings, surrogate=settings, weights={"any": 1}), generator)
        surrogate = build_surrogate(model, settings)
        shape, draws = (2, *model.latent_shape), torch.Generator().manual_seed(0)
        inputs = torch.randn(shape, generator=draws), *draw_augmentation(shape, 200, draws), model.embed(PROMPTS)
        features.append(surrogate.trunk(inputs[0], inputs[1], inputs[3]))
        _, gradient = score_and_gradient(surrogate, *inputs)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
        surrogate(*inputs).sum().backward()
        trained = [p for p in surrogate.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 and not is_traceable_wrapper_subclass(p.data) for p in trained)
        assert sum(p.grad is not None for p in trained) == len(trained)
        state = surrogate.trained_state()
        build_surrogate(model, settings).load_trained(state)
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_too(tmp_path: Path, kind: str) -> None:
    """Guards against a family that takes the setting and stays as it is."""
    table = {"path": str(write_tiny_z_image(tmp_path)), "device": "cpu", "guidance": 1.0, "quantization": kind}
    model: Any = load_model(ModelSettings.model_validate(table))
    assert any(type(module) is QuantizedLinear for module in model.base.modules())
    parameters = model.add_lora(LoraSettings(rank=2), seed=0)
    latents = model.predict_clean(
        torch.randn(2, *model.latent_shape), model.steps(1)[0], model.embed(["a red star", "a blue cat"])
    )
    latents.square().sum().backward()
    assert all(p.grad is not None for p in parameters)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback where the extra is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"^quantization: got 8bit, but torchao is not installed; pip install 'lasro\["
    ):
        quantize(nn.Linear(2, 2), ModelSettings(quantization="8bit"))

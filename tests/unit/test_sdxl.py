"""The model against stock diffusers, and adapters over one shared UNet against copies of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lasro.config import LoraSettings, ModelSettings
from lasro.errors import ModelError, PromptTooLongError, WireError
from lasro.models.base import GeneratorModel
from lasro.models.device import autocast, computes_in_bfloat16
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.models.shared_view import shared_view
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import sample_latents

PROMPTS = ["a red circle left of a blue square", "dog face, noto style"]


@pytest.fixture(scope="module")
def model() -> UNetGenerator:
    """The bundled model, never changed by a test."""
    return load(ModelSettings(device="cpu"))


def load(settings: ModelSettings) -> UNetGenerator:
    """With the parts of its family."""
    model = load_model(settings)
    assert isinstance(model, UNetGenerator)
    return model


def stock_pipeline() -> Any:
    from importlib.resources import files

    diffusers: Any = importlib.import_module("diffusers")
    path = str(files("lasro").joinpath("assets/tiny-sdxl-lcm"))
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(pipeline: Any, prompt: str, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(
        prompt, num_inference_steps=steps, guidance_scale=4.0, generator=generator, output_type="latent"
    ).images


def our_latents(model: GeneratorModel, prompt: str, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    noises = [torch.randn(1, *model.latent_shape, generator=generator) for _ in range(steps)]
    conditioning = model.embed([prompt])
    with torch.no_grad():
        return sample_latents(model, noises, conditioning)[-1]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_latents_are_those_of_stock_diffusers(model: GeneratorModel, steps: int) -> None:
    """Guards against any difference in timesteps, scalings, guidance, size ids or the order of noises."""
    pipeline = stock_pipeline()
    for seed, prompt in enumerate(PROMPTS):
        expected = stock_latents(pipeline, prompt, steps, seed)
        assert (our_latents(model, prompt, steps, seed) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(("rank", "alpha"), [(4, 10.0), (8, 2.0)])
def test_a_saved_adapter_loads_in_stock_diffusers(tmp_path: Path, rank: int, alpha: float) -> None:
    """Guards against alpha / rank being lost on the way, or applied twice: all of it must sit in the file."""
    model, settings = load_model(ModelSettings(device="cpu")), LoraSettings(rank=rank, alpha=alpha)
    parameters = model.add_lora(settings, seed=0)
    base = our_latents(model, PROMPTS[0], 2, 0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.03)
    assert model.save_lora(tmp_path / "adapter", settings).is_file()
    stock = stock_pipeline()
    stock.load_lora_weights(tmp_path / "adapter")
    reloaded = load_model(ModelSettings(device="cpu"))
    reloaded.load_lora(tmp_path / "adapter")
    for steps in (1, 2, 4):
        ours = our_latents(model, PROMPTS[0], steps, 0)
        assert (ours - stock_latents(stock, PROMPTS[0], steps, 0)).abs().max() <= 1e-4
        assert (ours - our_latents(reloaded, PROMPTS[0], steps, 0)).abs().max() <= 1e-4
    assert (our_latents(model, PROMPTS[0], 2, 0) - base).abs().max() > 0.01, "the adapter changes nothing"


def test_images_survive_the_vae(model: GeneratorModel) -> None:
    """Guards against a wrong scaling factor: decoding and encoding again comes back near the latents."""
    z = our_latents(model, PROMPTS[0], 2, 0)
    images = model.decode(z)
    assert images.shape == (1, 128, 128, 3)
    assert (model.encode(images) - z).abs().mean() < 0.35 * z.abs().mean()
    with pytest.raises(WireError, match="expected \\(128, 128, 3\\)"):
        model.encode(images[:, :64])


def test_the_base_is_untouched_by_the_adapter(tiny_model_path: Path) -> None:
    """Guards against the regulariser's base drifting along with the generator, and against a second copy in memory."""
    model = load(ModelSettings(path=str(tiny_model_path), device="cpu"))
    x_t, conditioning, (step,) = torch.randn(2, *model.latent_shape), model.embed(PROMPTS), model.steps(1)
    before = model.predict_clean(x_t, step, conditioning)
    parameters = model.add_lora(LoraSettings(rank=2), seed=0)
    with parameters_set(parameters, [torch.full_like(p, 0.1) for p in parameters]):
        adapted = model.predict_clean(x_t, step, conditioning)
        base = model.predict_clean(x_t, step, conditioning, base=True)
    torch.testing.assert_close(base, before)
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(model.predict_clean(x_t, step, conditioning), before)
    owned = {p.data_ptr() for p in model.unet.parameters()}
    assert {p.data_ptr() for p in model.base.parameters()} <= owned


def test_gradient_checkpointing_changes_no_gradient(tiny_model_path: Path) -> None:
    """Guards against a block recomputed with another adapter than it ran with: gradients are wrong in silence."""
    gradients = []
    for checkpointing in (False, True):
        settings = ModelSettings(path=str(tiny_model_path), device="cpu", gradient_checkpointing=checkpointing)
        model = load(settings)
        parameters = model.add_lora(LoraSettings(rank=2), seed=0)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.05)
        x_t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        conditioning = model.embed(PROMPTS)
        model.unet.train()
        first, second = model.steps(2)
        z = model.predict_clean(x_t, second, conditioning)
        model.predict_clean(x_t, first, conditioning, base=True)
        z.square().mean().backward()
        gradients.append([p.grad for p in parameters])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_embeddings_do_not_depend_on_the_batch(tiny_model_path: Path) -> None:
    """Guards against the cache handing one prompt's embedding to another, failing where it holds all that is asked
    for, or last bits that depend on what was embedded before."""
    model, other = (load_model(ModelSettings(path=str(tiny_model_path), device="cpu")) for _ in range(2))
    alone = model.embed([PROMPTS[1]])
    together = other.embed([*PROMPTS, PROMPTS[1]])
    again = other.embed([PROMPTS[1]])
    assert together.tensors.keys() == alone.tensors.keys() == {"embeds", "pooled"}
    for name, alone_rows in alone.tensors.items():
        assert torch.equal(together[name][1], alone_rows[0])
        assert torch.equal(together[name][2], alone_rows[0])
        assert torch.equal(again[name], alone_rows)


def test_a_prompt_over_the_limit_is_refused(model: GeneratorModel) -> None:
    """Guards against cutting a prompt short, which trains on another prompt than the reward judges."""
    with pytest.raises(PromptTooLongError, match="expected at most 32"):
        model.embed(["a red circle " * 20])


def test_unusable_models_are_named(tmp_path: Path, tiny_model_path: Path) -> None:
    """Guards against a traceback from deep inside diffusers, or a download attempt for a mistyped folder."""
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_model(ModelSettings(path=str(tmp_path / "absent")))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ModelError, match=r"lacks unet, vae, scheduler, tokenizer.*found nothing"):
        load_model(ModelSettings(path=str(tmp_path)))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    with pytest.raises(ModelError, match="got a PixArtAlphaPipeline, expected one of StableDiffusionXLPipeline"):
        load_model(ModelSettings(path=str(tmp_path)))
    model = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    with pytest.raises(ModelError, match="none of which"):
        model.add_lora(LoraSettings(targets=("to_nothing",)), seed=0)
    with pytest.raises(ModelError, match="no such adapter"):
        model.load_lora(tmp_path / "none")
    with pytest.raises(ModelError, match="teacher"):
        model.distillation_loss(str(tmp_path / "none"))


def test_shared_view_costs_no_memory() -> None:
    """Guards against a deep copy of the weights sneaking in: every tensor must be the very same object."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    view = shared_view(module)
    assert view[0] is not module[0]
    pairs = zip(*(m.state_dict(keep_vars=True).values() for m in (view, module)), strict=True)
    for ours, theirs in pairs:
        assert ours is theirs


@pytest.mark.parametrize(("has", "expected"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)])
def test_auto_takes_bfloat16_only_where_the_processor_has_it(monkeypatch, has, expected):
    """Guards against emulated bfloat16: on a processor without it the demo took ten times as long."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    computes_in_bfloat16.cache_clear()
    try:
        with autocast(torch.device("cpu"), "auto"):
            assert torch.is_autocast_enabled("cpu") is expected
    finally:
        computes_in_bfloat16.cache_clear()

"""What holds for every family of transformers: the tests of each say how its stock pipeline is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checkpointed_trunk import check_trunk_checkpoints
from torch import Tensor

from lasro.config import LoraSettings, ModelSettings, SurrogateSettings
from lasro.errors import ModelError
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient
from lasro.models.transformer_generator import TransformerGenerator
from lasro.training.sampling import sample_latents

PROMPT = "a red circle left of a blue square"
OTHER = "a cat"
SEED = 7


class Family(NamedTuple):
    """A tiny model's folder, its stock pipeline, and how that is called for a number of steps."""

    folder: Path
    pipeline: str
    options: Callable[[int], Mapping[str, Any]]
    guidance: float = 1.0
    from_stock: Callable[[Any, Tensor], Tensor] = lambda _, latents: latents
    """Stock's `output_type="latent"` as latents of ours."""


def normalised(pipeline: Any, latents_BCHW: Tensor) -> Tensor:
    """FLUX.2's stock pipeline ends with the VAE's latents; the patches before, by its own functions."""
    norm = pipeline.vae.bn
    patches = pipeline._patchify_latents(latents_BCHW)
    mean, variance = (values.view(1, -1, 1, 1) for values in (norm.running_mean, norm.running_var))
    return (patches - mean) / (variance + pipeline.vae.config.batch_norm_eps).sqrt()


def load(folder: Path, guidance: float = 1.0, **settings: Any) -> TransformerGenerator:
    model = load_model(ModelSettings(path=str(folder), device="cpu", guidance=guidance, **settings))
    assert isinstance(model, TransformerGenerator)
    return model


def stock(family: Family) -> Any:
    diffusers: Any = importlib.import_module("diffusers")
    pipeline = getattr(diffusers, family.pipeline).from_pretrained(family.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(family: Family, pipeline: Any, num_steps: int) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(SEED)
    options = {"num_inference_steps": num_steps, "output_type": "latent", **family.options(num_steps)}
    return family.from_stock(pipeline, pipeline(prompt=PROMPT, generator=draws, **options).images)


def our_latents(model: TransformerGenerator, num_steps: int, base: bool = False) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(SEED)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(num_steps)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed([PROMPT]), base)[-1]


def check_parity(family: Family, num_steps: int, **settings: Any) -> None:
    expected = stock_latents(family, stock(family), num_steps)
    ours = our_latents(load(family.folder, family.guidance, **settings), num_steps)
    assert (ours - expected).abs().max() <= 1e-4


def check_size(family: Family, height: int, width: int) -> None:
    """Of images that are not square: latents as stock, decoded, and under the surrogate."""
    options = family.options
    other = family._replace(options=lambda num_steps: {**options(num_steps), "height": height, "width": width})
    check_parity(other, 2, height=height, width=width)
    model = load(family.folder, family.guidance, height=height, width=width)
    latents = our_latents(model, 1)
    assert model.decode(latents).shape == (1, height, width, 3)
    features = model.feature_extractor()(latents, torch.tensor([7]), model.embed([PROMPT]))
    assert features.shape[2] * width == features.shape[3] * height
    with pytest.raises(ModelError, match=rf"width: got {width + 1} pixels, expected a multiple of"):
        load(family.folder, family.guidance, width=width + 1)


def check_adapters(family: Family, folder: Path, num_steps: tuple[int, ...]) -> None:
    """Ours in stock, ours back, begun with again, and fused; the base stays as it is, over the same memory."""
    model, settings = load(family.folder, family.guidance), LoraSettings(rank=4, alpha=10.0)
    before = our_latents(model, 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        parameters = model.add_lora(settings, seed=0)
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_lora(folder / "adapter", settings)
    pipeline, reloaded = stock(family), load(family.folder, family.guidance)
    pipeline.load_lora_weights(folder / "adapter")
    keys = reloaded.load_lora(folder / "adapter")
    assert keys.loaded == keys.total == len(parameters)
    for steps in num_steps:
        ours = our_latents(model, steps)
        assert (ours - stock_latents(family, pipeline, steps)).abs().max() <= 1e-4
        assert (ours - our_latents(reloaded, steps)).abs().max() <= 1e-4
    assert (our_latents(model, 2) - before).abs().max() > 0.01, "the adapter changes nothing"
    torch.testing.assert_close(our_latents(model, 2, base=True), before, rtol=0, atol=0)
    of_base = {weight.data_ptr() for weight in model.base.parameters()}
    of_adapted = {weight.data_ptr() for name, weight in model.transformer.named_parameters() if "lora_" not in name}
    assert of_base == of_adapted, "the frozen weights are there twice"
    _check_begun_again(family, folder / "adapter", parameters)
    reloaded.save_fused(folder / "fused")
    fused = our_latents(load(folder / "fused", family.guidance), 2)
    assert (fused - our_latents(model, 2)).abs().max() <= 1e-4


def _check_begun_again(family: Family, adapter: Path, parameters: list[torch.nn.Parameter]) -> None:
    model, settings = load(family.folder, family.guidance), LoraSettings(rank=4, alpha=4.0)
    own = model.add_lora(settings, seed=3)
    with torch.no_grad():
        for parameter, value in zip(own, model.initial_lora(adapter, settings), strict=True):
            parameter.copy_(value)
    assert len(own) == len(parameters)
    adapted = load(family.folder, family.guidance)
    adapted.load_lora(adapter)
    assert (our_latents(model, 2) - our_latents(adapted, 2)).abs().max() <= 1e-4


def check_surrogate(family: Family, hooked: Callable[[Any], Any], grid: Callable[[Tensor], Tensor]) -> None:
    """Features are the tokens after `hooked(base)`, a block of the whole network, on the `grid` of the latents."""
    model = load(family.folder, family.guidance)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning, timesteps_B = model.embed([PROMPT, OTHER]), torch.tensor([3, 150])
    seen: list[Tensor] = []
    hook = hooked(model.base).register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    extractor = model.feature_extractor()
    with torch.no_grad():
        model.run(model.base, latents, model.time_of(timesteps_B), conditioning)
        hook.remove()
        features = extractor(latents, timesteps_B, conditioning)
    assert features.shape[1] == extractor.out_channels
    torch.testing.assert_close(features, grid(seen[0]))
    for trunk in ("adapter", "full"):
        surrogate = build_surrogate(model, SurrogateSettings(head_channels=8, trunk=trunk, adapter_rank=2))
        shape, draws = latents.shape, torch.Generator().manual_seed(0)
        arguments = (*draw_augmentation(shape, 200, draws), conditioning)
        _, gradient_BCHW = score_and_gradient(surrogate, latents, *arguments)
        assert gradient_BCHW.abs().amax((1, 2, 3)).min() > 0
        surrogate(latents, *arguments).sum().backward()
        trained = [name for name, p in surrogate.named_parameters() if p.requires_grad and p.grad is None]
        assert not trained, "parameters that nothing reaches"
    assert all(parameter.grad is None for parameter in model.base.parameters())
    checkpointed = load(family.folder, family.guidance, gradient_checkpointing=True)
    check_trunk_checkpoints(model, checkpointed, [PROMPT, OTHER], "adapter")


def check_forward_process(family: Family) -> None:
    """From clean at 0 to noise at 999, each row by its own timestep."""
    model = load(family.folder, family.guidance)
    z, noise = (torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    x_t = model.diffuse(z, noise, torch.tensor([0, 999, 400]))
    torch.testing.assert_close(x_t[0], z[0])
    torch.testing.assert_close(x_t[1], noise[1])
    shares = torch.linalg.lstsq(torch.stack([z[2].flatten(), noise[2].flatten()], 1), x_t[2].flatten()).solution
    assert 0.1 < shares.min() < 1
    assert shares.max() < 1


def check_rows(family: Family) -> None:
    """A row of a batch is what the same prompt gives alone."""
    model = load(family.folder, family.guidance)
    draws = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, *model.latent_shape, generator=draws) for _ in range(2)]
    with torch.no_grad():
        together = sample_latents(model, noises, model.embed([OTHER, PROMPT]))[-1]
        alone = sample_latents(model, [noise[1:] for noise in noises], model.embed([PROMPT]))[-1]
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def check_half_precision(family: Family) -> None:
    """Frozen weights of 16 bits: sampled, updated and scored with a gradient, close to what float32 gives."""
    exact = our_latents(load(family.folder, family.guidance), 2)
    for settings in ({"dtype": "bfloat16"}, {"autocast": "bfloat16"}):
        model = load(family.folder, family.guidance, **settings)
        model.add_lora(LoraSettings(rank=2), seed=0)
        rounded = our_latents(model, 2)
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.2 * exact.norm()
        surrogate = build_surrogate(model, SurrogateSettings(head_channels=8, adapter_rank=2))
        drawn = draw_augmentation(exact.shape, 200, torch.Generator().manual_seed(0))
        _, gradient_BCHW = score_and_gradient(surrogate, exact, *drawn, model.embed([PROMPT]), "bfloat16")
        assert gradient_BCHW.isfinite().all()
        assert model.decode(exact, mixed=True).shape == (1, *model.image_size, 3)

"""The SD1.5 family against stock diffusers, on random models of its architecture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import few_step_models
import pytest
import torch
from changed_model import change_json
from few_step_models import TRAILING
from tiny_model import diffusers
from tiny_sd15 import write_tiny_sd2, write_tiny_sd15

from lasro.config import LoraSettings, ModelSettings, SurrogateSettings
from lasro.errors import ModelError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.sd15 import Sd15Generator
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import sample_latents

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module", params=[True, False], ids=["guidance embedding", "no guidance embedding"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd15(tmp_path_factory.mktemp("sd15") / "model", request.param)


def load(folder: Path) -> GeneratorModel:
    return load_model(ModelSettings(path=str(folder), device="cpu", guidance=guidance_of(folder)))


def guidance_of(folder: Path) -> float:
    return 8.0 if '"time_cond_proj_dim": 16' in (folder / "unet" / "config.json").read_text() else 1.0


def stock(folder: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(pipeline: Any, num_steps: int, guidance: float) -> torch.Tensor:
    draws = torch.Generator("cpu").manual_seed(7)
    options = {"num_inference_steps": num_steps, "guidance_scale": guidance, "output_type": "latent"}
    return pipeline(PROMPT, generator=draws, **options).images


def our_latents(model: GeneratorModel, num_steps: int) -> torch.Tensor:
    draws = torch.Generator("cpu").manual_seed(7)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(num_steps)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed([PROMPT]))[-1]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_latents_are_those_of_stock_diffusers(folder: Path, num_steps: int) -> None:
    """Guards against any difference in timesteps, scalings, guidance or the order of noises."""
    model = load(folder)
    assert isinstance(model, Sd15Generator)
    expected = stock_latents(stock(folder), num_steps, guidance_of(folder))
    assert (our_latents(model, num_steps) - expected).abs().max() <= 1e-4


def test_the_pipeline_of_lcm_dreamshaper_is_read(tmp_path: Path) -> None:
    """Bug: the folder by which the first of these models was published was refused for its pipeline's name."""
    folder = write_tiny_sd15(tmp_path / "model")
    change_json(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    change_json(folder / "scheduler/scheduler_config.json", clip_sample=True)
    pipeline = diffusers.LatentConsistencyModelPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for num_steps in (1, 2):
        expected = stock_latents(pipeline, num_steps, guidance_of(folder))
        assert (our_latents(load(folder), num_steps) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_sd_turbo_is_drawn_as_by_stock_diffusers(tmp_path: Path, scheduler: str, prediction: str) -> None:
    """Guards against SD2.1's text encoder and UNet being read as SD1.5's, and against epsilon where v is predicted."""
    config = TRAILING | {"_class_name": scheduler, "prediction_type": prediction}
    folder = write_tiny_sd2(tmp_path / "model", getattr(diffusers, scheduler).from_config(config))
    model, pipeline, lora = few_step_models.load(folder), stock(folder), LoraSettings(rank=2)
    for num_steps in (1, 2, 4):
        expected = few_step_models.stock_latents(pipeline, num_steps)
        assert few_step_models.difference(few_step_models.our_latents(model, num_steps), expected) <= 1e-4
    with torch.no_grad():
        for parameter in model.add_lora(lora, seed=0):
            parameter.add_(0.02)
    model.save_lora(tmp_path / "adapter", lora)
    pipeline.load_lora_weights(tmp_path / "adapter")
    for num_steps in (1, 2, 4):
        expected = few_step_models.stock_latents(pipeline, num_steps)
        assert few_step_models.difference(few_step_models.our_latents(model, num_steps), expected) <= 1e-4


def test_an_adapter_is_read_by_stock_diffusers_and_back(folder: Path, tmp_path: Path) -> None:
    """Guards against an adapter of which some keys find no place, or with alpha / rank lost on the way."""
    model, settings = load(folder), LoraSettings(rank=4, alpha=10.0)
    before = our_latents(model, 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.add_lora(settings, seed=0):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_lora(tmp_path / "adapter", settings)
    pipeline, reloaded = stock(folder), load(folder)
    pipeline.load_lora_weights(tmp_path / "adapter")
    reloaded.load_lora(tmp_path / "adapter")
    for num_steps in (1, 2, 4):
        ours = our_latents(model, num_steps)
        assert (ours - stock_latents(pipeline, num_steps, guidance_of(folder))).abs().max() <= 1e-4
        assert (ours - our_latents(reloaded, num_steps)).abs().max() <= 1e-4
    assert (our_latents(model, 2) - before).abs().max() > 0.01, "the adapter changes nothing"


def test_its_encoder_carries_a_surrogate(folder: Path) -> None:
    """Guards against a feature extractor that needs what only SDXL has, such as an added embedding."""
    model = load(folder)
    assert isinstance(model, UNetGenerator)
    surrogate = build_surrogate(model, SurrogateSettings(head_channels=8))
    latents, draws = torch.randn(2, *model.latent_shape), torch.Generator().manual_seed(0)
    conditioning = model.embed([PROMPT, "a cat"])
    scores_B, gradient_BCHW = score_and_gradient(
        surrogate, latents, *draw_augmentation(latents.shape, 200, draws), conditioning
    )
    assert scores_B.shape == (2,)
    assert gradient_BCHW.abs().amax((1, 2, 3)).min() > 0
    seen: list[torch.Tensor] = []
    hook = model.base.mid_block.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    timesteps = torch.tensor([3, 150])
    with torch.no_grad():
        model.base(latents, timesteps, **model.unet_arguments(conditioning))
        hook.remove()
        features = model.feature_extractor()(latents, timesteps, conditioning)
    torch.testing.assert_close(features, seen[0])


def test_a_model_of_another_family_or_without_a_part_is_named(folder: Path, tmp_path: Path) -> None:
    """Guards against a traceback for a folder that only looks like the family."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(ModelError, match=r"lacks text_encoder, which a StableDiffusionPipeline has; found .*unet, vae"):
        load(broken)
    with pytest.raises(ModelError, match=r"guidance: got 9\.0, but this UNet has no guidance embedding"):
        load_model(ModelSettings(path=str(_without_guidance(folder, tmp_path)), device="cpu", guidance=9.0))


def _without_guidance(folder: Path, tmp_path: Path) -> Path:
    return folder if guidance_of(folder) == 1.0 else write_tiny_sd15(tmp_path / "plain", guidance_embedding=False)

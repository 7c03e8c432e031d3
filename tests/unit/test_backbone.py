"""A surrogate that stands on another model than the generator: what it sees, what is refused, what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_model import VAE_WEIGHTS, change_json, change_weights, copy_model
from few_step_models import SDXL_BASE, with_scheduler
from tiny_model import diffusers, write_tiny_model
from tiny_sd15 import write_tiny_sd2
from tiny_transformers import write_tiny_z_image

from lasro.config import (
    BackboneModelSettings,
    BackboneSettings,
    ModelSettings,
    RunSettings,
    SurrogateRun,
    SurrogateSettings,
    load_config,
)
from lasro.errors import ModelError, PromptTooLongError, WireError
from lasro.models.backbone import check_latents, check_note, load_trunk, note_of, trunk_of, with_latents
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient
from lasro.training.prompt_checks import check_lengths
from lasro.training.prompts import Prompt, PromptFile
from lasro_surrogate_trainer.store import RunStore

PROMPTS = ["a red star", "a blue square"]
BETAS = {name: SDXL_BASE[name] for name in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
SCHEDULES: dict[str, dict[str, Any]] = {
    "SDXL": SDXL_BASE,
    "SD1.5": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS},
    "SD2.1": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": True, **BETAS},
    "DPM-Solver": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, **BETAS},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A many-step model as SDXL's base is, with the VAE of the tiny generator and another UNet."""
    place = tmp_path_factory.mktemp("base")
    return with_scheduler(write_tiny_model(place / "plain", guidance_embedding=False), place / "base", SDXL_BASE)


@pytest.fixture(scope="module")
def generator(tiny_model_path: Path) -> GeneratorModel:
    return load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))


def run_on(generator: GeneratorModel, backbone: Path | str, **settings: Any) -> SurrogateRun:
    surrogate = {"backbone": str(backbone), "adapter_rank": 2, "head_channels": 8, "device": "cpu", **settings}
    return SurrogateRun(
        model=generator.settings, surrogate=SurrogateSettings.model_validate(surrogate), weights={"any": 1.0}
    )


def inputs(model: GeneratorModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(2, *model.latent_shape, generator=draws), *draw_augmentation(
        (2, *model.latent_shape), 200, draws
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_is_that_of_the_backbones_schedule(base: Path, tmp_path: Path, name: str) -> None:
    """Guards against a backbone of many steps that is refused for how it is sampled, or noised by another schedule."""
    folder = with_scheduler(base, tmp_path / "model", SCHEDULES[name])
    backbone = load_trunk(BackboneModelSettings(path=str(folder), device="cpu", guidance=1.0))
    z, timesteps, noise = inputs(backbone)
    stock = diffusers.DDPMScheduler.from_config(SCHEDULES[name])
    torch.testing.assert_close(backbone.diffuse(z, noise, timesteps), stock.add_noise(z, noise, timesteps))


def test_a_schedule_without_betas_is_refused(base: Path, tmp_path: Path) -> None:
    """Guards against a schedule that is guessed: a flow-matching UNet noised by betas that it does not have."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    folder = with_scheduler(base, tmp_path / "model", flow)
    with pytest.raises(ModelError, match=r"^surrogate\.backbone: .*scheduler: got a FlowMatchEuler.*made of betas"):
        load_trunk(BackboneModelSettings(path=str(folder), device="cpu", guidance=1.0))


@pytest.mark.parametrize("trunk", ["full", "adapter"])
def test_scores_are_those_of_the_backbone(generator: GeneratorModel, base: Path, trunk: str) -> None:
    """Guards against a surrogate that stands on the generator all the same, and against weights freed that it needs."""
    run = run_on(generator, base, trunk=trunk)
    backbone, whole = trunk_of(run, generator), load_model(ModelSettings(path=str(base), scheduler="ddim", guidance=1))
    on_whole = build_surrogate(whole, run.surrogate.model_copy(update={"backbone": None}))
    found, expected = (
        score_and_gradient(surrogate, *inputs(generator), surrogate.model.embed(PROMPTS))
        for surrogate in (build_surrogate(backbone, run.surrogate), on_whole)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ModelError, match=r"^surrogate\.backbone: got base, but the surrogate was put on"):
        build_surrogate(generator, run.surrogate)


@pytest.mark.parametrize("family", ["SDXL", "Z-Image"])
def test_only_the_trunk_takes_memory(tmp_path: Path, base: Path, family: str) -> None:
    """Guards against the half of a backbone that nothing uses, gigabytes of SDXL, in memory all the same."""
    folder = base if family == "SDXL" else write_tiny_z_image(tmp_path / "model")
    settings = BackboneModelSettings(path=str(folder), device="cpu", guidance=1.0)
    whole, backbone = load_model(settings), load_trunk(settings)
    part = "unet" if family == "SDXL" else "transformer"
    kept, of_all = (held_bytes(getattr(model.pipeline, part)) for model in (backbone, whole))  # pyright: ignore[reportAttributeAccessIssue]
    print(f"{family}: {kept:,} of {of_all:,} bytes are kept")
    assert kept < (0.8 if family == "SDXL" else 1) * of_all
    z, timesteps, _ = inputs(whole)
    features = [model.feature_extractor()(z, timesteps, model.embed(["a red star"] * 2)) for model in (whole, backbone)]
    torch.testing.assert_close(*features)


def held_bytes(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters() if not parameter.is_meta)


def retouched(folder: Path) -> None:
    """Other weights, the same latents, but for rounding: as of a VAE that was made to bear 16 bits."""
    change_weights(folder / VAE_WEIGHTS, lambda state: {name: w.bfloat16().float() for name, w in state.items()})


def another(folder: Path) -> None:
    change_weights(folder / VAE_WEIGHTS, lambda state: {name: w.flip(0) for name, w in state.items()})


def scaled(folder: Path) -> None:
    change_json(folder / "vae/config.json", scaling_factor=0.6)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (retouched, None),
        (another, "got latents of a picture that differ by .* from the generator's, expected 10% at most; take a"),
        (scaled, "got latents of a picture that differ by 20% from the generator's"),
    ],
)
def test_latents_must_agree(
    generator: GeneratorModel, base: Path, tmp_path: Path, change: Any, problem: str | None
) -> None:
    """Guards against a backbone that is shown latents of another VAE, and against one refused for how it is stored."""
    folder = copy_model(base, tmp_path / "other")
    change(folder)
    if problem is None:
        assert trunk_of(run_on(generator, folder), generator) is not generator
        return
    with pytest.raises(ModelError, match=rf"^surrogate\.backbone other: {problem}"):
        trunk_of(run_on(generator, folder), generator)


def test_other_grids_and_channels_are_named(generator: GeneratorModel, tmp_path: Path) -> None:
    """Guards against a failure deep inside a network where a backbone's latents have another shape."""
    with pytest.raises(ModelError, match="bundled: got 8 pixels to a latent's side, expected the generator's 2; take"):
        trunk_of(run_on(generator, "bundled"), generator)
    backbone = load_trunk(BackboneModelSettings(path=str(write_tiny_z_image(tmp_path / "z")), device="cpu", guidance=1))
    described = with_latents(run_on(generator, "z"), generator)
    assert described.latents is not None
    fewer = described.latents.model_copy(update={"test_card": described.latents.test_card[:48]})
    with pytest.raises(ModelError, match="got latents of 4 channels, expected the generator's 3"):
        check_latents(backbone, described.model_copy(update={"latents": fewer}))


def test_images_have_the_generators_size(base: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a trainer that takes latents of the backbone's own size and refuses the generator's."""
    wide = load_model(ModelSettings(path=str(tiny_model_path), device="cpu", height=8, width=24))
    run = SurrogateRun.model_validate_json(with_latents(run_on(wide, base), wide).model_dump_json(), strict=True)
    assert load_trunk(run.trunk_model).latent_shape == wide.latent_shape
    store = RunStore(tmp_path, "any", keep_versions=1, keep_versions_s=0)
    store.save_config(run)
    assert store.find_config() == run, "a trainer that is restarted would load another"
    assert with_latents(run_on(wide, base).model_copy(update={"surrogate": SurrogateSettings()}), wide).latents is None


def test_a_backbone_of_another_class(tmp_path: Path) -> None:
    """Guards against prompts that the generator's text encoders embed for a UNet of another class."""
    plain = write_tiny_sd2(tmp_path / "sd2", diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1))
    change_json(plain / "vae/config.json", scaling_factor=0.5)
    generator = load_model(ModelSettings(path=str(write_tiny_model(tmp_path / "sdxl")), device="cpu"))
    weights = Path("vae/diffusion_pytorch_model.safetensors")
    (plain / weights).write_bytes((tmp_path / "sdxl" / weights).read_bytes())
    backbone = trunk_of(run_on(generator, plain, trunk="adapter"), generator)
    surrogate = build_surrogate(backbone, run_on(generator, plain, trunk="adapter").surrogate)
    assert surrogate(*inputs(generator), backbone.embed(PROMPTS)).isfinite().all()


def test_prompts_must_fit_the_backbone_too(base: Path, tmp_path: Path) -> None:
    """Guards against a run that ends in its tenth round, at the first prompt too long for the backbone's tokenizer."""
    folder = copy_model(base, tmp_path / "short")
    for name in ("tokenizer", "tokenizer_2"):
        change_json(folder / name / "tokenizer_config.json", model_max_length=8)
    text = "a red circle left of a blue square below a green star"
    file = PromptFile(tmp_path / "prompts.txt", [Prompt(text)], [1])
    check_lengths([file], BackboneModelSettings(path=str(base)))
    with pytest.raises(PromptTooLongError, match=r"prompts\.txt:1: got 1. tokens, expected at most 8"):
        check_lengths([file], BackboneModelSettings(path=str(folder)))


def test_weights_of_another_backbone_are_refused() -> None:
    """Guards against a surrogate of SDXL on SDXL-Turbo, whose names and shapes all fit."""
    ours, theirs = BackboneSettings(path="stabilityai/sdxl"), BackboneSettings(path="/models/turbo")
    for same in (ours, theirs, None):
        check_note({"version": "3", **note_of(same)}, same)
    with pytest.raises(WireError, match=r'on surrogate\.backbone turbo, expected them on .*/sdxl; set .* = "turbo"'):
        check_note(note_of(theirs), ours)
    with pytest.raises(WireError, match=r"on its generator, expected them on surrogate\.backbone turbo; leave"):
        check_note({"steps": "1"}, theirs)


def test_settings_of_a_backbone(tmp_path: Path) -> None:
    """Guards against a path that starts in the folder where the command was called, and a table that is not read."""
    (tmp_path / "prompts.txt").write_text("a red star\n")
    (tmp_path / "own").mkdir()
    lines = ['name = "a"', 'prompts = {train = "prompts.txt", held_out = "prompts.txt"}', 'rewards = [{name = "r"}]']
    (tmp_path / "run.toml").write_text("\n".join(lines))

    def read(value: str) -> RunSettings:
        return load_config(tmp_path / "run.toml", [f"surrogate.backbone={value}"])

    assert read("own").surrogate.backbone == BackboneSettings(path=str(tmp_path / "own"))
    hub = BackboneSettings(path="owner/name", revision="abc", guidance=4.0)
    assert hub.name == "owner/name"
    assert read('{path = "owner/name", revision = "abc", guidance = 4.0}').surrogate.backbone == hub
    trunk = read('{path = "owner/name", revision = "abc", guidance = 4.0}').surrogate_run.trunk_model
    assert (trunk.path, trunk.revision, trunk.guidance, trunk.base_adapter) == ("owner/name", "abc", 4.0, None)
    assert not trunk.gradient_checkpointing
    model = ModelSettings(gradient_checkpointing=True)
    assert read("owner/name").surrogate_run.model_copy(update={"model": model}).trunk_model.gradient_checkpointing
    stored = json.loads(read("owner/name").model_dump_json())
    assert RunSettings.model_validate(stored).surrogate == read("owner/name").surrogate

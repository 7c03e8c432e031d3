"""A few-step LoRA on a stock checkpoint: fused into the base, beside what is trained, and named where it is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import UNET, diffusers_form, random_factors, write_adapter
from few_step_models import (
    PROMPT,
    SDXL_BASE,
    difference,
    load,
    our_latents,
    stock_latents,
    stock_pipeline,
    with_scheduler,
)
from tiny_model import diffusers, write_tiny_model
from tiny_sd15 import write_tiny_sd15

from lasro.config import LoraSettings, ModelSettings
from lasro.errors import ModelError
from lasro.models import base_adapter
from lasro.models.adapter_file import ADAPTER_FILE
from lasro.models.base_adapter import BaseAdapter
from lasro.models.text_encoders import is_unread
from lasro.models.unet_generator import UNetGenerator
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.evaluation.export import export

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")  # two adapters


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock SDXL checkpoint, which is sampled in many steps."""
    place = tmp_path_factory.mktemp("sdxl")
    plain = write_tiny_model(place / "plain", guidance_embedding=False)
    return with_scheduler(plain, place / "model", SDXL_BASE)


@pytest.fixture(scope="module")
def lcm_lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what stands for LCM-LoRA."""
    folder = tmp_path_factory.mktemp("lcm-lora")
    write_lora(load(checkpoint, scheduler="lcm"), folder, seed=2)
    return folder


def write_lora(model: UNetGenerator, folder: Path, seed: int) -> None:
    """Put a random LoRA on the model, and write it."""
    settings = LoraSettings(rank=2, alpha=3.0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.add_lora(settings, seed=0):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_lora(folder, settings)


def stock(checkpoint: Path) -> Any:
    return stock_pipeline(checkpoint, diffusers.LCMScheduler.from_config)


def test_it_draws_as_stock_diffusers_with_both_adapters(checkpoint: Path, lcm_lora: Path, tmp_path: Path) -> None:
    """Guards against a base adapter that is not in the base, is trained, or is written a second time with ours."""
    model, pipeline = load(checkpoint, scheduler="lcm", base_adapter=str(lcm_lora)), stock(checkpoint)
    bare = stock_latents(pipeline, 2)
    pipeline.load_lora_weights(lcm_lora, adapter_name="few steps")
    for num_steps in (1, 2, 4):
        assert difference(our_latents(model, num_steps), stock_latents(pipeline, num_steps)) <= 1e-4
    assert (our_latents(model, 2) - bare).abs().max() > 0.01, "the base adapter changes nothing"
    write_lora(model, tmp_path / "ours", seed=3)
    pipeline.load_lora_weights(tmp_path / "ours", adapter_name="ours")
    pipeline.set_adapters(["few steps", "ours"])
    for num_steps in (1, 2, 4):
        assert difference(our_latents(model, num_steps), stock_latents(pipeline, num_steps)) <= 1e-4
    exported = tmp_path / "exported"
    export(settings(checkpoint, base_adapter=str(lcm_lora)), tmp_path / "ours", exported)
    assert difference(our_latents(load(exported), 2), stock_latents(pipeline, 2)) <= 1e-4
    assert difference(stock_latents(stock_pipeline(exported), 2), stock_latents(pipeline, 2)) <= 1e-4


def test_it_may_be_one_of_an_sd15_class_checkpoint(tmp_path: Path) -> None:
    """Guards against a base adapter that is looked up among the parts of SDXL's pipeline."""
    plain = write_tiny_sd15(tmp_path / "plain", guidance_embedding=False)
    folder = with_scheduler(plain, tmp_path / "model", SDXL_BASE)
    write_lora(load(folder, scheduler="lcm"), tmp_path / "lcm-lora", seed=2)
    model, pipeline = load(folder, scheduler="lcm", base_adapter=str(tmp_path / "lcm-lora")), stock(folder)
    bare = stock_latents(pipeline, 2)
    pipeline.load_lora_weights(tmp_path / "lcm-lora")
    assert difference(our_latents(model, 2), stock_latents(pipeline, 2)) <= 1e-4
    assert (our_latents(model, 2) - bare).abs().max() > 0.01, "the base adapter changes nothing"


def test_one_of_text_encoders_is_in_what_they_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an adapter fused into encoders that are not read, lost when they are let go, or on disk under the
    bare model's name, and against one of the UNet alone for which all encoders are read."""
    monkeypatch.setenv("LASRO_CACHE_DIR", str(tmp_path / "cache"))
    plain = write_tiny_sd15(tmp_path / "plain", guidance_embedding=False)
    folder = with_scheduler(plain, tmp_path / "model", SDXL_BASE)
    of_unet = diffusers_form(random_factors(folder / UNET, ("to_q",)))
    weights = folder / "text_encoder" / "model.safetensors"
    of_encoder = diffusers_form(random_factors(weights, ("q_proj", "fc1"), scale=0.5), "text_encoder.")
    only_unet = write_adapter(tmp_path / "unet" / ADAPTER_FILE, of_unet)
    both = write_adapter(tmp_path / "both" / ADAPTER_FILE, of_unet | of_encoder)
    bare = load(folder, scheduler="lcm", base_adapter=str(only_unet))
    assert is_unread(bare.pipeline.text_encoder)
    embedded = bare.embed([PROMPT])["embeds"]
    pipeline = stock(folder)
    pipeline.load_lora_weights(both)
    model = load(folder, scheduler="lcm", base_adapter=str(both))
    expected = stock_latents(pipeline, 2)
    assert difference(our_latents(model, 2), expected) <= 1e-4
    assert (model.embed([PROMPT])["embeds"] - embedded).abs().max() > 1e-3
    model.embed_ahead([PROMPT])
    model.embed(["another"])
    write_lora(model, tmp_path / "ours", seed=3)
    again = load(folder, scheduler="lcm", base_adapter=str(both))
    again.load_lora(tmp_path / "ours")
    again.prompt_encoder.encoders.release()
    monkeypatch.setattr(again, "embed_prompt", lambda _: pytest.fail("was on disk"))
    assert torch.equal(again.embed([PROMPT])["embeds"], model.embed([PROMPT])["embeds"])
    assert torch.equal(load(folder, scheduler="lcm").embed([PROMPT])["embeds"], embedded)
    again.save_fused(tmp_path / "fused")
    pipeline = stock(folder)
    pipeline.load_lora_weights(both, adapter_name="few steps")
    pipeline.load_lora_weights(tmp_path / "ours", adapter_name="ours")
    pipeline.set_adapters(["few steps", "ours"])
    assert difference(our_latents(load(tmp_path / "fused"), 2), stock_latents(pipeline, 2)) <= 1e-4


def settings(checkpoint: Path, **more: Any) -> ModelSettings:
    return ModelSettings(path=str(checkpoint), device="cpu", guidance=1.0, scheduler="lcm", **more)


def test_what_is_written_says_on_which_it_stands(
    checkpoint: Path, lcm_lora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against an adapter that is drawn on the bare checkpoint, of which it makes noise, and nobody is told."""
    write_lora(load(checkpoint, scheduler="lcm", base_adapter=str(lcm_lora)), tmp_path / "ours", seed=3)
    digest = hashlib.sha256((lcm_lora / ADAPTER_FILE).read_bytes()).hexdigest()
    assert base_adapter.noted_base_adapter(tmp_path / "ours") == BaseAdapter(ADAPTER_FILE, digest)
    assert base_adapter.noted_base_adapter(lcm_lora) is None
    load_adapted(settings(checkpoint, base_adapter=str(lcm_lora / ADAPTER_FILE)), tmp_path / "ours", partial=False)
    assert not caplog.records
    load_adapted(settings(checkpoint), tmp_path / "ours", partial=False)
    (record,) = caplog.records
    assert record.message == (
        f"{tmp_path}/ours: was trained on top of {ADAPTER_FILE}; give the model this, as model.base_adapter"
    )


def test_what_cannot_be_a_base_adapter_is_named(checkpoint: Path, lcm_lora: Path, tmp_path: Path) -> None:
    """Guards against half of another architecture's adapter, or a download attempt for a mistyped path."""
    other = load(write_tiny_sd15(tmp_path / "sd15", guidance_embedding=False))
    write_lora(other, tmp_path / "of sd15", seed=1)
    for source, message in (
        (tmp_path / "of sd15", r"keys have no place in this model .*: of another model, .*; use a LoRA of this model$"),
        (tmp_path / "absent", "no such adapter; expected a .safetensors file or a folder with one"),
        (checkpoint, "is a whole model, no adapter"),
        ("lcm-lora", "lcm-lora: no such file or folder; expected one, or a hub id such as owner/name"),
    ):
        with pytest.raises(ModelError, match=message) as refusal:
            load(checkpoint, scheduler="lcm", base_adapter=str(source))
        assert str(refusal.value).startswith("model.base_adapter: ")
        assert "\n" not in str(refusal.value)
        assert "--partial" not in str(refusal.value)


def test_a_hub_id_may_name_one_of_its_files(checkpoint: Path, lcm_lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against repositories of many adapters, as ByteDance/Hyper-SD is, of which none could be named."""
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(lcm_lora / ADAPTER_FILE)

    monkeypatch.setattr(base_adapter, "hf_hub_download", download)
    for source in ("latent-consistency/lcm-lora-sdxl", "ByteDance/Hyper-SD/Hyper-SDXL-1step-lora.safetensors"):
        model = load(checkpoint, scheduler="lcm", base_adapter=source)
        assert model.base_adapter is not None
        assert model.base_adapter.name == source
    assert asked == [
        ("latent-consistency/lcm-lora-sdxl", ADAPTER_FILE),
        ("ByteDance/Hyper-SD", "Hyper-SDXL-1step-lora.safetensors"),
    ]

"""SANA-Sprint against stock diffusers, on a random model of its architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformer_checks as checks
from changed_model import change_json, copy_model
from tiny_transformers import write_tiny_sana
from transformer_checks import Family, load, stock

from lasro.config import ModelSettings
from lasro.errors import ModelError, PromptTooLongError
from lasro.models.registry import load_prompt_tokens

GUIDANCE = 4.5


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = write_tiny_sana(tmp_path_factory.mktemp("sana") / "model")

    def options(num_steps: int) -> dict[str, object]:
        middle = {} if num_steps == 2 else {"intermediate_timesteps": None}
        size = {"height": 32, "width": 32, "use_resolution_binning": False}
        return {"guidance_scale": GUIDANCE, **size, **middle}

    return Family(folder, "SanaSprintPipeline", options, GUIDANCE)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_latents_are_those_of_stock_diffusers(family: Family, num_steps: int) -> None:
    """Guards against any difference in angles, scalings, guidance, instruction or the order of noises."""
    checks.check_parity(family, num_steps)


def test_guidance_reaches_the_network(family: Family) -> None:
    """Guards against a guidance scale that is read and left out: parity at one scale would not show it."""
    assert (checks.our_latents(load(family.folder, 1.0), 1) - checks.our_latents(load(family.folder, 9.0), 1)).any()


def test_adapters(family: Family, tmp_path: Path) -> None:
    """Guards against keys without a place, alpha / rank lost, and a base that moves along with the adapter."""
    checks.check_adapters(family, tmp_path, (1, 2, 4))


def test_its_first_half_carries_a_surrogate(family: Family) -> None:
    """Guards against features of another block, of permuted tokens, or out of reach of the gradient."""
    checks.check_surrogate(
        family,
        lambda base: base.transformer_blocks[0],
        lambda tokens_BND: tokens_BND.transpose(1, 2).unflatten(2, (8, 8)),
    )


def test_what_the_surrogate_looks_at(family: Family) -> None:
    """Guards against sine and cosine exchanged, and an angle that does not end at pi / 2."""
    checks.check_forward_process(family)


def test_a_prompt_does_not_depend_on_its_neighbours(family: Family) -> None:
    """Guards against rows that change with the batch, by which a resumed run would come out differently."""
    checks.check_rows(family)


def test_images_that_are_not_square(family: Family) -> None:
    """Guards against height and width exchanged somewhere between latents, tokens, features and images."""
    checks.check_size(family, 64, 32)


def test_16_bits(family: Family) -> None:
    """Guards against a dtype that does not fit somewhere between text encoder, network and surrogate."""
    checks.check_half_precision(family)


def test_images_and_back(family: Family) -> None:
    """Guards against a scaling factor that is applied twice or not at all, in either direction."""
    model, pipeline = load(family.folder, GUIDANCE), stock(family)
    latents = checks.our_latents(model, 2)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
        torch.testing.assert_close(model.decode_pixels(latents), expected)
        image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(model.encode(image), pipeline.vae.encode(pixels).latent * 0.41407)


def test_prompts_that_are_too_long_are_refused(family: Family) -> None:
    """Guards against a prompt cut short in silence: stock takes 300 tokens after its own instruction."""
    model, fits = load(family.folder, GUIDANCE), "cat " * 298
    tokens = load_prompt_tokens(ModelSettings(path=str(family.folder)))
    assert tokens is not None
    assert tokens.too_long([fits, fits + "dog"])[0][:3] == (1, 301, 300)
    model.embed([fits])
    with pytest.raises(PromptTooLongError, match="got 301 tokens, expected at most 300"):
        model.embed([fits + "dog"])


def test_what_is_no_sana_sprint_is_named(family: Family, tmp_path: Path) -> None:
    """Guards against a traceback, or pictures of noise, for a folder that only looks like the family."""
    broken = copy_model(family.folder, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(ModelError, match=r"lacks text_encoder, which a SanaSprintPipeline has"):
        load(broken)
    other = copy_model(family.folder, tmp_path / "other")
    change_json(other / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    change_json(other / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ModelError, match=r"scheduler: got a FlowMatchEulerDiscreteScheduler, expected a SCMScheduler"):
        load(other)
    many_steps = write_tiny_sana(tmp_path / "many", guidance_embeds=False)
    with pytest.raises(ModelError, match=r"transformer: got no guidance_embeds"):
        load(many_steps)
    with pytest.raises(ModelError, match=r"caption_channels 24, expected 16"):
        load(write_tiny_sana(tmp_path / "encoder", caption_channels=24))
    with pytest.raises(ModelError, match=r"model\.unet: got .*, which a SanaSprintPipeline does not take"):
        load(family.folder, unet=str(family.folder))
    with pytest.raises(ModelError, match=r"model\.scheduler: got lcm, which a SanaSprintPipeline does not take"):
        load(family.folder, scheduler="lcm")
    with pytest.raises(ModelError, match=r"timesteps: got \[999, 299\], but the steps of SanaSprintGenerator"):
        load(family.folder, timesteps=(999, 299))

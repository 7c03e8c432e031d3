"""FLUX.2-klein against stock diffusers, on a random model of its architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformer_checks as checks
from changed_model import change_json, copy_model
from tiny_transformers import write_tiny_flux2
from transformer_checks import Family, load, normalised, stock

from lasro.errors import ModelError, PromptTooLongError


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = write_tiny_flux2(tmp_path_factory.mktemp("flux2") / "model")
    options = {"guidance_scale": 1.0, "height": 16, "width": 16}
    return Family(folder, "Flux2KleinPipeline", lambda _: options, from_stock=normalised)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_latents_are_those_of_stock_diffusers(family: Family, num_steps: int) -> None:
    """Guards against any difference in noise levels, places of tokens, layers of the encoder or packing of latents."""
    checks.check_parity(family, num_steps)


def test_adapters(family: Family, tmp_path: Path) -> None:
    """Guards against keys without a place, alpha / rank lost, and single blocks whose output gets no adapter."""
    checks.check_adapters(family, tmp_path, (1, 4))
    names = {name for name, _ in load(family.folder).base.named_modules()}
    targets = load(family.folder).lora_targets
    assert all(any(name.endswith(target) for name in names) for target in targets)


def test_its_first_half_carries_a_surrogate(family: Family) -> None:
    """Guards against features of another block, of the prompt's tokens, or out of reach of the gradient."""
    checks.check_surrogate(
        family,
        lambda base: base.single_transformer_blocks[0],
        lambda tokens_BND: tokens_BND[:, -16:].transpose(1, 2).unflatten(2, (4, 4)),
    )


def test_what_the_surrogate_looks_at(family: Family) -> None:
    """Guards against signal and noise exchanged, and a level that does not end at 1."""
    checks.check_forward_process(family)


def test_a_prompt_does_not_depend_on_its_neighbours(family: Family) -> None:
    """Guards against rows that change with the batch, by which a resumed run would come out differently."""
    checks.check_rows(family)


def test_images_that_are_not_square(family: Family) -> None:
    """Guards against height and width exchanged somewhere between latents, tokens, features and images."""
    checks.check_size(family, 24, 16)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of a norm, which then is not fused
def test_16_bits(family: Family) -> None:
    """Guards against a dtype that does not fit somewhere between text encoder, network and surrogate."""
    checks.check_half_precision(family)


def test_images_and_back(family: Family) -> None:
    """Guards against patches in another order, and statistics of the batch norm left out, in either direction."""
    model, pipeline = load(family.folder), stock(family)
    expected = checks.stock_latents(family._replace(from_stock=lambda _, latents: latents), pipeline, 2)
    with torch.no_grad():
        of_stock = pipeline.vae.decode(expected).sample / 2 + 0.5
        torch.testing.assert_close(model.decode_pixels(checks.our_latents(model, 2)), of_stock, rtol=0, atol=1e-4)
        image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1
        encoded = pipeline._encode_vae_image(pixels, torch.Generator())
        torch.testing.assert_close(model.encode(image), encoded)


def test_prompts_that_are_too_long_are_refused(family: Family) -> None:
    """Guards against a prompt cut short in silence: the 512 tokens hold the template too, here 5 of them."""
    model, fits = load(family.folder), "cat " * 507
    model.embed([fits])
    with pytest.raises(PromptTooLongError, match="got 513 tokens, expected at most 512"):
        model.embed([fits + "dog"])


def test_what_is_no_distilled_klein_is_named(family: Family, tmp_path: Path) -> None:
    """Guards against a traceback, or pictures of noise, for a folder that only looks like the family."""
    with pytest.raises(ModelError, match=r"guidance: got 4\.0, but this model has no guidance embedding; set it to 1"):
        load(family.folder, guidance=4.0)
    broken = copy_model(family.folder, tmp_path / "broken")
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(ModelError, match=r"lacks tokenizer, which a Flux2KleinPipeline has"):
        load(broken)
    many_steps = copy_model(family.folder, tmp_path / "many")
    change_json(many_steps / "model_index.json", is_distilled=False)
    with pytest.raises(ModelError, match=r"got is_distilled false"):
        load(many_steps)
    inverted = copy_model(family.folder, tmp_path / "inverted")
    change_json(inverted / "scheduler/scheduler_config.json", invert_sigmas=True)
    with pytest.raises(ModelError, match=r"scheduler: invert_sigmas: "):
        load(inverted)
    with pytest.raises(ModelError, match=r"joint_attention_dim 32, expected 48"):
        load(write_tiny_flux2(tmp_path / "encoder", joint_attention_dim=32))

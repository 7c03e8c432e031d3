"""Z-Image-Turbo against stock diffusers, on a random model of its architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformer_checks as checks
from changed_model import change_json, copy_model
from tiny_transformers import write_tiny_z_image
from torch import Tensor
from transformer_checks import Family, load, stock

from lasro.errors import ModelError, PromptTooLongError

STEPS = (1, 2, 3, 4, 8)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = write_tiny_z_image(tmp_path_factory.mktemp("z-image") / "model")
    options = {"guidance_scale": 0.0, "height": 16, "width": 16}
    return Family(folder, "ZImagePipeline", lambda _: options)


@pytest.mark.parametrize("num_steps", STEPS)
def test_latents_are_those_of_stock_diffusers(family: Family, num_steps: int) -> None:
    """Guards against any difference in noise levels, signs of the velocity, or the template of a prompt."""
    checks.check_parity(family, num_steps)


def test_a_scheduler_that_shifts_by_resolution(family: Family, tmp_path: Path) -> None:
    """Guards against noise levels of a fixed shift where the folder's scheduler shifts dynamically."""
    folder = copy_model(family.folder, tmp_path / "dynamic")
    change_json(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True, shift=1.0)
    checks.check_parity(family._replace(folder=folder), 4)
    fixed, dynamic = load(family.folder).steps(4), load(folder).steps(4)
    assert [step.time for step in fixed] != [step.time for step in dynamic]


def test_adapters(family: Family, tmp_path: Path) -> None:
    """Guards against keys without a place, alpha / rank lost, and a base that moves along with the adapter."""
    checks.check_adapters(family, tmp_path, (1, 8))


def test_its_first_half_carries_a_surrogate(family: Family) -> None:
    """Guards against features of another block, of the prompt's tokens, or out of reach of the gradient."""

    def grid(tokens_BND: Tensor) -> Tensor:
        """The image's 16 tokens, padded to 32, come first; D is split by place in the patch, then channel."""
        of_image = tokens_BND[:, :16].unflatten(2, (4, 8)).transpose(2, 3).flatten(2)
        return of_image.transpose(1, 2).unflatten(2, (4, 4))

    checks.check_surrogate(family, lambda base: base.layers[1], grid)


def test_what_the_surrogate_looks_at(family: Family) -> None:
    """Guards against signal and noise exchanged, and a level that does not end at 1."""
    checks.check_forward_process(family)


def test_a_prompt_does_not_depend_on_its_neighbours(family: Family) -> None:
    """Guards against a prompt that is padded to the longest of its batch, and attended to there."""
    checks.check_rows(family)


def test_images_that_are_not_square(family: Family) -> None:
    """Guards against height and width exchanged somewhere between latents, tokens, features and images."""
    checks.check_size(family, 24, 16)


def test_16_bits(family: Family) -> None:
    """Guards against a dtype that does not fit somewhere between text encoder, network and surrogate."""
    checks.check_half_precision(family)


def test_images_and_back(family: Family) -> None:
    """Guards against a shift that is left out, as it is for families of UNets, in either direction."""
    model, vae = load(family.folder), stock(family).vae
    latents = checks.our_latents(model, 2)
    with torch.no_grad():
        expected = vae.decode(latents / 0.3611 + 0.1159).sample / 2 + 0.5
        torch.testing.assert_close(model.decode_pixels(latents), expected)
        image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
        encoded = vae.encode(torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        torch.testing.assert_close(model.encode(image), (encoded - 0.1159) * 0.3611)


def test_prompts_that_are_too_long_are_refused(family: Family) -> None:
    """Guards against a prompt cut short in silence: the 512 tokens hold the template too, here 4 of them."""
    model, fits = load(family.folder), "cat " * 508
    assert model.embed([fits])["mask"].sum() == 512
    with pytest.raises(PromptTooLongError, match="got 513 tokens, expected at most 512"):
        model.embed([fits + "dog"])


def test_what_is_no_z_image_turbo_is_named(family: Family, tmp_path: Path) -> None:
    """Guards against a traceback, or pictures of noise, for a folder that only looks like the family."""
    with pytest.raises(ModelError, match=r"guidance: got 4\.0, but this model has no guidance embedding; set it to 1"):
        load(family.folder, guidance=4.0)
    broken = copy_model(family.folder, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    with pytest.raises(ModelError, match=r"lacks vae, which a ZImagePipeline has"):
        load(broken)
    scheduler = copy_model(family.folder, tmp_path / "scheduler")
    change_json(scheduler / "scheduler/scheduler_config.json", stochastic_sampling=True)
    with pytest.raises(ModelError, match=r"scheduler: stochastic_sampling: "):
        load(scheduler)
    other = copy_model(family.folder, tmp_path / "other")
    change_json(other / "model_index.json", scheduler=["diffusers", "SCMScheduler"])
    change_json(other / "scheduler/scheduler_config.json", _class_name="SCMScheduler")
    with pytest.raises(ModelError, match=r"got a SCMScheduler, expected a FlowMatchEulerDiscreteScheduler"):
        load(other)
    size = copy_model(family.folder, tmp_path / "size")
    change_json(size / "vae/config.json", sample_size=[16, 16])
    with pytest.raises(ModelError, match=r"vae: got sample_size \[16, 16\], expected the side"):
        load(size)
    with pytest.raises(ModelError, match=r"cap_feat_dim 24, expected 16"):
        load(write_tiny_z_image(tmp_path / "encoder", cap_feat_dim=24))

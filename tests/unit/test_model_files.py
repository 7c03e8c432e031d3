"""Models in single files, and UNets that come apart from their pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from changed_model import (
    LFS_POINTER,
    PROMPT,
    UNET_WEIGHTS,
    change_json,
    change_weights,
    copy_model,
    images_of,
    load,
    remove_keys,
    rewrite,
)
from ldm_names import write_single_file
from tiny_sd15 import write_tiny_sd15

from lasro.config import ModelSettings
from lasro.errors import ConfigError, ModelError
from lasro.models.registry import load_prompt_tokens
from lasro_client.cli.images import generate


@pytest.fixture
def folder(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to change."""
    return copy_model(tiny_model_path, tmp_path / "model")


@pytest.fixture(scope="module")
def expected(tiny_model_path: Path) -> torch.Tensor:
    """What the unchanged tiny model draws."""
    return images_of(load(tiny_model_path))


@pytest.mark.parametrize("source", ["folder", "pipeline", "file", "file alone"])
def test_a_unet_may_come_apart_from_its_pipeline(
    folder: Path, tiny_model_path: Path, tmp_path: Path, source: str, expected: torch.Tensor
) -> None:
    """Bug: a distilled UNet that is published as one file, or within a whole pipeline, could not be named."""
    change_weights(folder / UNET_WEIGHTS, lambda s: {name: tensor * 0 for name, tensor in s.items()})
    lone = shutil.copy(tiny_model_path / UNET_WEIGHTS, tmp_path / "lone.safetensors")
    change_json(folder / "unet/config.json", time_cond_proj_dim=None)  # as of the undistilled one
    unet = {
        "folder": tiny_model_path / "unet",
        "pipeline": tiny_model_path,
        "file": tiny_model_path / UNET_WEIGHTS,
        "file alone": lone,
    }[source]
    assert torch.equal(images_of(load(folder, unet=str(unet))), expected)


def test_a_unet_that_does_not_fit_its_pipeline_is_refused(folder: Path, tiny_model_path: Path) -> None:
    """Bug: found as a traceback at the first image, of matrices that cannot be multiplied."""
    with pytest.raises(ModelError, match=r"model\.unet .*: got cross_attention_dim 32, expected the 256 of text_enc"):
        load("bundled", unet=str(tiny_model_path / "unet"))
    remove_keys(folder)
    with pytest.raises(ModelError, match=r"model\.unet .*: unet: lacks 10 "):
        load(tiny_model_path, unet=str(folder / "unet"))
    with pytest.raises(ModelError, match=r"model\.unet .*/none: no such folder"):
        load(tiny_model_path, unet=str(folder / "none"))


def test_commands_take_settings_of_the_model(folder: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    """Bug: what a run may set, such as a UNet that comes apart, generate, evaluate and export could not."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "pictures"
    prompts.write_text(f"{PROMPT}\n")
    remove_keys(folder)
    unet = tiny_model_path / UNET_WEIGHTS
    generate(prompts, out, model=str(folder), device="cpu", settings=[f"model.unet={unet}", "model.max_batch=1"])
    assert (out / "00000.png").is_file()
    for setting, message in (
        ("unet=x", "--set unet=x: expected a setting of the model, such as model.unet=PATH"),
        ("model=x", "--set model=x: expected a setting of the model"),
        ("model.max_batch=0", "max_batch: got 0. Input should be greater than or equal to 1"),
        ("model.unett=x", "unett: no such setting; did you mean unet?"),
    ):
        with pytest.raises(ConfigError) as refusal:
            generate(prompts, out, settings=[setting])
        assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guidance embedding"])
def test_a_single_file_is_what_its_folder_is(tmp_path: Path, guidance: bool) -> None:
    """Bug: one .safetensors file, as half of all models are shared, was taken for a hub id. A guidance embedding in it,
    for which diffusers' converter has no name, must not be lost."""
    folder = write_tiny_sd15(tmp_path / "model", guidance)
    file = write_single_file(folder, tmp_path / "whole.safetensors")
    w = 8.0 if guidance else 1.0
    expected = images_of(load(folder, guidance=w))
    base = write_tiny_sd15(tmp_path / "base", False)
    assert torch.equal(images_of(load(file, config=str(base), guidance=w)), expected)
    assert torch.equal(images_of(load(base, unet=str(file), guidance=w)), expected)
    if not guidance:
        change_weights(file, lambda s: {k: v for k, v in s.items() if "middle_block.0" not in k})
        with pytest.raises(ModelError, match=r"whole\.safetensors: unet: cannot be loaded \(it lacks weights"):
            load(file, config=str(base), guidance=w)
        rewrite(file, LFS_POINTER)
        with pytest.raises(ModelError, match=r"whole\.safetensors is a Git LFS pointer"):
            load(file, config=str(base), guidance=w)
    with pytest.raises(ModelError, match=r"old\.ckpt cannot be read"):
        load(tmp_path / "old.ckpt")


def test_prompts_are_counted_before_a_single_file_is_loaded(tmp_path: Path) -> None:
    """Bug: the tokenizers of a model in one file were looked for in the file's own folder."""
    base = write_tiny_sd15(tmp_path / "base", False)
    file = write_single_file(base, tmp_path / "whole.safetensors")
    tokens = load_prompt_tokens(ModelSettings(path=str(file), config=str(base)))
    assert tokens is not None
    assert [found.place for found in tokens.too_long([PROMPT, PROMPT * 40])] == [1]

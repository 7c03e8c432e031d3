"""Folders as people have them: read as stock diffusers does, or refused with part and setting named."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_model import (
    LFS_POINTER,
    PROMPT,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    change_json,
    change_weights,
    copy_model,
    images_of,
    load,
    remove_keys,
    rewrite,
)
from safetensors.torch import load_file, save_file

from lasro.errors import ModelError, PromptTooLongError
from lasro.training.sampling import sample_latents


@pytest.fixture
def folder(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to change."""
    return copy_model(tiny_model_path, tmp_path / "model")


@pytest.fixture(scope="module")
def expected(tiny_model_path: Path) -> torch.Tensor:
    """What the unchanged tiny model draws."""
    return images_of(load(tiny_model_path))


def as_fp16(folder: Path, keep: bool) -> None:
    for path in folder.rglob("*.safetensors"):
        variant = path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
        weights = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
        save_file(weights, variant, metadata={"format": "pt"})
        if not keep:
            path.unlink()


def test_half_precision_files_are_read_where_there_are_no_others(folder: Path, expected: torch.Tensor) -> None:
    """Bug: a folder of `*.fp16.safetensors`, as half of the hub's are, was refused. Where both are there, stock takes
    the plain ones."""
    as_fp16(folder, keep=True)
    assert torch.equal(images_of(load(folder)), expected)
    for path in folder.rglob("*.safetensors"):
        if ".fp16." not in path.name:
            path.unlink()
    half = images_of(load(folder))
    assert (half.int() - expected.int()).abs().max() <= 2
    assert not torch.equal(half, expected)


def shard(folder: Path) -> dict[str, str]:
    state = load_file(folder / UNET_WEIGHTS)
    names = sorted(state)
    files = {name: f"diffusion_pytorch_model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: state[name].contiguous() for name in names if files[name] == file}
        save_file(part, folder / "unet" / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / f"{UNET_WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / UNET_WEIGHTS).unlink()
    return files


def test_shards_are_read_and_a_missing_one_is_named(folder: Path, expected: torch.Tensor) -> None:
    """Bug: a folder whose download broke off between two shards was a traceback."""
    files = shard(folder)
    assert torch.equal(images_of(load(folder)), expected)
    (folder / "unet" / max(files.values())).unlink()
    with pytest.raises(
        ModelError, match=r"model\.path .*: unet: lacks 1 of 2 shards, first diffusion_.*00002-of-00002"
    ):
        load(folder)


def add_keys(folder: Path) -> None:
    change_json(folder / "unet/config.json", time_cond_proj_dim=None)


def without_projection(folder: Path) -> None:
    path = folder / "text_encoder_2/model.safetensors"
    change_weights(path, lambda s: {k: v for k, v in s.items() if k != "text_projection.weight"})


def put_nan(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        change_weights(path, lambda s: s | {(name := min(s)): s[name] * float("nan")})

    return change


def pickled(folder: Path) -> None:
    state = load_file(folder / VAE_WEIGHTS)
    torch.save(state, folder / "vae/diffusion_pytorch_model.bin")
    (folder / VAE_WEIGHTS).unlink()


def cut_short(folder: Path) -> None:
    rewrite(folder / VAE_WEIGHTS, (folder / VAE_WEIGHTS).read_bytes()[:-100])


def dangling(folder: Path) -> None:
    (folder / VAE_WEIGHTS).unlink()
    (folder / VAE_WEIGHTS).symlink_to(folder / "blobs" / "nowhere")


def renamed(folder: Path) -> None:
    (folder / VAE_WEIGHTS).rename(folder / "vae/mine.safetensors")


def fewer_tokens(folder: Path) -> None:
    change_json(folder / "text_encoder/config.json", vocab_size=100)
    change_weights(
        folder / "text_encoder/model.safetensors",
        lambda s: {name: t[:100] if "token_embedding" in name else t for name, t in s.items()},
    )


def inpainting(folder: Path) -> None:
    change_json(folder / "unet/config.json", in_channels=9)
    change_weights(folder / UNET_WEIGHTS, lambda s: s | {"conv_in.weight": torch.randn(16, 9, 3, 3)})


def in_file(name: str, body: bytes) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / name, body)


def in_json(name: str, **entries: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / name, **entries)


def sdxl_of_half_width(folder: Path) -> None:
    change_json(folder / "unet/config.json", projection_class_embeddings_input_dim=40)
    change_weights(
        folder / UNET_WEIGHTS,
        lambda s: s | {"add_embedding.linear_1.weight": s["add_embedding.linear_1.weight"][:, :40]},
    )


BROKEN = {
    "missing keys": (remove_keys, "unet: lacks 10 \\(mid_block.resnets.0.conv1.bias, ...\\) of its 213 weights"),
    "left-over keys": (add_keys, "unet: has no place for 1 \\(time_embedding.cond_proj.weight\\)"),
    "missing keys of an encoder": (without_projection, "text_encoder_2: lacks 1 \\(text_projection.weight\\)"),
    "LFS pointer": (
        in_file(UNET_WEIGHTS, LFS_POINTER),
        "unet: diffusion_pytorch_model.safetensors is a Git LFS pointer",
    ),
    "LFS tokenizer": (
        in_file("tokenizer/tokenizer.json", LFS_POINTER),
        "tokenizer: tokenizer.json is a Git LFS pointer",
    ),
    "empty file": (in_file(VAE_WEIGHTS, b""), "vae: diffusion_pytorch_model.safetensors is empty"),
    "cut short": (cut_short, "vae: diffusion_pytorch_model.safetensors is no whole file .*not fully covered.*; downl"),
    "a page of the hub": (in_file(VAE_WEIGHTS, b"<html>" * 20), "vae: diffusion_pytorch_model.safetensors is no whole"),
    "a link that leads nowhere": (dangling, "vae: diffusion_pytorch_model.safetensors cannot be read \\(No such file"),
    "another file name": (
        renamed,
        "vae: got config.json, mine.safetensors, expected weights as diffusion_pytorch_model",
    ),
    "no vocabulary": (
        lambda f: (f / "tokenizer_2/tokenizer.json").unlink(),
        "tokenizer_2: holds no vocabulary; expect",
    ),
    "another's tokenizer": (fewer_tokens, "tokenizer: got 2975 tokens, expected at most the 100 of its text encoder"),
    "another's configuration": (
        in_json("text_encoder/config.json", max_position_embeddings=99),
        "text_encoder: cannot be loaded \\(its weights have other shapes",
    ),
    "no scale": (in_json("vae/config.json", scaling_factor=None), "vae: got scaling_factor None, expected a number"),
    "three channels": (
        in_json("vae/config.json", latents_mean=[1, 2, 3], latents_std=[1, 1, 1]),
        "vae: got latents_mean, latents_std .*, expected 4 numbers each",
    ),
    "words for numbers": (in_json("vae/config.json", latents_mean="a", latents_std="b"), "vae: got latents_mean"),
    "null part": (in_json("model_index.json", vae=[None, None]), "vae: got \\[None, None\\] in model_index.json"),
    "unlisted part": (in_json("model_index.json", vae=None), "vae: got None in model_index.json, expected its library"),
    "class of nobody": (in_json("model_index.json", unet=["diffusers", "NoUNet"]), "unet: got diffusers.NoUNet"),
    "code of its own": (in_json("model_index.json", unet=["my_unet", "UNet"]), "unet: got my_unet.UNet"),
    "another network": (in_json("model_index.json", vae=["diffusers", "AutoencoderTiny"]), "vae: (got a|cannot|lacks)"),
    "broken JSON": (in_file("vae/config.json", b"{"), "vae: config.json cannot be read \\(Expecting property name"),
    "broken index": (
        in_file("model_index.json", b"[1]"),
        "model_index.json cannot be read \\(got \\[1\\], expected an",
    ),
    "no class": (in_file("model_index.json", b"{}"), "model_index.json names no pipeline"),
    "pickles": (pickled, "vae: got diffusion_pytorch_model.bin, a pickle, expected weights as .*; load it"),
    "inpainting": (inpainting, "unet: got in_channels 9, expected the 4 of the VAE's latents; an inpainting UNet"),
    "other shapes": (in_json("unet/config.json", cross_attention_dim=48), "unet: cannot be loaded .* expected shape"),
    "a size in millions": (
        in_json("unet/config.json", sample_size=10**9),
        "unet: got sample_size 1000000000, expected",
    ),
    "no size": (in_json("unet/config.json", sample_size=None), "unet: got sample_size None, expected the latents'"),
    "other projection": (sdxl_of_half_width, "unet: got projection_class_embeddings_input_dim 40, expected 64"),
    "centred input": (in_json("unet/config.json", center_input_sample=True), "unet: got center_input_sample True"),
    "NaN in the UNet": (put_nan("unet"), "unet: got NaN or infinity in 1 \\(add_embedding.linear_1.bias\\) of its 213"),
    "NaN in the VAE": (put_nan("vae"), "vae: got NaN or infinity in 1 "),
    "NaN in an encoder": (put_nan("text_encoder_2"), "text_encoder_2: got NaN or infinity in 1 .*read as float32"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_named(folder: Path, case: str) -> None:
    """Bug: weights that a file lacks were random numbers, NaN drew black images, without its vocabulary a tokenizer
    made every prompt the same, and most others were tracebacks or a library's words."""
    change, message = BROKEN[case]
    change(folder)
    with pytest.raises(ModelError, match=rf"^model\.path {folder}: {message}") as refusal:
        load(folder).embed([PROMPT])  # text encoders are read once there is something to embed
    assert len(str(refusal.value)) < 600 + len(str(folder))
    assert "\n" not in str(refusal.value)


def test_a_message_of_a_library_is_bounded(folder: Path) -> None:
    """Bug: a message held the whole list of what differed, 32,533 characters on one line."""
    change_json(folder / "vae/config.json", down_block_types=["NoSuchBlock" * 3000] * 2)
    with pytest.raises(ModelError, match="vae: cannot be loaded") as refusal:
        load(folder)
    assert len(str(refusal.value)) < 600 + len(str(folder))


def test_weights_that_overflow_in_the_dtype_are_refused(folder: Path) -> None:
    """Bug: finite weights that are infinite in float16 drew black images."""
    change_weights(folder / VAE_WEIGHTS, lambda s: s | {(name := "decoder.conv_out.weight"): s[name] * 1e7})
    change_json(folder / "vae/config.json", force_upcast=False)
    load(folder)
    with pytest.raises(ModelError, match=r"vae: got NaN or infinity in 1 \(decoder.conv_out.weight\).*read as float16"):
        load(folder, dtype="float16")


def test_a_tokenizer_without_a_limit_has_that_of_its_encoder(folder: Path, expected: torch.Tensor) -> None:
    """Bug: `model_max_length` 10^30, as many folders have it, made stock pad the prompt to so many tokens."""
    for name in ("tokenizer", "tokenizer_2"):
        change_json(folder / name / "tokenizer_config.json", model_max_length=1000000019884624838656)
    model = load(folder)
    assert torch.equal(images_of(model), expected)
    with pytest.raises(PromptTooLongError, match="expected at most 32"):
        model.embed(["a red circle " * 20])


def test_a_path_may_end_with_a_slash_or_begin_at_home(
    folder: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: `~/model` was taken for a folder of that name."""
    monkeypatch.setenv("HOME", str(folder.parent))
    for path in (f"{folder}/", "~/model"):
        assert torch.equal(images_of(load(path)), expected)


def test_a_path_that_the_system_refuses_is_named(tiny_model_path: Path) -> None:
    """Bug: a folder without permission, or a path that is too long, was a traceback."""
    path = f"/{'x' * 300}"
    with pytest.raises(ModelError, match=rf"^model\.path {path}: its model_index\.json cannot be read \(.*too long"):
        load(path)
    with pytest.raises(ModelError, match=rf"^model\.unet {path}: cannot be loaded \(.*too long"):
        load(tiny_model_path, unet=path)


def test_latents_need_not_be_square(folder: Path) -> None:
    """Bug: `sample_size` as [height, width] was a traceback."""
    change_json(folder / "unet/config.json", sample_size=[8, 4])
    model = load(folder)
    assert model.latent_shape == (4, 8, 4)
    assert model.image_size == (16, 8)
    draws = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, 4, 8, 4, generator=draws) for _ in range(2)]
    with torch.no_grad():
        latents = sample_latents(model, noises, model.embed([PROMPT]))[-1]
    diffusers: Any = importlib.import_module("diffusers")
    stock = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 8, "num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    theirs = stock(PROMPT, generator=torch.Generator().manual_seed(0), **options).images
    assert (latents - theirs).abs().max() <= 1e-4
    images = model.decode(latents)
    assert images.shape == (1, 16, 8, 3)
    assert model.encode(images).shape == latents.shape


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`")  # of the hub's client, which diffusers calls
def test_a_hub_that_cannot_be_asked_is_said(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: offline, the message was that the model has no model_index.json."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for settings in ({"path": "nobody/nothing"}, {"path": str(tiny_model_path), "unet": "nobody/nothing"}):
        with pytest.raises(ModelError, match=r"hub cannot be asked: Cannot reach .*; name a folder, or go online"):
            load(**settings)

"""The CLIP rewards on small random models of the same architecture, against their formulas worked out here."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from lasro.errors import ModelError
from lasro_rewards import aesthetic as aesthetic_module
from lasro_rewards.aesthetic import aesthetic
from lasro_rewards.clip_features import clip_features
from lasro_rewards.clip_score import clip_score
from lasro_rewards.hps_v2 import hps_v2
from lasro_rewards.pick_score import pick_score
from lasro_rewards.pixels import cropped, padded
from lasro_rewards.settings import settings

PROMPTS = ["a red circle", "two blue squares on a white background", "a red circle"]
SIZE_PX, WIDTH, LAYERS = 16, 128, 2
TOKENIZER = Path(str(importlib.resources.files("lasro"))) / "assets" / "tiny-sdxl-lcm" / "tokenizer"


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


IMAGES = [noise(0), noise(1, 24, 48), noise(2, 16, 16)]


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Models are kept for the process: each test brings its own, on one thread, and leaves torch its own number."""
    threads = torch.get_num_threads()
    for cached in (settings, clip_features, aesthetic_module.head):
        cached.cache_clear()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LASRO_REWARD_THREADS", "1")
        yield
    for cached in (settings, clip_features, aesthetic_module.head):
        cached.cache_clear()
    torch.set_num_threads(threads)


def config() -> CLIPConfig:
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "hidden_act": "gelu"}
    text = tower | {
        "vocab_size": len(tokenizer), "num_attention_heads": 2, "max_position_embeddings": 77, "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = tower | {"num_attention_heads": 2, "image_size": SIZE_PX, "patch_size": 8}
    return CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config()).save_pretrained(tmp_path / "clip")
    CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def transformers_outputs(folder: Path) -> Any:
    """The whole model, called with the library's own image processor, one pair at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX}, do_rescale=True
    )
    with torch.inference_mode():
        return [
            model(**tokenizer(prompt, return_tensors="pt"), **processor(image, return_tensors="pt"))
            for image, prompt in zip(IMAGES, PROMPTS, strict=True)
        ]


def test_clip_score_is_the_cosine(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards preprocessing, pairing of repeated prompts, padding in a batch and normalisation, all at once."""
    monkeypatch.setenv("LASRO_CLIP_MODEL", str(clip_folder))
    expected = [
        torch.cosine_similarity(out.image_embeds, out.text_embeds).item() for out in transformers_outputs(clip_folder)
    ]
    assert clip_score(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-5)
    assert len(set(np.round(expected, 4))) == 3, "the random model must tell the images apart"
    assert clip_score([], []) == []


def test_pick_score_is_the_scaled_cosine(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the factor: PickScore is the logit, not the cosine."""
    monkeypatch.setenv("LASRO_PICK_SCORE_MODEL", str(clip_folder))
    expected = [out.logits_per_image.item() for out in transformers_outputs(clip_folder)]
    assert pick_score(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-4)


def test_long_prompts_are_cut(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a crash over 77 tokens, in the middle of a run."""
    monkeypatch.setenv("LASRO_CLIP_MODEL", str(clip_folder))
    (score,) = clip_score(IMAGES[:1], ["a red circle " * 60])
    assert isinstance(score, float)
    assert math.isfinite(score)


def test_aesthetic_is_five_linear_layers_on_unit_features(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the order of layers and the normalisation: raw features give ratings of another scale."""
    layers = torch.nn.Sequential(
        torch.nn.Linear(24, 20), torch.nn.Dropout(), torch.nn.Linear(20, 12), torch.nn.Dropout(),
        torch.nn.Linear(12, 8), torch.nn.Dropout(), torch.nn.Linear(8, 4), torch.nn.Linear(4, 1),
    ).eval()  # fmt: skip
    save_file({f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}, tmp_path / "head.safetensors")
    monkeypatch.setenv("LASRO_CLIP_MODEL", str(clip_folder))
    monkeypatch.setenv("LASRO_AESTHETIC_HEAD", str(tmp_path / "head.safetensors"))
    with torch.inference_mode():
        expected = [
            layers(out.image_embeds / out.image_embeds.norm()).item() for out in transformers_outputs(clip_folder)
        ]
    assert aesthetic(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-5)


def test_a_head_of_another_form_is_refused(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a head that was never trained, or a file that is none."""
    monkeypatch.setenv("LASRO_CLIP_MODEL", str(clip_folder))
    save_file({"layers.0.weight": torch.zeros(1, 24)}, tmp_path / "head.safetensors")
    monkeypatch.setenv("LASRO_AESTHETIC_HEAD", str(tmp_path / "head.safetensors"))
    with pytest.raises(ModelError, match=r"expected \['layers.0.bias'"):
        aesthetic(IMAGES[:1], PROMPTS[:1])


@pytest.mark.parametrize(
    ("variable", "scorer", "command"),
    [
        ("LASRO_CLIP_MODEL", clip_score, "hf download no-such/model --revision abc"),
        ("LASRO_PICK_SCORE_MODEL", pick_score, "hf download no-such/model --revision abc"),
        ("LASRO_HPS_V2_MODEL", hps_v2, "python -m lasro_rewards.convert"),
    ],
)
def test_missing_weights_are_one_line_with_the_command(
    variable: str, scorer: Any, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards against a download of gigabytes within a scoring call, and against transformers' long errors."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "" if "convert" in command else "no-such/model@abc")
    with pytest.raises(ModelError, match=command) as caught:
        scorer(IMAGES[:1], PROMPTS[:1])
    assert variable in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_tensors_is_refused(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against random weights: transformers fills what is missing and only warns."""
    tensors = load_file(clip_folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, clip_folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setenv("LASRO_CLIP_MODEL", str(clip_folder))
    with pytest.raises(ModelError, match=r"lacks 1 tensors of CLIPModel, such as visual_projection.weight"):
        clip_score(IMAGES[:1], PROMPTS[:1])


def test_crop_and_pad_keep_what_they_should() -> None:
    """Guards geometry: cropping drops the ends of the long side, padding keeps them between black bars."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste("black", (0, 0, 16, 32))
    assert (cropped([image], 16) > 1).all()
    bars_HW = padded([image], 16)[0, 0]
    assert (bars_HW[:4] < 0).all()
    assert (bars_HW[12:] < 0).all()
    assert bars_HW[8, 1] < 0 < bars_HW[8, 12]

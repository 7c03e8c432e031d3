"""Images through the VAE one by one, in tiles, and by a tiny VAE where they are only to be scored."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_autoencoder import write_tiny_autoencoder
from tiny_model import diffusers

from lasro.config import ModelSettings, RunSettings
from lasro.errors import ModelError
from lasro.functional.pair_order import same_order
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_groups
from lasro.wire import RewardValue, ScoredItem, ScoreReply, ScoreRequest, Status
from lasro_client.run.observer import Observer
from lasro_client.run.tiny_vae_check import check_tiny_vae

PROMPTS = [Prompt("a red circle"), Prompt("a blue square")]


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_autoencoder(tmp_path_factory.mktemp("vae") / "taesd")


def load(path: Path | str, **settings: Any) -> UNetGenerator:
    model = load_model(ModelSettings(path=str(path), device="cpu", **settings))
    assert isinstance(model, UNetGenerator)
    return model


def latents(model: UNetGenerator, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def sizes(model: UNetGenerator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Filled with the shapes that go through the decoder."""
    seen: list[tuple[int, ...]] = []
    decoder: Any = model.pipeline.vae.decoder
    forward = decoder.forward

    def noting(z: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(tuple(z.shape))
        return forward(z, *rest, **named)

    monkeypatch.setattr(decoder, "forward", noting)
    return seen


def test_slices_are_single_images_of_the_same_pixels(
    one_level_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a switch that reaches no VAE, and against one that changes what is scored."""
    whole, sliced = load(one_level_model_path), load(one_level_model_path, vae_slicing=True)
    z, seen = latents(whole), sizes(sliced, monkeypatch)
    difference = whole.decode(z).astype(int) - sliced.decode(z).astype(int)
    assert np.abs(difference).max() <= 1
    assert seen == [(1, 4, 8, 8)] * 3


def test_no_tile_is_larger_than_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug of the switch alone: an SDXL-class VAE's own tiles have 1024 pixels, so that 1024 x 1024 had none."""
    whole, tiled = load("bundled"), load("bundled", vae_tile=64)
    z, seen = latents(whole, 1), sizes(tiled, monkeypatch)
    images = tiled.decode(z)
    assert len(seen) > 1
    assert max(shape[-1] for shape in seen) == 8
    assert images.shape == (1, 128, 128, 3)
    assert np.abs(images.astype(int) - whole.decode(z).astype(int)).mean() < 12
    assert tiled.encode(images).shape == z.shape


def test_tiles_that_no_latent_makes_are_refused(one_level_model_path: Path) -> None:
    """Guards against tiles that are cut off, and leave a border without pixels."""
    with pytest.raises(ModelError, match=r"^model\.vae_tile: got 68, expected a multiple of 32 for this VAE$"):
        load("bundled", vae_tile=68)


def test_a_tiny_vae_decodes_what_is_scored_and_nothing_else(one_level_model_path: Path, tiny_vae: Path) -> None:
    """Guards against a report or evaluation that shows pictures which the exported model does not draw."""
    plain, model = load(one_level_model_path), load(one_level_model_path, tiny_vae=str(tiny_vae))
    z = latents(model)
    assert np.array_equal(model.decode(z), plain.decode(z))
    assert torch.equal(model.decode_pixels(z), plain.decode_pixels(z))
    with torch.no_grad():
        stock = diffusers.AutoencoderTiny.from_pretrained(tiny_vae).eval().decode(z).sample
    expected = ((stock / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(model.decode_to_score(z).astype(int) - expected.astype(int)).max() <= 1
    run = settings(one_level_model_path, tiny_vae)
    (group,) = sample_groups(model, PROMPTS[:1], run.train, 0, base=True)
    scored = np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in group.images])
    assert np.array_equal(scored, model.decode_to_score(group.latents_BCHW))
    assert run.surrogate_run.model.tiny_vae is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_channels": 16}, "got latents of 16 channels, expected the 4 of the VAE"),
        (
            {
                "encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4),
                "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1),
            },
            "makes 4 pixels of a latent's side, expected 2 as the VAE does",
        ),
    ],
)  # fmt: skip
def test_a_tiny_vae_of_other_latents_is_refused(
    one_level_model_path: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Guards against pictures of another family's latents, which a reward would score like any other."""
    folder = write_tiny_autoencoder(tmp_path / "other", **config)
    with pytest.raises(ModelError, match=rf"^model\.tiny_vae {folder}: {message}"):
        load(one_level_model_path, tiny_vae=str(folder))


def test_what_is_no_tiny_vae_is_named(one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a traceback for a mistyped path, and against the model's own VAE given in its place."""
    vae = one_level_model_path / "vae"
    with pytest.raises(ModelError, match=rf"^model\.tiny_vae {vae}: got a AutoencoderKL, expected an AutoencoderTiny"):
        load(one_level_model_path, tiny_vae=str(vae))
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ModelError, match=rf"^model\.tiny_vae {nowhere}: no such folder; expected that of an Auto"):
        load(one_level_model_path, tiny_vae=str(nowhere))


def settings(model: Path, tiny_vae: Path | None) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": "any",
            "model": {"path": str(model), "device": "cpu"} | ({} if tiny_vae is None else {"tiny_vae": str(tiny_vae)}),
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "r"}],
            "train": {"seeds_per_prompt": 2},
        }
    )


class Brightness:
    """Mean pixel, 0 to 1, of what it is given; the answers of the reward API, and how many it was asked for."""

    def __init__(self) -> None:
        self.scored: list[float] = []

    def score(self, request: ScoreRequest) -> ScoreReply:
        assert request.fresh
        found = [float(np.asarray(Image.open(io.BytesIO(png))).mean() / 255) for png in request.images]
        self.scored += found
        return ScoreReply(items=[item(score) for score in found])


def item(score: float) -> ScoredItem:
    value = RewardValue(score=score, status=Status.OK, error=None, attempts=1, latency_s=0.0, version=1)
    return ScoredItem(scores={"r": value}, total=score)


def test_the_change_of_the_reward_is_told_and_kept(one_level_model_path: Path, tiny_vae: Path, tmp_path: Path) -> None:
    """Guards against a reward that a cheap decoder changes without anybody hearing of it."""
    config, client, notes = settings(one_level_model_path, tiny_vae), Brightness(), list[str]()
    model = load_model(config.model)
    observer: Any = SimpleNamespace(note=notes.append, activity=Observer().activity)
    arguments: Any = (config, tmp_path, model, PROMPTS, client, observer)
    check_tiny_vae(*arguments)
    found = json.loads((tmp_path / "tiny_vae.json").read_text())
    assert len(client.scored) == 2 * found["samples"] == 2 * 4 * 4  # four prompts of two seeds, in one step and in two
    tiny, own = np.split(np.array(client.scored), 2)
    reward = found["rewards"]["r"]
    assert (reward["tiny_vae"], reward["own_vae"]) == pytest.approx((tiny.mean(), own.mean()))
    assert abs(tiny.mean() - own.mean()) > 0.01
    assert len(notes) == 1
    assert f"r is {tiny.mean():.4g} by it and {own.mean():.4g} by the model's own, which rank " in notes[0]
    check_tiny_vae(*arguments)
    check_tiny_vae(settings(one_level_model_path, None), tmp_path / "other", *arguments[2:])
    assert len(client.scored) == 2 * found["samples"], "a resumed run, and one without a tiny VAE, asks nothing"


def test_order_by_hand() -> None:
    """Guards against ties and failed scores that count as agreement.

    a tells five of the six pairs of the first four apart; of these b has (0, 1) the same way, (0, 2) tied, and (0, 3),
    (1, 3) and (2, 3) the other way round.
    """
    a = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    b = np.array([0.0, 1.0, 0.0, -1.0, np.nan])
    assert same_order(a, b) == (1, 5)
    assert same_order(a[:4], a[:4]) == (5, 5)
    assert same_order(a[:1], b[:1]) == (0, 0)
